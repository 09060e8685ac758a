"""Reads a data source into tokenised responses, and counts those that are cut, skipped or doubtful.

If one response of a pair is skipped, the other one stays. `pair_id` is the number of the row in its source; skipped
rows count.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from precompute.data.layouts import Layout, ResponseKind, SourceRow
from precompute.data.reader import DataReader
from precompute.data.sources import Data
from precompute.tokens.tally import Facts, SpreadSample, Tally
from precompute.tokens.token_store import TokenStore
from precompute.tokens.tokenize import tokenize_rows
from precompute.tokens.tokenized import Outcome, TokenizedResponse, TokenizedRow
from shards.errors import DataError, OptionError
from shards.progress import progress as shown_progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Responses = Literal["chosen", "rejected", "both"]
OnSkip = Literal["skip", "error"]
Item = TypeVar("Item")

ROWS_PER_ESTIMATE = 100
"""Rows between two estimates of their number."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """Tokenised responses in source order, chosen before rejected, with facts about them.

    `skipped` counts responses by reason, under "overlong" and "empty". has_pairs: the rows have a rejected response
    too, asked for or not. sampled_pairs: both responses of some rows, spread over the data, for checks that need a
    pair. empty_prompts counts rows. data_sha256 covers the used columns of every row read, in any file format. notes,
    warnings: lines for the user.
    """

    responses: Sequence[TokenizedResponse]
    facts: Facts
    rows_read: int
    skipped: dict[str, int]
    empty_prompts: int = 0
    has_pairs: bool
    sampled_pairs: Sequence[TokenizedResponse] = ()
    data_sha256: str
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()

    @property
    def truncated(self) -> int:
        """Number of kept responses that were cut."""
        return self.facts.truncated

    @property
    def prompt_not_prefix(self) -> int:
        """Number of kept responses whose prompt tokenises differently without the response."""
        return self.facts.prompt_not_prefix

    @property
    def tokens_sha256(self) -> str:
        """sha256 over the token ids and masks of the responses: the tokenizer's output."""
        return self.facts.tokens_sha256


def load_corpus(
    data: Data | str,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    split: str = "train",
    responses: Responses = "chosen",
    max_length: int = 2048,
    limit: int | None = None,
    on_overlong: OnSkip = "skip",
    on_empty: OnSkip = "error",
    sample_pairs: int = 0,
    progress: bool = False,
) -> Corpus:
    """Tokenise the rows of `data`; if it is text, it names one source, of which `limit` rows of `split` are read.

    The first row of a source sets its layout, and every other row must have it. `responses` selects from preference
    rows; rows of other layouts have one response, which counts as "chosen". max_length is in tokens, prompt and
    response together. sample_pairs: keep both responses of at least this many rows, if there are as many.

    Raises DataError for a row that cannot be used, if no response is left, and for an overlong or empty response if it
    should be an error; OptionError for an option out of range; ModelError for a tokenizer that lacks what the format
    needs.
    """
    _check_options(responses, max_length, limit, {"on_overlong": on_overlong, "on_empty": on_empty})
    reader = DataReader(Data.of(data, split, limit) if isinstance(data, str) else data)
    rows = HashedRows(reader)
    gathered = _Gathered(responses, {"overlong": on_overlong, "empty": on_empty}, sample_pairs, tokenizer.bos_token_id)
    tokenized = tokenize_rows(rows, tokenizer=tokenizer, max_length=max_length)
    for row in counted_rows(tokenized, reader, f"tokenizing {data}", show=progress):
        gathered.add(row)
    if not gathered.kept:
        counts = ", ".join(f"{count} {reason}" for reason, count in gathered.skipped.items())
        raise DataError(f"{data}: no response left: {gathered.rows_read} rows read, skipped {counts}")
    gathered.kept.finish()
    return Corpus(
        responses=gathered.kept,
        facts=gathered.tally.facts,
        rows_read=gathered.rows_read,
        skipped=gathered.skipped,
        empty_prompts=gathered.empty_prompts,
        has_pairs=gathered.has_pairs,
        sampled_pairs=[response for pair in gathered.sample.kept for response in pair],
        data_sha256=rows.sha256,
        notes=(
            *reader.notes(),
            *gathered.notes(),
            *template_notes(gathered.plain_text, tokenizer),
        ),
        warnings=twice_begun(gathered.twice_begun, tokenizer.bos_token),
    )


def rows_sha256(data: Data, *, progress: bool = False) -> str:
    """`Corpus.data_sha256`, without tokenising. Raises DataError for a row that cannot be used."""
    reader = DataReader(data)
    rows = HashedRows(reader)
    for _ in counted_rows(rows, reader, f"reading {data}", show=progress):
        pass
    return rows.sha256


