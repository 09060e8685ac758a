"""Finds a model: a folder, a hub name, or an adapter with its base; and identifies it by its sha256s."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import ModelError
from shards.modelfiles.adapter import require_followed
from shards.modelfiles.folder import (
    ADAPTER_CONFIG,
    adapter_base,
    is_folder,
    read_config,
    refusing,
    require_folder,
    require_tokenizer,
    require_weights,
    weights_sha256,
)
from shards.modelfiles.hub import fetch

MAX_ADAPTERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A model on this disk: a full model, or a peft adapter with its base. `commit`: set if it is from the hub."""

    name: str
    path: Path
    commit: str | None
    base: "ModelFolder | None" = None

    @property
    def has_tokenizer(self) -> bool:
        """Whether an adapter has a tokenizer of its own; the embeddings of the base must then fit it."""
        return (self.path / "tokenizer_config.json").is_file()


def resolve(
    name: str, *, recorded: Mapping[str, Any] | None = None, commit: str | None = None, above: int = 0
) -> ModelFolder:
    """Find a folder or fetch a hub name, and check that it has safetensors weights. Raises ModelError.

    recorded: an earlier `fingerprint` of the model; hub files are then taken at the commits in it. commit: the commit
    to take without such a record; default: the newest. above: adapters that this is the base of.
    """
    recorded = recorded or {}
    path, wanted = Path(name), recorded.get("hub_commit") or commit
    found = None
    if not is_folder(path):
        require_folder(name)
        path = fetch(name, wanted)
        found = path.name
    if base := adapter_base(name, path):
        if above == MAX_ADAPTERS:
            raise ModelError(f"{name}: expected at most {MAX_ADAPTERS} adapters on each other, got more, or a circle")
        config = read_config(name, path / ADAPTER_CONFIG)
        require_followed(name, config)
        require_weights(name, path, "adapter_model")
        try:
            under = resolve(base, recorded=recorded.get("base"), commit=config.get("revision"), above=above + 1)
        except ModelError as exc:
            raise ModelError(f"{name}: base of the adapter: {exc}") from exc
        return ModelFolder(name=name, path=path, commit=found, base=under)
    if not (path / "config.json").is_file():
        raise ModelError(f"{name}: expected a model folder with config.json, found none")
    require_weights(name, path, "model")
    return ModelFolder(name=name, path=path, commit=found)


def read_tokenizer(auto_tokenizer: Any, folder: ModelFolder, *, trust_remote_code: bool) -> Any:
    """The tokenizer of a model; an adapter without one uses its base's. Raises ModelError if there is none.

    auto_tokenizer: transformers' AutoTokenizer.
    """
    if folder.base and not folder.has_tokenizer:
        return read_tokenizer(auto_tokenizer, folder.base, trust_remote_code=trust_remote_code)
    require_tokenizer(folder.name, folder.path)
    with refusing(folder.name, "a tokenizer that can be read"):
        return auto_tokenizer.from_pretrained(folder.path, trust_remote_code=trust_remote_code)


def fingerprint(folder: ModelFolder) -> dict[str, Any]:
    """The identity of a model: sha256 of its safetensors and config, its hub commit, and the same for its base."""
    stem = "adapter_model" if folder.base else "model"
    config = read_config(folder.name, folder.path / (ADAPTER_CONFIG if folder.base else "config.json"))
    config.pop("base_model_name_or_path", None)  # a path; the base itself is identified below
    facts: dict[str, Any] = {
        "weights_sha256": weights_sha256(folder.path, stem),
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "hub_commit": folder.commit,
    }
    return facts | {"base": fingerprint(folder.base)} if folder.base else facts
