"""The identity of a tokenizer: equal identity, rows, options and library versions give equal tokens."""

import hashlib
from pathlib import Path
from typing import Any

from precompute.tokens.encode import is_plainly_fast
from shards.files import file_sha256, matching
from shards.format.plan import canonical_json, json_sha256

_SETTINGS = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")


def tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """sha256s, in hex, of the vocabulary, the chat template (None without one) and all else that tokens depend on."""
    template = tokenizer.chat_template
    return {
        "vocabulary_sha256": json_sha256(tokenizer.get_vocab()),
        "chat_template_sha256": template and json_sha256(template),
        "backend_sha256": _backend_sha256(tokenizer),
    }


def backend_json(tokenizer: Any) -> str | None:
    """The serialised backend, as in a file tokenizer.json; None for a tokenizer without one."""
    if not tokenizer.is_fast:
        return None
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # as every tokenising call does, so that a used tokenizer has the same text
    backend.no_padding()
    text: str = backend.to_str()
    return text


def _backend_sha256(tokenizer: Any) -> str:
    """sha256 of the serialised backend: merges, normaliser, added tokens, post-processor.

    For a tokenizer with its own code, the sha256 of its files instead, including the code.
    """
    settings = {
        "class": type(tokenizer).__name__,
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "split_special_tokens": bool(tokenizer.split_special_tokens),
    }
    digest = hashlib.sha256(canonical_json(settings))
    if (backend := backend_json(tokenizer)) is not None:
        digest.update(backend.encode())
    if not is_plainly_fast(tokenizer):
        for path in _files(tokenizer):
            digest.update(f"\0{path.name}\0{file_sha256(path)}".encode())
    return digest.hexdigest()


def _files(tokenizer: Any) -> list[Path]:
    folder = Path(tokenizer.name_or_path)
    names = {*_SETTINGS, *tokenizer.vocab_files_names.values()}
    found = [path for path in matching(folder, "*") if path.name in names or path.suffix == ".py"]
    return [path for path in found if path.is_file()]