def counted_rows(rows: Iterable[Item], reader: DataReader, what: str, *, show: bool = True) -> Iterator[Item]:
    """Pass rows on, with progress; their number is estimated from how far the reader is."""
    with shown_progress(None, what, unit="row", disable=not show) as bar:
        for number, row in enumerate(rows):
            yield row
            bar.update()
            if number % ROWS_PER_ESTIMATE == 0:
                bar.total = reader.expected_rows()
        bar.total = bar.n


class HashedRows:
    """Passes rows on, and computes the sha256 of their content."""

    def __init__(self, rows: Iterable[SourceRow]) -> None:
        self._rows = rows
        self._digest = hashlib.sha256()

    def __iter__(self) -> Iterator[SourceRow]:
        for row in self._rows:
            self._digest.update(canonical_row(row.values, row.where))
            yield row

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class _Gathered:
    """The responses that were asked for, and the counts."""

    def __init__(
        self, responses: Responses, on_skip: Mapping[str, OnSkip], sample_pairs: int, bos_token_id: int | None
    ) -> None:
        self.kept, self.tally = TokenStore(), Tally()
        self.sample: SpreadSample[list[TokenizedResponse]] = SpreadSample(sample_pairs)
        self.skipped = dict.fromkeys(on_skip, 0)
        self.rows_read = self.empty_prompts = self.twice_begun = 0
        self.has_pairs = self.plain_text = False
        self._responses, self._on_skip = responses, on_skip
        self._twice = None if bos_token_id is None else [bos_token_id] * 2

    def add(self, found: TokenizedRow) -> None:
        layout, before = found.row.layout, len(self.kept)
        self.rows_read += 1
        self.empty_prompts += found.empty_prompt
        self.plain_text |= not layout.conversational
        self.has_pairs |= "rejected" in layout.kinds
        wanted = [found.outcomes[kind] for kind in _wanted_kinds(self._responses, layout, found.row.where)]
        for outcome in wanted:
            self._keep(outcome)
        self.twice_begun += any(
            isinstance(outcome, TokenizedResponse) and outcome.input_ids[:2].tolist() == self._twice
            for outcome in wanted
        )
        both = [outcome for outcome in found.outcomes.values() if isinstance(outcome, TokenizedResponse)]
        if len(self.kept) > before and len(both) == 2:
            self.sample.offer(both)

    def notes(self) -> list[str]:
        """Notes about the tokens, for the user."""
        rows = "row" if self.empty_prompts == 1 else "rows"
        return [f"{self.empty_prompts:,} {rows} of data with an empty prompt"] if self.empty_prompts else []

    def _keep(self, outcome: Outcome) -> None:
        if isinstance(outcome, TokenizedResponse):
            self.kept.append(outcome)
            self.tally.add(outcome)
        elif self._on_skip[outcome.reason] == "error":
            raise DataError(outcome.message)
        else:
            self.skipped[outcome.reason] += 1


def _wanted_kinds(responses: Responses, layout: Layout, where: str) -> tuple[ResponseKind, ...]:
    if responses == "chosen":
        return layout.kinds[:1]
    if "rejected" not in layout.kinds:
        columns = "+".join(layout.columns)
        raise DataError(f"{where}: expected a column rejected, which responses {responses} asks for, got {columns}")
    return layout.kinds if responses == "both" else ("rejected",)


def template_notes(plain_text: bool, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """A note if the data are text and the tokenizer has a chat template; else nothing."""
    if not (plain_text and tokenizer.chat_template):
        return []
    return ["the data are plain text: the tokenizer's chat template is not applied to them"]


def twice_begun(rows: int, bos_token: Any) -> list[str]:
    """The warning about rows that begin with the beginning-of-sequence token twice; empty if there are none."""
    if not rows:
        return []
    why = "their text has one, and the tokenizer adds another"
    return [f"rows that begin with {bos_token} twice: {rows:,}; {why}"]


def canonical_row(values: Mapping[str, Any], where: str) -> bytes:
    """A row as bytes for hashing. Raises DataError for values that JSON does not have."""
    try:
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text.encode() + b"\n"
    except (TypeError, ValueError) as exc:  # bytes and dates in Arrow files; half a surrogate pair
        raise DataError(f"{where}: expected text and other values that JSON has, got {exc}") from exc


def _check_options(responses: str, max_length: int, limit: int | None, on_skip: Mapping[str, str]) -> None:
    if responses not in get_args(Responses):
        raise OptionError(f"responses: expected one of {', '.join(get_args(Responses))}, got {responses}")
    if max_length < 2:
        raise OptionError(f"max_length: expected 2 or more, got {max_length}")
    if limit is not None and limit < 1:
        raise OptionError(f"limit: expected 1 or more, got {limit}")
    for name, choice in on_skip.items():
        if choice not in get_args(OnSkip):
            raise OptionError(f"{name}: expected one of {', '.join(get_args(OnSkip))}, got {choice}")
