"""Applies the chat template and the tokenizer to texts and conversations, in batches, on all cores.

The ids are the same as for each text alone. While a batch is tokenised, which needs no Python, the next one is read and
its conversations are rendered. TOKENIZERS_PARALLELISM=false in the environment leaves one core to the tokenizer.
"""

import contextlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from precompute.data.layouts import Messages
from precompute.threads import threads
from shards.errors import DataError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_TEXTS = 1_000
BATCH_CHARACTERS = 1 << 24
"""A batch ends after this many texts, or after this many characters if texts are long, so that memory stays flat."""
IN_FLIGHT = 2
"""Batches tokenised at a time: one needs all cores while the ids of another become arrays, which takes one core."""

# only the ids: masks of ones would be equally long lists
_LEAN: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conversation:
    """Messages for the chat template, with the arguments from their row.

    with_mask: also asks for the mask of assistant tokens, if the template marks them.
    """

    messages: Messages
    arguments: Mapping[str, Any]
    where: str
    add_generation_prompt: bool = False
    with_mask: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of apply_chat_template except the messages."""
        return {**self.arguments, "add_generation_prompt": self.add_generation_prompt}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoded:
    """ids (T,) int32; assistant (T,) bool: tokens inside the template's generation markers, None unless requested."""

    ids: np.ndarray
    assistant: np.ndarray | None = None


Request = str | Conversation
"""Text gets the tokenizer's special tokens around it; a conversation gets only those of its template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rendered:
    text: str


def encode_all(
    items: Iterable[tuple[Item, Mapping[str, Request]]], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[Item, dict[str, Encoded]]]:
    """Every item with its requests tokenised, in order.

    Raises DataError, naming the row, for a conversation that the template refuses.
    """
    in_flight = IN_FLIGHT if is_plainly_fast(tokenizer) else 1
    _set_up(tokenizer)
    waiting: deque[tuple[Future[list[Encoded]], list[tuple[Item, Mapping[str, Request]]]]] = deque()
    with threads(in_flight) as workers:
        for batch in batches(items):
            rendered = render([request for _, requests in batch for request in requests.values()], tokenizer)
            waiting.append((workers.submit(encode, rendered, tokenizer), batch))
            if len(waiting) > in_flight:
                yield from _handed_out(*waiting.popleft())
        while waiting:
            yield from _handed_out(*waiting.popleft())


def encode_requests(requests: Mapping[str, Request], tokenizer: "PreTrainedTokenizerBase") -> dict[str, Encoded]:
    """A few requests at once. Raises as `encode_all`."""
    _set_up(tokenizer)
    return dict(zip(requests, encode(render([*requests.values()], tokenizer), tokenizer), strict=True))


def render(requests: Sequence[Request], tokenizer: "PreTrainedTokenizerBase") -> list[Request | _Rendered]:
    """The requests, with conversations as text if the tokenizer would then give the same ids."""
    found: list[Request | _Rendered] = list(requests)
    if not _renders_to_text(tokenizer):
        return found
    for group in _alike(requests, with_mask=False):
        conversations = [requests[i] for i in group]
        for i, text in zip(group, _applied(conversations, tokenizer, tokenize=False), strict=True):
            found[i] = _Rendered(text=text)
    return found


def encode(requests: Sequence[Request | _Rendered], tokenizer: "PreTrainedTokenizerBase") -> list[Encoded]:
    """Token ids of the output of `render`, in its order."""
    found: list[Encoded | None] = [None] * len(requests)
    texts = {i: request for i, request in enumerate(requests) if isinstance(request, str)}
    rendered = {i: request.text for i, request in enumerate(requests) if isinstance(request, _Rendered)}
    for given, special in ((texts, True), (rendered, False)):
        for i, ids in zip(given, _text_ids(list(given.values()), tokenizer, add_special_tokens=special), strict=True):
            found[i] = Encoded(ids=ids)
    for with_mask in (False, True):
        for group in _alike(requests, with_mask=with_mask):
            for i, encoded in zip(group, _templated([requests[i] for i in group], tokenizer), strict=True):
                found[i] = encoded
    return [encoded for encoded in found if encoded is not None]


def batches(
    items: Iterable[tuple[Item, Mapping[str, Request]]],
) -> Iterator[list[tuple[Item, Mapping[str, Request]]]]:
    """Items in groups of about BATCH_TEXTS requests, or of BATCH_CHARACTERS."""
    batch: list[tuple[Item, Mapping[str, Request]]] = []
    texts = characters = 0
    for item, requests in items:
        batch.append((item, requests))
        texts += len(requests) or 1  # a row without a response counts too
        characters += sum(map(_characters, requests.values()))
        if texts >= BATCH_TEXTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, texts, characters = [], 0, 0
    if batch:
        yield batch


def text_of(request: Request | _Rendered) -> str:
    """The text of a request that `render` turned into text."""
    assert not isinstance(request, Conversation), "the tokenizer renders this one by itself"
    return request if isinstance(request, str) else request.text


def _characters(request: Request) -> int:
    """Number of characters: of text all, of a conversation those of plain contents."""
    if isinstance(request, str):
        return len(request)
    return sum(len(message.get("content", "")) for message in request.messages)


def _handed_out(
    encoded: Future[list[Encoded]], batch: Sequence[tuple[Item, Mapping[str, Request]]]
) -> Iterator[tuple[Item, dict[str, Encoded]]]:
    remaining = iter(encoded.result())
    for item, requests in batch:
        yield item, {name: next(remaining) for name in requests}


def _text_ids(
    texts: list[str], tokenizer: "PreTrainedTokenizerBase", *, add_special_tokens: bool
) -> Iterator[np.ndarray]:
    if not texts:
        return
    found: Iterable[Sequence[int]]
    if is_plainly_fast(tokenizer):
        backend: Any = tokenizer
        backend = backend.backend_tokenizer
        found = (encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens))
    else:
        found = tokenizer(texts, add_special_tokens=add_special_tokens, **_LEAN)["input_ids"]
    yield from (np.fromiter(ids, np.int32, len(ids)) for ids in found)


def _set_up(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Switch off the backend's truncation and padding, as every call does, before several threads use it."""
    tokenizer([""], **_LEAN)


