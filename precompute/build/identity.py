"""The identity of a build, and what an earlier build left in its place."""

import fnmatch
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from precompute.build.options import BuildOptions
from precompute.feeding.budget import AUTO, CPU_BATCH_TOKENS, batch_tokens_for, chunk_positions_for
from precompute.models.tokenizer_identity import tokenizer_identity
from precompute.numerics import numerics
from shards.cli.device import resolve_dtype, resolve_kernels, set_products
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
from shards.places.out import Out


def with_sizes(options: BuildOptions, place: Out, device: torch.device) -> BuildOptions:
    """The options with the sizes that they leave open.

    They are those of an earlier build in the place, if there is one: bytes depend on them, and free memory may be
    another now. Otherwise they are the device's. On a CUDA device batch_tokens stays auto until it is measured, but for
    models over several devices (device_map), of which only one would be measured.
    """
    batch_tokens, chunk_positions = options.batch_tokens, options.chunk_positions
    earlier = _earlier_plan(place) if batch_tokens == AUTO or chunk_positions is None else None
    recorded = earlier.identity.get("options", {}) if earlier else {}
    if batch_tokens == AUTO:
        default = str(CPU_BATCH_TOKENS) if options.device_map is not None else batch_tokens_for(device)
        batch_tokens = str(recorded.get("batch_tokens") or default)
    if chunk_positions is None:
        chunk_positions = recorded.get("chunk_positions") or chunk_positions_for(device)
    return replace(options, batch_tokens=batch_tokens, chunk_positions=chunk_positions)


def with_batch_tokens(identity: Mapping[str, Any], batch_tokens: int) -> dict[str, Any]:
    """The identity with the number that was measured."""
    return {**identity, "options": {**identity["options"], "batch_tokens": batch_tokens}}


def build_numerics(options: BuildOptions, device: torch.device) -> dict[str, Any]:
    """What rounding depends on, for bodies on this device; it is also set there. Raises OptionError.

    With --mixed_devices the name of a GPU is not part of it.
    """
    dtype = resolve_dtype(options.dtype, device)
    set_products(torch, dtype=dtype, tf32=options.tf32, device=device)
    found = numerics(
        dtype,
        options.attn_implementation,
        options.device_map,
        device,
        tf32=options.tf32,
        kernels=resolve_kernels(options.kernels, device.type),
        torch_compile=options.torch_compile,
    )
    return found | ({"device": f"any {device.type}"} if options.mixed_devices else {})


def build_identity(
    options: BuildOptions,
    numbers: Mapping[str, Any],
    models: Mapping[Role, Any],
    tokenizer: Any,
    data_sha256: str,
) -> dict[str, Any]:
    """Everything that the bytes of a cache depend on, without paths and process counts.

    numbers: `build_numerics`. The result names the inputs of tokenisation; `with_tokens` adds the hash of the tokens,
    which follow from them.
    """
    return {
        # the order of comparison with another build: the options first, then what follows from them
        "options": options.identity(),
        "models": models,
        "tokenizer": tokenizer_identity(tokenizer),
        "data": {"rows_sha256": data_sha256},
        "numerics": numbers,
    }


def recorded_threads(place: Out) -> int | None:
    """The number of threads of the build that the place holds; None without one, or if it ran on GPUs."""
    earlier = _earlier_plan(place)
    return earlier.identity.get("numerics", {}).get("num_threads") if earlier else None


def with_tokens(identity: Mapping[str, Any], tokens_sha256: str) -> dict[str, Any]:
    """The identity that a plan records: with the hash of the tokens."""
    return {**identity, "data": {**identity["data"], "tokens_sha256": tokens_sha256}}


def without_tokens(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `with_tokens`."""
    data = {name: value for name, value in identity.get("data", {}).items() if name != "tokens_sha256"}
    return {**identity, "data": data}


def holds_build(place: Out) -> bool:
    """Whether a place holds a build, finished or not, of any inputs."""
    present = place.present()
    return MANIFEST_FILE in present or PLAN_FILE in present or any(_shards(present))


def read_earlier(place: Out, asked: Mapping[str, Any]) -> Manifest | Plan | None:
    """What an earlier build with the same inputs left in `place`: a finished cache, a plan to go on with, or nothing.

    Tokens are compared where `asked` has them (`with_tokens`).
    Raises CacheConflict, with the first field that differs, if the place holds another build.
    """
    present = place.present()
    earlier = _earlier(place, present)
    if earlier is not None:
        plan = earlier.plan if isinstance(earlier, Manifest) else earlier
        found = plan.identity if "tokens_sha256" in asked["data"] else without_tokens(plan.identity)
        refuse_difference(found, asked, f"{place}: holds another build")
        return earlier
    stray = _shards(present)
    if stray:
        raise CacheConflict(f"{place}: expected no shards without a {PLAN_FILE}, found {stray[0]}")
    return None


def _shards(present: Iterable[str]) -> list[str]:
    return sorted(fnmatch.filter(present, SHARD_GLOB))


def _earlier(place: Out, present: Container[str]) -> Manifest | Plan | None:
    if MANIFEST_FILE in present:
        return read_manifest(place.bring(MANIFEST_FILE).parent)
    return read_plan(place.bring(PLAN_FILE)) if PLAN_FILE in present else None


def _earlier_plan(place: Out) -> Plan | None:
    earlier = _earlier(place, place.present())
    return earlier.plan if isinstance(earlier, Manifest) else earlier
