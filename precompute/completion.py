"""From sampled token ids to a row of a prompt-completion file, such that the build reads the same tokens back."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from precompute.layouts import Layout
from precompute.prompts import Prompt
from precompute.tokenize import tokenize_row
from precompute.tokenized import SourceRow, TokenizedResponse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 2**31 - 1
"""No cut: what is compared is all that the build would see."""


def sample_row(
    prompt: Prompt, sample: int, token_ids: Sequence[int], *, truncated: bool, tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, Any]:
    """A row of the file.

    id, sample           the prompt's number in the data, the sample's number
    prompt, completion   text, or lists of messages; with the prompt's own columns for the chat template
    tokens               sampled tokens, without the end token
    truncated            whether they were cut before an end token came
    same_tokens          whether the build reads these tokens back: not where a template strips white space or puts
                         something before an answer, or where bytes were cut in the middle of a character
    """
    text = completion_text(tokenizer, prompt.token_ids, token_ids)
    completion = text if isinstance(prompt.prompt, str) else [{"role": "assistant", "content": text}]
    row = {"id": prompt.id, "sample": sample, "prompt": prompt.prompt, "completion": completion, **prompt.template}
    facts = {"tokens": len(token_ids), "truncated": truncated}
    return row | facts | {"same_tokens": _reads_back(row, prompt, token_ids, tokenizer)}


def completion_text(tokenizer: "PreTrainedTokenizerBase", prompt_ids: Sequence[int], token_ids: Sequence[int]) -> str:
    """The text of sampled tokens as it goes on from the prompt's.

    Decoded behind the prompt, since alone the first token may lose its space (SentencePiece); special tokens stay text.
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
