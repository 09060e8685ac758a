"""The identity of a build, and what an earlier build left in its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from precompute.build.options import BuildOptions
from precompute.models.tokenizer_identity import tokenizer_identity
from precompute.numerics import numerics
from shards.errors import CacheConflict
from shards.format.manifest import (
    MANIFEST_FILE,
    PLAN_FILE,
    SHARD_GLOB,
    Manifest,
    read_manifest,
    read_plan,
    refuse_difference,
)
from shards.format.plan import Plan
from shards.format.schema import Role


def build_identity(
    options: BuildOptions,
    device: torch.device,
    dtype: str,
    models: Mapping[Role, Any],
    tokenizer: Any,
    data_sha256: str,
) -> dict[str, Any]:
    """Everything that the bytes of a cache depend on, without paths and process counts.

    dtype: of the bodies, as resolved. The result names the inputs of tokenisation; `with_tokens` adds the hash of the
    tokens, which follow from them.
    """
    return {
        # the order of comparison with another build: the options first, then what follows from them
        "options": options.identity(),
        "models": models,
        "tokenizer": tokenizer_identity(tokenizer),
        "data": {"rows_sha256": data_sha256},
        "numerics": numerics(dtype, options.attn_implementation, options.device_map, device, tf32=options.tf32),
    }


def with_tokens(identity: Mapping[str, Any], tokens_sha256: str) -> dict[str, Any]:
    """The identity that a plan records: with the hash of the tokens."""
    return {**identity, "data": {**identity["data"], "tokens_sha256": tokens_sha256}}


def without_tokens(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `with_tokens`."""
    data = {name: value for name, value in identity.get("data", {}).items() if name != "tokens_sha256"}
    return {**identity, "data": data}


def holds_build(folder: Path) -> bool:
    """Whether a folder holds a build, finished or not, of any inputs."""
    return any((folder / file).exists() for file in (MANIFEST_FILE, PLAN_FILE)) or any(folder.glob(SHARD_GLOB))


def read_earlier(folder: Path, asked: Mapping[str, Any]) -> Manifest | Plan | None:
    """What an earlier build with the same inputs left in `folder`: a finished cache, a plan to go on with, or nothing.

    Tokens are compared where `asked` has them (`with_tokens`).
    Raises CacheConflict, with the first field that differs, if the folder holds another build.
    """
    for file in (MANIFEST_FILE, PLAN_FILE):
        path = folder / file
        if path.exists():
            earlier = read_manifest(folder) if file == MANIFEST_FILE else read_plan(path)
            plan = earlier.plan if isinstance(earlier, Manifest) else earlier
            found = plan.identity if "tokens_sha256" in asked["data"] else without_tokens(plan.identity)
            refuse_difference(found, asked, f"{folder}: holds another build")
            return earlier
    stray = sorted(folder.glob(SHARD_GLOB))
    if stray:
        raise CacheConflict(f"{folder}: expected no shards without a {PLAN_FILE}, found {stray[0].name}")
    return None
