"""Turns sampled token ids into a row of a prompt-completion file that the build reads as the same tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from precompute.data.layouts import Layout, SourceRow
from precompute.tokens.prompts import Prompt
from precompute.tokens.tokenize import tokenize_row
from precompute.tokens.tokenized import TokenizedResponse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 2**31 - 1
"""No cut, so that all tokens of the build are compared."""


def sample_row(
    prompt: Prompt, sample: int, token_ids: Sequence[int], *, truncated: bool, tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, Any]:
    """A row of the file.

    id, sample           the prompt's number in the data, the sample's number
    prompt, completion   text, or lists of messages; with the prompt's columns for the chat template
    tokens               number of sampled tokens, without the end token
    truncated            whether they were cut before an end token
    same_tokens          whether the build reads the same tokens: not if a template strips white space or puts something
                         before an answer, or if bytes were cut in the middle of a character
    """
    text = completion_text(tokenizer, prompt.token_ids, token_ids)
    completion = text if isinstance(prompt.prompt, str) else [{"role": "assistant", "content": text}]
    row = {"id": prompt.id, "sample": sample, "prompt": prompt.prompt, "completion": completion, **prompt.template}
    facts = {"tokens": len(token_ids), "truncated": truncated}
    return row | facts | {"same_tokens": _reads_back(row, prompt, token_ids, tokenizer)}


def completion_text(tokenizer: "PreTrainedTokenizerBase", prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str:
    """The text of sampled tokens, as the continuation of the prompt's text.

    Decoded after the prompt, since alone the first token can lose its space (SentencePiece); special tokens stay text.
    """

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    before, whole = decode(prompt_ids), decode([*prompt_ids, *token_ids])
    return whole[len(before) :] if whole.startswith(before) else decode(token_ids)


def _reads_back(
    row: dict[str, Any], prompt: Prompt, token_ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase"
) -> bool:
    layout = Layout(columns=("prompt", "completion"), conversational=not isinstance(prompt.prompt, str))
    source = SourceRow(where=prompt.where, values=row, layout=layout, pair_id=prompt.id)
    outcome = tokenize_row(source, tokenizer=tokenizer, max_length=LONGEST).outcomes["completion"]
    if not isinstance(outcome, TokenizedResponse):
        return not token_ids
    sampled = [*prompt.token_ids, *token_ids]
    return outcome.input_ids[: len(sampled)].tolist() == sampled
