"""Reads a data source into tokenised responses, and counts what was cut, skipped or doubtful on the way.

A skipped response leaves the other one of its pair in. `pair_id` is the number of the row in its source, whatever was
skipped before it.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, get_args

from tqdm import tqdm

from precompute.data_reader import DataReader, DataRow
from precompute.layouts import Layout, ResponseKind
from precompute.sources import Data
from precompute.token_store import TokenStore
from precompute.tokenize import SkippedResponse, TokenizedResponse, tokenize_row
from shards.errors import DataError, OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Responses = Literal["chosen", "rejected", "both"]
OnSkip = Literal["skip", "error"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """Tokenised responses in source order, chosen before rejected, and how they came about.

    `skipped` counts responses by reason, under "overlong" and "empty". `truncated` and `prompt_not_prefix` count the
    kept responses that were cut, and those whose prompt reads otherwise alone than with the response behind it.
    has_pairs: the rows hold a rejected response too, whether or not it was asked for.
    ignores_chat_template: the tokenizer has a chat template, but the data are text. data_sha256 covers the columns in
    use of every row read, whatever file format held them.
    """

    responses: Sequence[TokenizedResponse]
    rows_read: int
    skipped: dict[str, int]
    truncated: int
    prompt_not_prefix: int
    has_pairs: bool
    ignores_chat_template: bool
    data_sha256: str
    notes: tuple[str, ...]

    @property
    def tokens_sha256(self) -> str:
        """Over the token ids and masks of the responses: what the tokenizer made of the data."""
        digest = hashlib.sha256()
        for row in self.responses:
            digest.update(row.input_ids.astype("<i4").tobytes() + row.loss_mask.tobytes())
        return digest.hexdigest()


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
    progress: bool = False,
) -> Corpus:
    """Tokenises the first `limit` rows of `data`, or all of them; `read_rows` says what `data` can be.

    The first row tells the layout, and every other row must have it. `responses` picks from preference rows; the other
    layouts have one response a row, which "chosen" means. max_length is in tokens, prompt and response together.

    Raises DataError for a row that cannot be used, where no response is left, and for an overlong or empty response
    where that is to be an error; OptionError for an option out of range; ModelError for a tokenizer that lacks what the
    format needs.
    """
    _check_options(responses, max_length, limit, {"on_overlong": on_overlong, "on_empty": on_empty})
    if isinstance(data, str):
        data = Data.of(data, split, limit)
    on_skip = {"overlong": on_overlong, "empty": on_empty}
    kept = TokenStore()
    skipped = dict.fromkeys(on_skip, 0)
    rows_read = truncated = prompt_not_prefix = 0
    digest = hashlib.sha256()
    reader = DataReader(data)
    rows = tqdm(reader, desc=f"tokenizing {data}", unit=" rows", disable=not progress)
    plain_text = has_pairs = False
    for canonical, outcomes, layout in _tokenized(rows, tokenizer, responses, max_length):
        rows_read += 1
        plain_text, has_pairs = not layout.conversational, "rejected" in layout.kinds
        digest.update(canonical)
        for outcome in outcomes:
            if isinstance(outcome, TokenizedResponse):
                kept.append(outcome)
                truncated += outcome.truncated
                prompt_not_prefix += not outcome.prompt_is_prefix
            elif on_skip[outcome.reason] == "error":
                raise DataError(outcome.message)
            else:
                skipped[outcome.reason] += 1
    if not kept:
        counts = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise DataError(f"{data}: no response left: {rows_read} rows read, skipped {counts}")
    return Corpus(
        responses=kept,
        rows_read=rows_read,
        skipped=skipped,
        truncated=truncated,
        prompt_not_prefix=prompt_not_prefix,
        has_pairs=has_pairs,
        ignores_chat_template=plain_text and bool(tokenizer.chat_template),
        data_sha256=digest.hexdigest(),
        notes=tuple(reader.notes()),
    )


def load_pairs(
    data: Data, wanted: Collection[int], *, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[TokenizedResponse]:
    """Both responses of the rows of these numbers, tokenised; those that `load_corpus` would skip are left out."""
    rows = islice(DataReader(data), max(wanted) + 1)
    by_row = _tokenized(rows, tokenizer, "both", max_length, wanted=wanted)
    return [outcome for _, some, _ in by_row for outcome in some if isinstance(outcome, TokenizedResponse)]


def _tokenized(
    rows: Iterable[DataRow],
    tokenizer: "PreTrainedTokenizerBase",
    responses: Responses,
    max_length: int,
    *,
    wanted: Collection[int] | None = None,
) -> Iterator[tuple[bytes, list[TokenizedResponse | SkippedResponse], Layout]]:
    """For each row (of these numbers, where given) its canonical bytes, its responses and the source's layout."""
    for pair_id, row in enumerate(rows):
        where, values, layout = row.where, row.values, row.layout
        if wanted is not None and pair_id not in wanted:
            continue
        canonical = canonical_row(values, where)
        outcomes = tokenize_row(
            values,
            where=where,
            pair_id=pair_id,
            layout=layout,
            tokenizer=tokenizer,
            kinds=_wanted_kinds(responses, layout, where),
            max_length=max_length,
        )
        yield canonical, outcomes, layout


def _wanted_kinds(responses: Responses, layout: Layout, where: str) -> tuple[ResponseKind, ...]:
    if responses == "chosen":
        return layout.kinds[:1]
    if "rejected" not in layout.kinds:
        columns = "+".join(layout.columns)
        raise DataError(f"{where}: expected a column rejected, which responses {responses} asks for, got {columns}")
    return layout.kinds if responses == "both" else ("rejected",)


def canonical_row(values: Mapping[str, Any], where: str) -> bytes:
    """A row as bytes that hashes are taken over. Raises DataError for values that JSON does not have."""
    try:
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text.encode() + b"\n"
    except (TypeError, ValueError) as exc:  # bytes and dates of Arrow files; half a surrogate pair
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
