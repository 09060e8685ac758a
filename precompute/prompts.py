"""The prompts of a data source, tokenised for a model to go on from; read and cut off as the build does."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from precompute.corpus import canonical_row
from precompute.data_reader import DataReader
from precompute.layouts import Layout, Messages, find_layout, split_row
from precompute.sources import Data
from precompute.text_files import Row
from precompute.tokenize import tokenize_prompt
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
    notes: tuple[str, ...]


def load_prompts(data: Data, *, tokenizer: "PreTrainedTokenizerBase") -> Prompts:
    """The prompts of the rows of `data`.

    Rows are those of a build, whose responses are left aside, or have a prompt alone. Raises DataError for a row that
    cannot be used, one without a prompt among them, and where there is none.
    """
    found: list[Prompt] = []
    digest = hashlib.sha256()
    reader = DataReader(data, _layout)
    rows = tqdm(reader, desc=f"tokenizing {data}", unit=" rows", leave=False)
    for number, row in enumerate(rows):
        where, values, layout = row.where, row.values, row.layout
        prompt = split_row(values, layout, where)[0]
        if not prompt:
            raise DataError(f"{where}: expected a prompt, got an empty one")
        template = {name: values[name] for name in TEMPLATE_COLUMNS if name in values}
        digest.update(canonical_row({"prompt": prompt, **template}, where))
        ids = tokenize_prompt(prompt, values, where=where, tokenizer=tokenizer)
        found.append(Prompt(id=number, where=where, prompt=prompt, template=template, token_ids=ids))
    if not found:
        raise DataError(f"{data}: expected prompts, found no row")
    return Prompts(prompts=found, sha256=digest.hexdigest(), notes=tuple(reader.notes()))


def _layout(row: Row, where: str) -> Layout:
    """The layout of a build's data, or a prompt alone."""
    given = {name for name, value in row.items() if value is not None}
    if "prompt" in given and not {"chosen", "rejected", "completion"} & given:
        return Layout(columns=("prompt",), conversational=isinstance(row["prompt"], list))
    return find_layout(row, where)
