"""TokenTexts: the text of every token of a row, so that a response reads as it was written."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

from shards.errors import CacheDamaged, first_line
from shards.format.manifest import TOKENIZER_FILE, read_tokenizer
from shards.format.plan import Plan

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer shows for bytes that are no character, or not yet."""


class CacheFiles(Protocol):
    """The part of a ShardCache that is needed here; the cache itself knows this module."""

    name: str
    plan: Plan

    @property
    def vocabulary(self) -> Mapping[str, int]: ...

    def bring(self, file: str) -> Path: ...


class TokenTexts:
    """Decodes rows token by token with the tokenizer that a cache brings.

    note   None, or why tokens are shown as the vocabulary spells them: the cache has no tokenizer.json
    """

    def __init__(self, vocabulary: Mapping[str, int], tokenizer: Any = None) -> None:
        """tokenizer: a `tokenizers.Tokenizer`, or None."""
        self._tokenizer = tokenizer
        self._spelled = {token_id: text for text, token_id in vocabulary.items()}
        added = {} if tokenizer is None else tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        self._word = None if tokenizer is None else self._some_word()
        self._usual: dict[int, str] = {}
        self.note = None if tokenizer is not None else f"no {TOKENIZER_FILE}: tokens as the vocabulary spells them"

    @classmethod
    def of(cls, cache: CacheFiles) -> "TokenTexts":
        """Raises CacheMissing or CacheDamaged if the cache names a tokenizer.json that is not there or altered."""
        named = cache.plan.tokenizer_sha256 is not None
        content = read_tokenizer(cache.bring(TOKENIZER_FILE).parent, cache.plan, cache.name) if named else None
        return cls(cache.vocabulary, None if content is None else _tokenizer(content, cache.name))

    def pieces(self, input_ids: Iterable[int]) -> list[str]:
        """One text per token; joined they are what the tokenizer decodes, special tokens included.

        A character of several tokens is the text of the last of them; the others have none.
        """
        ids = [int(token_id) for token_id in input_ids]
        if self._tokenizer is None or not ids:
            return list(map(self.text, ids))
        whole = self._decode(ids)
        usual = [self._decode(ids[:1]), *map(self._usually, ids[1:])]  # nearly always, and much faster
        if UNFINISHED not in whole and "".join(usual) == whole:
            return usual
        found = list(self._stream(ids))
        if "".join(found) != whole[: sum(map(len, found))]:
            found = list(self._by_prefix(ids, whole))
        if found:
            found[-1] += whole[sum(map(len, found)) :]
        return found

    def text(self, token_id: int) -> str:
        """The text of a token on its own, with the space before it; one that is no whole character as it is spelled."""
        spelled = self._spelled.get(int(token_id), f"<{token_id}>")
        if self._tokenizer is None:
            return spelled
        before = self._decode([] if self._word is None else [self._word])
        text = self._decode([*([] if self._word is None else [self._word]), int(token_id)])
        return text[len(before) :] if text != before and UNFINISHED not in text else spelled

    def special(self, token_id: int) -> bool:
        """Whether a token is one of the tokenizer's special ones, such as the marks of a chat turn."""
        return int(token_id) in self._special

    def _some_word(self) -> int | None:
        """A token of letters: behind it, other tokens are decoded with the space before them."""
        return next((i for i, text in self._spelled.items() if text.isascii() and text.isalpha()), None)

    def _usually(self, token_id: int) -> str:
        """`text`, remembered: what a token adds to most texts."""
        if token_id not in self._usual:
            self._usual[token_id] = self.text(token_id)
        return self._usual[token_id]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def _stream(self, ids: list[int]) -> Iterator[str]:
        """What each token adds to the decoding of a few tokens before it."""
        before = shown = 0  # tokens from `before` are decoded together; those up to `shown` have their text
        for end in range(1, len(ids) + 1):
            old, new = self._decode(ids[before:shown]), self._decode(ids[before:end])
            if new.endswith(UNFINISHED) or not new.startswith(old):
                yield ""
            else:
                yield new[len(old) :]
                before, shown = shown, end

    def _by_prefix(self, ids: list[int], whole: str) -> Iterator[str]:
        """The same, where a decoding depends on more than a few tokens: what each prefix has in common with the whole.

        Time grows with the square of the length.
        """
        shown = 0
        for end in range(1, len(ids) + 1):
            text = self._decode(ids[:end])
            same = takewhile(lambda pair: pair[0] == pair[1], zip(text, whole, strict=False))
            common = max(shown, sum(1 for _ in same))
            yield whole[shown:common]
            shown = common


def _tokenizer(content: str, name: str) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(content)
    except Exception as exc:  # the only class that the library raises
        raise CacheDamaged(f"{name}/{TOKENIZER_FILE}: expected a tokenizer, got {first_line(exc)}") from exc
