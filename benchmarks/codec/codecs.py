"""Ways to store the kept ids and the three models' log-probs on them: ours, and what others do.

All of them know the counts and D_t of the positions; they store nothing else of a cache. Every array is compressed
separately, with zstd at the level of the cache's writer.

Dimensions: N positions, M kept tokens of them, K tokens of a position where all keep equally many.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import zstandard

from shards.format.encoding import compact
from shards.format.schema import ROLES, Role, Values
from shards.format.scores import Scores
from shards.format.writer import COMPRESSION_LEVEL

Arrays = Mapping[str, np.ndarray]
Kept = dict[Role, tuple[np.ndarray, np.ndarray]]
"""(ids, log-probs in nats) of each model, (M,) each, position by position, in any order inside a position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """pack: scores -> the arrays to store; unpack: the arrays, and scores of which only counts and D_t are used.

    numbers     the stored content as numbers that are mostly small; None: they are not
    top_k       tokens of every position, if it can only keep the same number everywhere; None: any number
    law         (unit bits, steps per nat) of compact, if they differ from the format's
    largest     largest vocabulary that it supports; None: no limit that matters here
    values      how a cache would store everything else
    """

    name: str
    pack: Callable[[Scores], Arrays]
    unpack: Callable[[Arrays, Scores], Kept]
    numbers: Callable[[Arrays], Mapping[str, np.ndarray]] | None = None
    top_k: int | None = None
    law: tuple[int, int] | None = None
    largest: int | None = None
    values: Values = "compact"

    def serves(self, vocabulary_size: int) -> bool:
        """Whether it supports such a vocabulary, and keeps at most half of it."""
        held = self.largest is None or vocabulary_size <= self.largest
        return held and (self.top_k or 0) <= vocabulary_size // 2


@contextmanager
def law(setting: tuple[int, int] | None) -> Iterator[None]:
    """Compact values with other constants than the format's: for experiments, which write no cache."""
    saved = compact.UNIT_BITS, compact.STEPS_PER_NAT, compact.LINEAR_FROM
    bits, steps = setting or saved[:2]
    compact.UNIT_BITS, compact.STEPS_PER_NAT, compact.LINEAR_FROM = bits, steps, steps
    try:
        yield
    finally:
        compact.UNIT_BITS, compact.STEPS_PER_NAT, compact.LINEAR_FROM = saved


def compressed(arrays: Arrays) -> dict[str, bytes]:
    packer = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL)
    return {name: packer.compress(np.ascontiguousarray(array).data.cast("B")) for name, array in arrays.items()}


def decompressed(packed: Mapping[str, bytes], like: Arrays) -> dict[str, np.ndarray]:
    """The arrays as before packing; like: for their types and shapes."""
    context = zstandard.ZstdDecompressor()
    return {
        name: np.frombuffer(context.decompress(packed[name]), like[name].dtype).reshape(like[name].shape)
        for name in like
    }


def by_id(kept: Kept, scores: Scores) -> Scores:
    """The scores with these log-probs, tokens ascending inside a position. All models must keep the same tokens."""
    of_M = np.repeat(np.arange(scores.num_positions), scores.support_count)
    logprobs = {}
    for role, (ids_M, logprobs_M) in kept.items():
        order_M = np.lexsort((ids_M, of_M))
        assert np.array_equal(ids_M[order_M], scores.support_ids), "a codec loses no token"
        logprobs[role] = logprobs_M[order_M].astype(np.float32)
    return replace(scores, logprobs=logprobs)


def compact_codec(name: str, setting: tuple[int, int] | None = None) -> Codec:
    return Codec(name=name, pack=_pack_compact, unpack=_unpack_compact, numbers=compact_numbers, law=setting)


def _units(scores: Scores) -> np.ndarray:
    return np.repeat(compact.units(scores.l1_distance["reverse"].astype(np.float32)), scores.support_count)


def _pack_compact(scores: Scores) -> Arrays:
    unit_M = _units(scores)
    codes = {role: compact.to_codes(logprobs_M, unit_M) for role, logprobs_M in scores.logprobs.items()}
    numbers = {"ids": compact.to_gaps(scores.support_ids), **compact.to_differences(codes)}
    parts = {name: compact.split(values_M) for name, values_M in numbers.items()}
    return {f"{name} {half}": part[half] for name, part in parts.items() for half in range(2)}


