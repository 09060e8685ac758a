"""A response and the lists of a survey as text for a terminal: coloured on one, plain anywhere else."""

import sys
from collections.abc import Sequence

import numpy as np
from rich.cells import set_cell_size
from rich.console import Console
from rich.text import Text

from shards.cli.text import WIDTH, labelled
from shards.format.schema import Role
from shards.format.scores import Response
from shards.survey.counts import By, Ranked, Tops
from shards.survey.survey import Survey
from shards.teacher.reward import deepest_reward, formula

REWARDED = ("black on #9ecae1", "black on #4292c6", "white on #08519c")
PUNISHED = ("black on #fdae6b", "black on #f16913", "white on #a63603")
"""Blue and orange, which the colour-blind can tell apart; from small to large."""
FAINTEST = 0.1
"""Smaller rewards, as a share of that, have no colour."""
UNDERLINED = 0.9
"""Tokens with a D_t over this quantile of the row are underlined."""
PROMPT_CHARACTERS = 600
COUNT_WIDTH, NUMBER_WIDTH = 8, 10


def coloured(
    pieces: Sequence[str], mask_T: np.ndarray, reward_N: np.ndarray, distance_N: np.ndarray, response_start: int
) -> Text:
    """The end of the prompt, dim, and the response, its tokens coloured by their rewards.

    pieces: the text of each token; mask_T: which of them have a reward and a D_t.
    """
    scale = max(deepest_reward(reward_N), 1e-12)
    wide = float(np.quantile(distance_N, UNDERLINED))
    text = Text(_end_of("".join(map(printable, pieces[:response_start]))), style="dim")
    values = iter(zip((reward_N / scale).tolist(), (distance_N > wide).tolist(), strict=True))
    response = Text()
    for piece, distilled in zip(pieces[response_start:], mask_T[response_start:].tolist(), strict=True):
        style = _style(*next(values)) if distilled else "dim"
        response.append(printable(piece), style)
    return Text.assemble(text, response)


def show_coloured(pieces: Sequence[str], response: Response, reward_N: np.ndarray, negative: Role) -> None:
    """Print the text of a response: coloured, with a legend, if there is a terminal that can; else plain, broken at
    WIDTH. NO_COLOR and FORCE_COLOR are respected.

    negative: whose D_t is underlined.
    """
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    distance_N = response.scores.l1_distance[negative]
    if console.is_terminal and not console.no_color:
        console.print(Text(_legend(reward_N), style="dim"))
    console.print(coloured(pieces, response.loss_mask, reward_N, distance_N, response.response_start))


def tops_text(found: Survey, limit: int, by: By, min_count: int) -> str:
    """The most rewarded and most punished tokens and words of a survey."""
    what = f"{formula(found.negative, found.beta)}; on {found.on}, {found.positions:,} tokens"
    rule = f"sorted by {by}; only what occurs {min_count:,} times or more"
    lines = [*labelled("reward", [what, rule]), "", _tops_table("tokens", found.tokens(limit, by, min_count)), ""]
    if found.texts.note is None:
        lines.append(_tops_table("words", found.words(limit, by, min_count)))
    else:
        lines += labelled("words", [f"none: the cache has {found.texts.note}"])
    return "\n".join(lines)


def _legend(reward_N: np.ndarray) -> str:
    scale = deepest_reward(reward_N)
    return (
        f"blue: rewarded, orange: punished, the deepest colour from {scale:.3g} on; underlined: D_t in the highest "
        f"{1 - UNDERLINED:.0%} of the row; dim: not distilled"
    )


def _tops_table(title: str, found: Tops) -> str:
    """The most rewarded and the most punished, one beside the other."""
    half = WIDTH // 2 - 1
    lines = [_pair(f"most rewarded {title}", f"most punished {title}", half), _pair(_head(half), _head(half), half)]
    for i in range(max(map(len, found))):
        left, right = (_line(side[i], half) if i < len(side) else "" for side in found)
        lines.append(_pair(left, right, half))
    return "\n".join(lines if any(found) else [*lines[:1], "none"])


def printable(text: str) -> str:
    """Text that cannot command a terminal: other characters than letters, signs, spaces and line ends are spelled."""
    return "".join(c if c.isprintable() or c == "\n" else "    " if c == "\t" else repr(c)[1:-1] for c in text)


def quoted(text: str) -> str:
    """In quotation marks, so that a space at its begin is seen, with line ends spelled."""
    return '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) + '"'


def _style(share: float, underlined: bool) -> str:
    size = min(abs(share), 1.0)
    level = 0 if size < FAINTEST else 1 if size < 0.5 else 2 if size < 1 else 3
    colour = "" if level == 0 else (REWARDED if share > 0 else PUNISHED)[level - 1]
    return f"{colour} underline".strip() if underlined else colour


def _end_of(prompt: str) -> str:
    cut = len(prompt) - PROMPT_CHARACTERS
    return prompt if cut <= 0 else f"({cut:,} characters before) …{prompt[cut:]}"


def _head(half: int) -> str:
    return f"{'':<{_text_width(half)}}{'count':>{COUNT_WIDTH}}{'total':>{NUMBER_WIDTH}}{'mean':>{NUMBER_WIDTH}}"


def _line(entry: Ranked, half: int) -> str:
    text = set_cell_size(_shortened(quoted(entry.text), _text_width(half) - 1), _text_width(half))
    return f"{text}{entry.count:>{COUNT_WIDTH},}{entry.total:>{NUMBER_WIDTH}.3f}{entry.mean:>{NUMBER_WIDTH}.4f}"


def _shortened(text: str, width: int) -> str:
    return text if Text(text).cell_len <= width else f'{set_cell_size(text, width - 2).rstrip()}…"'


def _text_width(half: int) -> int:
    return half - COUNT_WIDTH - 2 * NUMBER_WIDTH


def _pair(left: str, right: str, half: int) -> str:
    return f"{set_cell_size(left, half)}  {right}".rstrip()
