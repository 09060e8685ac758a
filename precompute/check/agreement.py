"""The tolerance between recomputed and cached values, and which values are outside of it. Pure."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from precompute.check.sums import ErrorSum, ScoreErrors
from shards.format.manifest import differences
from shards.format.schema import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far rounding alone may move values: log-probs in nats, D_t as it is. Both bounds hold for every line.

    mean      of the absolute differences
    largest   of them
    why       in words, what these bounds are for
    """

    mean: float
    largest: float
    why: str

    def excludes(self, errors: ErrorSum) -> bool:
        """Whether these errors are more than rounding; NaN always is."""
        return not (errors.mean <= self.mean and errors.largest <= self.largest)


SAME_FLOAT32 = Tolerance(mean=1e-4, largest=1e-3, why="float32 bodies, numerics of the build")
OTHER_FLOAT32 = Tolerance(mean=1e-3, largest=1e-2, why="float32 bodies, other numerics than in the build")
SAME_BFLOAT16 = Tolerance(mean=0.02, largest=0.5, why="bfloat16 bodies, numerics of the build")
OTHER_BFLOAT16 = Tolerance(mean=0.05, largest=1.0, why="bfloat16 bodies, other numerics than in the build")
SAME_FLOAT16 = Tolerance(mean=0.02 / 8, largest=0.5 / 8, why="float16 bodies, numerics of the build")
OTHER_FLOAT16 = Tolerance(mean=0.05 / 8, largest=1.0 / 8, why="float16 bodies, other numerics than in the build")
SAME_TF32 = replace(SAME_FLOAT16, why="float32 bodies with TF32 products, numerics of the build")
OTHER_TF32 = replace(OTHER_FLOAT16, why="float32 bodies, with TF32 products now or in the build")
"""Between live values and the intervals that cached ones stand for (`shards.format.encoding`).

What compact values round does not count, and what float32 does (1e-6 nat) is within every one of these. Measured
(docs/teacher.md): float32 with other batches 2e-9 (largest 7e-6), with another attention 1e-6 (2e-5); bfloat16 with
other batches 2e-4 (0.08), with another attention 0.02 (0.5), against float32 0.04 (0.6). Numbers of float16, and the
factors of TF32 products, lie eight times closer than those of bfloat16 (`shards.modelfiles.precision`), and so do the
values that they give.
"""


def tolerance(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Tolerance:
    """The tolerance between the numerics of a build and those of a check (`precompute.numerics.numerics`).

    It is that of the coarser of the two.
    """
    same = not list(numerics_differences(recorded, found))
    kinds = {_kind(recorded), _kind(found)}
    if "bfloat16" in kinds:
        return SAME_BFLOAT16 if same else OTHER_BFLOAT16
    if "float16" in kinds:
        return SAME_FLOAT16 if same else OTHER_FLOAT16
    if "tf32" in kinds:
        return SAME_TF32 if same else OTHER_TF32
    return SAME_FLOAT32 if same else OTHER_FLOAT32


def _kind(numerics: Mapping[str, Any]) -> str:
    """What rounds the most. An older build could record `auto`: each role as it was saved, bfloat16 too."""
    dtype = numerics.get("dtype")
    if dtype == "float32":
        return "tf32" if numerics.get("tf32") else "float32"
    return "float16" if dtype == "float16" else "bfloat16"


def numerics_differences(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """Differences of two numerics, `field: expected x, got y`; without the threads, which change a last bit only."""
    for name, old, new in differences(recorded, found):
        if name != "num_threads":
            yield f"{name}: expected {old}, got {new}"


def identity_differences(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """Hashes of a model that differ from those in the manifest, `weights: expected sha256 x, got y`."""
    for name, old, new in differences(recorded, found):
        if name.endswith("_sha256"):
            what = name.removesuffix("_sha256").replace(".", "'s ")
            yield f"{what}: expected sha256 {_short(old)}, got {_short(new)}"


def disagreements(errors: ScoreErrors, allowed: Tolerance, changed: Collection[Role] = ()) -> list[str]:
    """Values outside the tolerance, in words; empty if all agree.

    changed: roles whose files are not those of the build. They get no allowance for narrow bodies or other numerics,
    because it is as large as the distance between two models.
    """

    def excluded(error: ErrorSum, *roles: Role) -> bool:
        return (SAME_FLOAT32 if set(roles) & set(changed) else allowed).excludes(error)

    kinds = {"kept": "kept tokens", "next": "next tokens", "tail": "tails"}
    found = []
    for role in errors.kept:
        outside = [text for kind, text in kinds.items() if excluded(getattr(errors, kind)[role], role)]
        found += [f"{role} (log-probs of {', '.join(outside)})"] if outside else []
    return found + [f"D_t against {n}" for n, error in errors.l1_distance.items() if excluded(error, "dpo", n)]


def _short(value_json: str) -> str:
    """The start of a hash that is given as JSON."""
    return value_json.strip('"')[:12]