def compact_numbers(arrays: Arrays) -> dict[str, np.ndarray]:
    """The numbers that compact values store for ids and log-probs, mostly small; (M,) each."""
    numbers = {name: compact.join(arrays[f"{name} 0"], arrays[f"{name} 1"]) for name in ("ids", *ROLES)}
    code_M = numbers["reference"].astype(np.int64) - compact.BIAS
    return numbers | {"reference": np.where(code_M >= 0, 2 * code_M, -2 * code_M - 1)}


def _unpack_compact(arrays: Arrays, scores: Scores) -> Kept:
    unit_M, ids_M = _units(scores), compact.from_gaps(compact.join(arrays["ids 0"], arrays["ids 1"]))
    stored = {role: compact.join(arrays[f"{role} 0"], arrays[f"{role} 1"]) for role in ROLES}
    codes = compact.from_differences(stored)
    return {role: (ids_M, compact.from_codes(codes[role], unit_M)) for role in ROLES}


def plain_codec(name: str, dtype: type, values: Values) -> Codec:
    """Token ids as int32 and a column of floats for each model; values: see `Codec`."""

    def pack(scores: Scores) -> Arrays:
        return {"ids": scores.support_ids.astype(np.int32), **{r: scores.logprobs[r].astype(dtype) for r in ROLES}}

    def unpack(arrays: Arrays, scores: Scores) -> Kept:
        return {role: (arrays["ids"], arrays[role].astype(np.float32)) for role in ROLES}

    return Codec(name=name, pack=pack, unpack=unpack, values=values)


def megatron_codec(top_k: int) -> Codec:
    """The layout of Megatron-LM's cached logits, rewritten from its description (pull request 5019).

    For each model, likely tokens first: float16 log-probs, the lower 16 bits of an id as uint16, its 17th as a bool,
    in one file of torch.save.
    """

    def pack(scores: Scores) -> Arrays:
        found = {}
        for role in ROLES:
            ids_NK, logprobs_NK = likely_first(scores, role, top_k)
            buffer = io.BytesIO()
            low_NK, high_NK = (ids_NK & 0xFFFF).to(torch.uint16), (ids_NK >> 16).bool()
            torch.save({"logprobs": logprobs_NK.half(), "low": low_NK, "high": high_NK}, buffer)
            found[role] = np.frombuffer(buffer.getvalue(), np.uint8)
        return found

    def unpack(arrays: Arrays, scores: Scores) -> Kept:
        found: Kept = {}
        for role in ROLES:
            stored = torch.load(io.BytesIO(arrays[role].tobytes()))
            ids_NK = stored["high"].int() << 16 | stored["low"].int()
            found[role] = (ids_NK.flatten().numpy(), stored["logprobs"].float().flatten().numpy())
        return found

    return Codec(name=f"Megatron-LM's layout, k = {top_k}", pack=pack, unpack=unpack, top_k=top_k, largest=1 << 17)


def likely_first(scores: Scores, role: Role, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, log-probs) of a model that keeps top_k tokens everywhere, (N, K), log-probs descending."""
    logprobs_NK = torch.from_numpy(np.asarray(scores.logprobs[role])).reshape(-1, top_k)
    ids_NK: Any = torch.from_numpy(scores.support_ids.astype(np.int64)).reshape(-1, top_k)
    logprobs_NK, order_NK = logprobs_NK.sort(dim=-1, descending=True)
    return ids_NK.gather(-1, order_NK), logprobs_NK


OURS = "compact values"
LAWS = ((18, 256), (16, 256), (14, 256), (20, 64), (20, 16), (16, 16), (14, 16), (12, 4), (10, 2))
"""Other compact values: units of 2^-bits, steps per nat."""


def all_codecs(top_k: int) -> list[Codec]:
    """Ours and the plain ones, on a mean of top_k tokens; Megatron-LM's layout with top_k everywhere."""
    return [
        plain_codec("float32 values", np.float32, "float32"),
        compact_codec(OURS),
        *(compact_codec(f"compact, unit 2^-{bits}, {steps} steps a nat", (bits, steps)) for bits, steps in LAWS),
        plain_codec("int32 ids, three float16 columns", np.float16, "compact"),
        megatron_codec(top_k),
    ]
