"""The prompts of a data source, tokenised for a model to go on from; read and cut off as the build does."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from precompute.corpus import canonical_row
from precompute.data import Row, read_rows
from precompute.encode import encode_all
from precompute.layouts import Layout, Messages, find_layout, split_row, used_values
from precompute.tokenize import prompt_request
from shards.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
"""What a row may bring for the chat template; it goes with the prompt wherever that goes."""


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
    """The prompts in source order, and a sha256 over them and their arguments of the template."""

    prompts: list[Prompt]
    sha256: str


def load_prompts(data: str, *, tokenizer: "PreTrainedTokenizerBase", split: str, limit: int | None) -> Prompts:
    """The prompts of the first `limit` rows of `data`, or of all.

    Rows are those of a build, whose responses are left aside, or have a prompt alone. Raises DataError for a row that
    cannot be used, one without a prompt among them, and where there is none.
    """
    digest = hashlib.sha256()
    rows = _prompt_rows(data, split, limit, digest)
    requests = (
        (row, {"prompt": prompt_request(row.prompt, row.template, where=row.where, tokenizer=tokenizer)})
        for row in rows
    )
    encoded = tqdm(encode_all(requests, tokenizer), desc=f"tokenizing {data}", unit=" rows", leave=False)
    found = [replace(row, token_ids=ids["prompt"].ids.tolist()) for row, ids in encoded]
    return Prompts(prompts=found, sha256=digest.hexdigest())


def prompts_sha256(data: str, *, split: str, limit: int | None) -> str:
    """`Prompts.sha256`, without tokenising. Raises DataError for a row that cannot be used."""
    digest = hashlib.sha256()
    for _ in _prompt_rows(data, split, limit, digest):
        pass
    return digest.hexdigest()


def _prompt_rows(data: str, split: str, limit: int | None, digest: Any) -> Iterator[Prompt]:
    """The prompts without their token ids; what they hold goes into the digest on the way."""
    layout: Layout | None = None
    number = None
    for number, (where, row) in enumerate(islice(read_rows(data, split), limit)):
        layout = layout or _layout(row, where)
        values = used_values(row, layout, where)
        prompt = values["prompt"] if layout.columns == ("prompt",) else split_row(values, layout, where)[0]
        if not prompt:
            raise DataError(f"{where}: expected a prompt, got an empty one")
        template = {name: values[name] for name in TEMPLATE_COLUMNS if name in values}
        digest.update(canonical_row({"prompt": prompt, **template}, where))
        yield Prompt(id=number, where=where, prompt=prompt, template=template, token_ids=[])
    if number is None:
        raise DataError(f"{data}: expected prompts, found no row")


def _layout(row: Row, where: str) -> Layout:
    """The layout of a build's data, or a prompt alone."""
    given = {name for name, value in row.items() if value is not None}
    if "prompt" in given and not {"chosen", "rejected", "completion"} & given:
        return Layout(columns=("prompt",), conversational=isinstance(row["prompt"], list))
    return find_layout(row, where)
