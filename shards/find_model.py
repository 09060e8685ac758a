"""Where a model is, and what it is. Both rooms find a folder, a hub name or an adapter with its base this way."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.adapter import require_followed
from shards.errors import ModelError
from shards.hub import fetch
from shards.model_folder import (
    ADAPTER_CONFIG,
    adapter_base,
    read_config,
    require_folder,
    require_weights,
    weights_sha256,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A model on this disk: a full model, or a peft adapter with its base. `commit`: the hub's, if it came from it."""

    name: str
    path: Path
    commit: str | None
    base: "ModelFolder | None" = None

    @property
    def has_tokenizer(self) -> bool:
        """Whether an adapter brings a tokenizer, which its base's embeddings then have to fit."""
        return (self.path / "tokenizer_config.json").is_file()


def resolve(name: str, *, recorded: Mapping[str, Any] | None = None, commit: str | None = None) -> ModelFolder:
    """Find a folder or fetch a hub name, and check that safetensors weights are there. Raises ModelError.

    recorded: what `fingerprint` said of the model earlier: what comes from the hub is taken at the commits that stand
    there. commit: what to take without such a record; else the newest.
    """
    recorded = recorded or {}
    path, wanted = Path(name), recorded.get("hub_commit") or commit
    found = None
    if not path.is_dir():
        require_folder(name)
        path = fetch(name, wanted)
        found = path.name
    if base := adapter_base(name, path):
        config = read_config(name, path / ADAPTER_CONFIG)
        require_followed(name, config)
        require_weights(name, path, "adapter_model")
        try:
            under = resolve(base, recorded=recorded.get("base"), commit=config.get("revision"))
        except ModelError as exc:
            raise ModelError(f"{name}: base of the adapter: {exc}") from exc
        return ModelFolder(name=name, path=path, commit=found, base=under)
    if not (path / "config.json").is_file():
        raise ModelError(f"{name}: expected a model folder with config.json, found none")
    require_weights(name, path, "model")
    return ModelFolder(name=name, path=path, commit=found)


def fingerprint(folder: ModelFolder) -> dict[str, Any]:
    """What a model is: sha256 over its safetensors and its config, its hub commit, and the same of its base."""
    stem = "adapter_model" if folder.base else "model"
    config = read_config(folder.name, folder.path / (ADAPTER_CONFIG if folder.base else "config.json"))
    config.pop("base_model_name_or_path", None)  # a path; the base itself is identified below
    facts: dict[str, Any] = {
        "weights_sha256": weights_sha256(folder.path, stem),
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "hub_commit": folder.commit,
    }
    return facts | {"base": fingerprint(folder.base)} if folder.base else facts
