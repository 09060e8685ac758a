"""Reads a data source into tokenised responses, and counts what was cut, skipped or doubtful on the way.

A skipped response leaves the other one of its pair in. `pair_id` is the number of the row in its source, whatever was
skipped before it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from tqdm import tqdm

from precompute.data_reader import DataReader
from precompute.layouts import Layout, ResponseKind
from precompute.sources import Data
from precompute.spread import SpreadSample
from precompute.tally import Facts, Tally
from precompute.token_store import TokenStore
from precompute.tokenize import tokenize_rows
from precompute.tokenized import Outcome, SourceRow, TokenizedResponse, TokenizedRow
from shards.errors import DataError, OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Responses = Literal["chosen", "rejected", "both"]
OnSkip = Literal["skip", "error"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """Tokenised responses in source order, chosen before rejected, and how they came about.

    `skipped` counts responses by reason, under "overlong" and "empty". has_pairs: the rows hold a rejected response
    too, whether or not it was asked for. sampled_pairs: both responses of some rows, spread over the data, for what
    only a pair can tell. ignores_chat_template: the tokenizer has a chat template, but the data are text. empty_prompts
    counts rows. data_sha256 covers the columns in use of every row read, whatever file format held them. notes: lines
    for a person to read.
    """

    responses: Sequence[TokenizedResponse]
    facts: Facts
    rows_read: int
    skipped: dict[str, int]
    empty_prompts: int = 0
    has_pairs: bool
    sampled_pairs: Sequence[TokenizedResponse] = ()
    ignores_chat_template: bool = False
    data_sha256: str
    notes: Sequence[str] = ()

    @property
    def truncated(self) -> int:
        """Kept responses that were cut."""
        return self.facts.truncated

    @property
    def prompt_not_prefix(self) -> int:
        """Kept responses whose prompt reads otherwise alone than with the response behind it."""
        return self.facts.prompt_not_prefix

    @property
    def tokens_sha256(self) -> str:
        """Over the token ids and masks of the responses: what the tokenizer made of the data."""
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
    """Tokenises the rows of `data`; of one source, which text names, the first `limit` rows of `split`, or all.

    The first row of a source tells its layout, and every other row must have it. `responses` picks from preference
    rows; the other layouts have one response a row, which "chosen" means. max_length is in tokens, prompt and response
    together. sample_pairs: of so many rows or more, as far as there are, both responses are kept aside.

    Raises DataError for a row that cannot be used, where no response is left, and for an overlong or empty response
    where that is to be an error; OptionError for an option out of range; ModelError for a tokenizer that lacks what the
    format needs.
    """
    _check_options(responses, max_length, limit, {"on_overlong": on_overlong, "on_empty": on_empty})
    reader = DataReader(Data.of(data, split, limit) if isinstance(data, str) else data)
    rows = HashedRows(reader)
    gathered = _Gathered(responses, {"overlong": on_overlong, "empty": on_empty}, sample_pairs, tokenizer.bos_token_id)
    tokenized = tokenize_rows(rows, tokenizer=tokenizer, max_length=max_length)
    for row in tqdm(tokenized, desc=f"tokenizing {data}", unit=" rows", disable=not progress):
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
        ignores_chat_template=gathered.plain_text and bool(tokenizer.chat_template),
        data_sha256=rows.sha256,
        notes=(*reader.notes(), *gathered.notes(tokenizer.bos_token)),
    )


def rows_sha256(data: Data, *, progress: bool = False) -> str:
    """`Corpus.data_sha256`, without tokenising. Raises DataError for a row that cannot be used."""
    rows = HashedRows(DataReader(data))
    for _ in tqdm(rows, desc=f"reading {data}", unit=" rows", disable=not progress):
        pass
    return rows.sha256


class HashedRows:
    """Rows on their way through, and in the end the sha256 over what they hold."""

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
    """The responses that were asked for, and what is counted on the way."""

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

    def notes(self, bos_token: Any) -> list[str]:
        """What a person should know of the tokens."""
        rows = "row" if self.empty_prompts == 1 else "rows"
        lines = [f"{self.empty_prompts:,} {rows} of data with an empty prompt"] if self.empty_prompts else []
        return lines + twice_begun_notes(self.twice_begun, bos_token)

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


def twice_begun_notes(rows: int, bos_token: Any) -> list[str]:
    """What to say of rows that begin with the beginning-of-sequence token twice; nothing where there are none."""
    if not rows:
        return []
    why = "their text has one, and the tokenizer adds another"
    return [f"WARNING: rows that begin with {bos_token} twice: {rows:,}; {why}"]


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
