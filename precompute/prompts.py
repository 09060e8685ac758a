"""The prompts of a data source, tokenised for a model to go on from; read and cut off as the build does."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from precompute.corpus import canonical_row, twice_begun_notes
from precompute.data_reader import DataReader
from precompute.encode import encode_all
from precompute.layouts import TEMPLATE_COLUMNS, Messages, split_row
from precompute.sources import Data
from precompute.tokenize import prompt_request
from shards.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt: the number of its row in the source, from 0; text or messages; its token ids.

    template: the row's TEMPLATE_COLUMNS, as far as it has them.
    """

    id: int
    where: str
    prompt: str | Messages
    template: Mapping[str, Any]
    token_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """The prompts in source order, a sha256 over them and their arguments of the template, and notes for a person."""

    prompts: list[Prompt]
    sha256: str
    notes: Sequence[str]


def load_prompts(data: Data, *, tokenizer: "PreTrainedTokenizerBase") -> Prompts:
    """The prompts of the rows of `data`.

    Rows are those of a build, whose responses are left aside, or have a prompt alone. Raises DataError for a row that
    cannot be used, one without a prompt among them, and where there is none.
    """
    digest = hashlib.sha256()
    reader = DataReader(data, prompts_only=True)
    rows = _prompt_rows(data, reader, digest)
    requests = (
        (row, {"prompt": prompt_request(row.prompt, row.template, where=row.where, tokenizer=tokenizer)})
        for row in rows
    )
    encoded = tqdm(encode_all(requests, tokenizer), desc=f"tokenizing {data}", unit=" rows", leave=False)
    found = [replace(row, token_ids=ids["prompt"].ids.tolist()) for row, ids in encoded]
    twice = sum(prompt.token_ids[:2] == [tokenizer.bos_token_id] * 2 for prompt in found)
    notes = [*reader.notes(), *twice_begun_notes(twice, tokenizer.bos_token)]
    return Prompts(prompts=found, sha256=digest.hexdigest(), notes=notes)


def prompts_sha256(data: Data) -> str:
    """`Prompts.sha256`, without tokenising. Raises DataError for a row that cannot be used."""
    digest = hashlib.sha256()
    for _ in _prompt_rows(data, DataReader(data, prompts_only=True), digest):
        pass
    return digest.hexdigest()


def _prompt_rows(data: Data, reader: DataReader, digest: Any) -> Iterator[Prompt]:
    """The prompts without their token ids; what they hold goes into the digest on the way."""
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