def is_plainly_fast(tokenizer: Any) -> bool:
    """Whether a call encodes with the backend and does nothing else; then slow offsets can be left out."""
    from transformers import PreTrainedTokenizerBase, TokenizersBackend

    kind = type(tokenizer)
    return (
        isinstance(tokenizer, TokenizersBackend)
        and kind.__call__ is PreTrainedTokenizerBase.__call__
        and kind._encode_plus is TokenizersBackend._encode_plus
    )


def _templated(conversations: Sequence[Any], tokenizer: "PreTrainedTokenizerBase") -> Iterator[Encoded]:
    """Conversations with equal options that the tokenizer renders and tokenises itself."""
    options = {"tokenize": True, "return_dict": True, "tokenizer_kwargs": {"verbose": False}}
    if conversations[0].with_mask:
        options["return_assistant_tokens_mask"] = True
    for found in _applied(conversations, tokenizer, **options):
        mask = np.array(found["assistant_masks"], dtype=bool) if conversations[0].with_mask else None
        yield Encoded(ids=np.array(found["input_ids"], dtype=np.int32), assistant=mask)


def _applied(conversations: Sequence[Any], tokenizer: "PreTrainedTokenizerBase", **options: Any) -> list[Any]:
    """The results of apply_chat_template for conversations with equal options."""
    if len(conversations) > 1 and _renders_to_text(tokenizer):
        with contextlib.suppress(Exception):  # a template can raise anything; one by one, the bad row can be named
            return _applied_together(conversations, tokenizer, **options)
    return [_applied_alone(conversation, tokenizer, **options) for conversation in conversations]


def _applied_together(conversations: Sequence[Any], tokenizer: Any, **options: Any) -> list[Any]:
    messages = [conversation.messages for conversation in conversations]
    found = tokenizer.apply_chat_template(messages, **conversations[0].options, **options)
    if options["tokenize"]:  # a dict of lists
        return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    return list(found)


def _applied_alone(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase", **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(conversation.messages, **conversation.options, **options)
    except Exception as exc:
        got = f"{type(exc).__name__}: {first_line(exc)}"
        raise DataError(f"{conversation.where}: expected messages that the chat template takes, got {got}") from exc


def _alike(requests: Sequence[Any], *, with_mask: bool) -> list[list[int]]:
    """The conversations among these requests: lists of indices with equal options."""
    groups: dict[tuple[bool, str], list[int]] = {}
    for i, request in enumerate(requests):
        if isinstance(request, Conversation) and request.with_mask == with_mask:
            given = {name: value for name, value in request.arguments.items() if value is not None}
            key = request.add_generation_prompt, json.dumps(given, sort_keys=True) if given else ""
            groups.setdefault(key, []).append(i)
    return list(groups.values())


def _renders_to_text(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a conversation becomes text between template and tokenizer; some tokenizers take messages directly."""
    from transformers import PreTrainedTokenizerBase

    return type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
