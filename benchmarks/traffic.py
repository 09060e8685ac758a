"""python -m benchmarks.traffic: bytes that the arithmetic over the vocabulary reads and writes, for a position.

For the kernels it is a formula, which a test compares with what they load and store in Triton's interpreter. For torch
it is counted: every operation reads its arguments and writes its results, from and to memory. No GPU is needed.

Dimensions: C positions, V vocabulary, K kept tokens of a position.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from precompute.scoring.support import SupportRule
from precompute.scoring.vocabulary import TorchVocabulary
from shards import Divergence
from shards.format.nodes import StrengthNodes
from shards.format.schema import ROLES, Pair
from shards.teacher.divergence import Buckets

PAIRS = (Pair("dpo", "reverse"), Pair("reference", "reference"))
FLOAT = WHOLE = 4
LONG = 8
READS_OF_A_KEY = 8
"""Of a score's bits, four at a time."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes read and written."""

    read: int
    written: int

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.read + other.read, self.written + other.written)

    @property
    def total(self) -> int:
        return self.read + self.written


def build_traffic(
    size: int, kept: int, *, roles: int = 3, pairs: int = 2, nodes: int = 7, tile: tuple[int, int] = (8, 512)
) -> dict[str, Traffic]:
    """Kernel -> bytes for a position that needs no threshold of its own.

    tile: rows and lanes. There are as many negatives as roles besides dpo.
    """
    rows, lanes = tile
    negatives, sums = roles - 1, 2 * pairs
    bits = -(-size // (rows * lanes)) * lanes
    logits = FLOAT * roles * size
    numbers = FLOAT * (2 * roles + negatives + sums)
    kept_bytes = FLOAT * roles * kept
    keep = Traffic(
        WHOLE + numbers + FLOAT + WHOLE + logits,
        WHOLE + bits + FLOAT * (roles + pairs * (nodes - 1)),
    )
    return {
        "measure": Traffic(3 * logits + LONG + FLOAT * roles, FLOAT * (4 * roles + negatives + sums)),
        "keep_tokens": keep,
        "own_thresholds": Traffic(WHOLE, WHOLE),
        "keep_tokens again": Traffic(WHOLE, 0),
        "pack_tokens": Traffic(
            FLOAT * 2 * roles + LONG + WHOLE + bits + kept_bytes, WHOLE * kept + FLOAT * roles * kept
        ),
    }


def own_threshold_traffic(size: int, *, roles: int = 3, pairs: int = 2, ties: bool = False) -> Traffic:
    """What a threshold of its own costs a position, besides being kept again."""
    reads = READS_OF_A_KEY * (2 if ties else 1)
    numbers = FLOAT * (2 * roles + roles - 1 + 2 * pairs)
    return Traffic(numbers + reads * FLOAT * roles * size, FLOAT + WHOLE)


def student_traffic(size: int, kept: int, *, gradient_bytes: int = FLOAT) -> Traffic:
    """Of `divergence_gradient`, with int64 counts and ids."""
    scalars = Traffic(2 * LONG + 2 * FLOAT, 2 * FLOAT)
    taken_out = Traffic(kept * (LONG + FLOAT), kept * 2 * FLOAT)
    terms = Traffic(kept * 2 * FLOAT, 0)
    put_back = Traffic(kept * (LONG + 2 * FLOAT), kept * (gradient_bytes + FLOAT))
    vocabulary = Traffic(2 * FLOAT * size, gradient_bytes * size)
    return scalars + taken_out + terms + put_back + vocabulary


class Counted(TorchDispatchMode):
    """Adds up the bytes of the operations that run under it: arguments are read, results written, except by views."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Traffic(0, 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in str(func):
            named = {name: value for name, value in (kwargs or {}).items() if name != "out"}
            self.found += Traffic(_bytes((args, named)), _bytes(out))
        return out


def _bytes(tree) -> int:
    """Of all tensors in it; of an expanded tensor what is stored, not what is seen."""
    tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)


def counted(run: Callable[[], object]) -> Traffic:
    with Counted() as mode:
        run()
    return mode.found


def torch_build_traffic(size: int, kept: int, *, positions: int = 16) -> Traffic:
    """Bytes for a position in plain torch code."""
    torch.manual_seed(0)
    base_CV = 3 * torch.randn(positions, size)
    logits = {role: base_CV + 0.1 * torch.randn(positions, size) for role in ROLES}
    vocabulary = TorchVocabulary(pairs=PAIRS, nodes=StrengthNodes())
    rule = SupportRule(lowest=1, highest=size, log_threshold=_threshold(vocabulary, logits, kept))
    ids_C = torch.zeros(positions, dtype=torch.long)
    found = counted(lambda: vocabulary.summarise(logits, ids_C, rule))
    return Traffic(found.read // positions, found.written // positions)


def torch_student_traffic(size: int, kept: int, *, positions: int = 16) -> Traffic:
    logits_CV = torch.randn(positions, size)
    ids_M = torch.arange(kept).repeat(positions)
    log_M = torch.full((positions * kept,), -8.0)
    buckets = Buckets(torch.full((positions,), kept), ids_M, log_M, torch.full((positions,), -0.5))
    factor_C = torch.ones(positions)
    found = counted(lambda: Divergence().with_gradient_(logits_CV, buckets, torch, factor_C))
    return Traffic(found.read // positions, found.written // positions)


def _threshold(vocabulary: TorchVocabulary, logits, kept: int) -> float:
    """The log threshold that keeps `kept` tokens on average or somewhat fewer."""
    _, best_CK = vocabulary.best_log_scores({role: l_CV.clone() for role, l_CV in logits.items()}, kept)
    return float(best_CK[:, -1].mean())


def table(sizes: list[int], kept: int) -> str:
    lines = ["| | V | read, bytes per entry | written | all, MB a position |", "|---|--:|--:|--:|--:|"]
    for size in sizes:
        build = sum(build_traffic(size, kept).values(), Traffic(0, 0))
        rows = {
            "build, torch": torch_build_traffic(size, kept),
            "build, kernels": build,
            "build, kernels, `--support fixed`": build + own_threshold_traffic(size),
            "student, torch": torch_student_traffic(size, kept),
            "student, kernel": student_traffic(size, kept),
            "student, kernel, half-precision gradient": student_traffic(size, kept, gradient_bytes=2),
        }
        lines += [
            f"| {name} | {size:,} | {found.read / size:,.1f} | {found.written / size:,.1f} | {found.total / 1e6:,.2f} |"
            for name, found in rows.items()
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 151_936])
    parser.add_argument("--kept", type=int, default=64)
    options = parser.parse_args()
    print(table(options.vocabulary, options.kept))


if __name__ == "__main__":
    main()
