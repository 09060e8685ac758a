"""Tokenises the prompts of a data source for sampling; reads and cuts off rows as the build does."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from precompute.data.layouts import TEMPLATE_COLUMNS, Messages, split_row
from precompute.data.reader import DataReader
from precompute.data.sources import Data
from precompute.tokens.corpus import canonical_row, counted_rows, template_notes, twice_begun
from precompute.tokens.encode import encode_all
from precompute.tokens.tokenize import prompt_request
from shards.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt: the number of its row in the source, from 0; text or messages; its token ids.

    template: the row's values for TEMPLATE_COLUMNS.
    """

    id: int
    where: str
    prompt: str | Messages
    template: Mapping[str, Any]
    token_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """The prompts in source order, a sha256 over them and their template arguments, and lines for the user."""

    prompts: list[Prompt]
    sha256: str
    notes: Sequence[str]
    warnings: Sequence[str] = ()


def load_prompts(data: Data, *, tokenizer: "PreTrainedTokenizerBase") -> Prompts:
    """The prompts of the rows of `data`.

    Rows are as for a build (responses are not read), or have only a prompt. Raises DataError for a row that cannot be
    used, such as one without a prompt, and if there are no rows.
    """
    digest = hashlib.sha256()
    reader = DataReader(data, prompts_only=True)
    rows = _prompt_rows(data, reader, digest)
    requests = (
        (row, {"prompt": prompt_request(row.prompt, row.template, where=row.where, tokenizer=tokenizer)})
        for row in rows
    )
    encoded = counted_rows(encode_all(requests, tokenizer), reader, f"tokenizing {data}")
    found = [replace(row, token_ids=ids["prompt"].ids.tolist()) for row, ids in encoded]
    twice = sum(prompt.token_ids[:2] == [tokenizer.bos_token_id] * 2 for prompt in found)
    plain_text = any(isinstance(prompt.prompt, str) for prompt in found)
    notes = [
        *reader.notes(),
        *template_notes(plain_text, tokenizer),
    ]
    warnings = twice_begun(twice, tokenizer.bos_token)
    return Prompts(prompts=found, sha256=digest.hexdigest(), notes=notes, warnings=warnings)


def prompts_sha256(data: Data) -> str:
    """`Prompts.sha256`, without tokenising. Raises DataError for a row that cannot be used."""
    digest = hashlib.sha256()
    reader = DataReader(data, prompts_only=True)
    for _ in counted_rows(_prompt_rows(data, reader, digest), reader, f"reading {data}"):
        pass
    return digest.hexdigest()


def _prompt_rows(data: Data, reader: DataReader, digest: Any) -> Iterator[Prompt]:
    """The prompts without their token ids; their content is added to the digest."""
    row = None
    for row in reader:
        where, values = row.where, row.values
        prompt, _ = split_row(values, row.layout, where)
        if not prompt:
            raise DataError(f"{where}: expected a prompt, got an empty one")
        template = {name: values[name] for name in TEMPLATE_COLUMNS if name in values}
        digest.update(canonical_row({"prompt": prompt, **template}, where))
        yield Prompt(id=row.pair_id, where=where, prompt=prompt, template=template, token_ids=[])
    if row is None:
        raise DataError(f"{data}: expected prompts, found no row")
