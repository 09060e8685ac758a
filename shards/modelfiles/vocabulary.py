"""Compares token-to-id maps: the models of a build, its cache and the student must share one."""

from collections.abc import Mapping

from shards.errors import VocabularyMismatch


def require_same_vocabulary(first: Mapping[str, int], other: Mapping[str, int], first_name: str, name: str) -> None:
    """Raise VocabularyMismatch naming the first token, by id, that has different ids in two maps."""
    if first == other:
        return
    differing = (token for token in first.keys() | other.keys() if first.get(token) != other.get(token))
    token = min(differing, key=lambda t: (min(m[t] for m in (first, other) if t in m), t))
    raise VocabularyMismatch(
        f"tokenizers of {first_name} and {name} differ: token {token!r} has id {first.get(token, 'none')} in "
        f"{first_name} and {other.get(token, 'none')} in {name}"
    )
