"""Precision: what the dtype of the bodies costs, measured before the first shard, and stored in the plan. Pure.

The target multiplies l_dpo - l_negative by w_t, and lambda_t = beta / w_t multiplies what is left at weak positions. So
rounding counts more here than in plain distillation (docs/fidelity.md has the outcomes behind the thresholds).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from shards.errors import CacheDamaged
from shards.format.plan import Plan
from shards.modelfiles.precision import SPACINGS

GOOD_DEGREES, BAD_DEGREES = 5.0, 15.0
"""Angle of the gradient up to which a student is not measurably worse, and from which on it misses what is to be
gained: 1.5 degrees (float16) changed neither reward nor KL, 27 degrees (bfloat16) cost 38% of the reward."""
MUCH_ROUNDING = 0.1
"""Share of positions at which more than half of D_t is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What bodies in `dtype` cost against bodies in `against`, over a few response positions of a sample.

    dtype           float16, bfloat16, or tf32 for float32 bodies with TF32 products
    against         float32; or the other half-precision dtype, if a float32 copy of a body did not fit: the difference
                    of two roundings then bounds the error of each; None if nothing could be measured
    positions       of the sample
    negative        the role that l_dpo is compared with
    signal_nats     mean of E_dpo |l_dpo - l_negative|
    error_nats      mean of E_dpo |error of l_dpo - l_negative|
    angle_degrees   of the default teacher's gradient over the logits, for a student that is the reference
    rounded_share   share of the positions at which more than half of D_t is rounding
    """

    dtype: str
    against: str | None
    positions: int
    negative: str
    signal_nats: float
    error_nats: float
    angle_degrees: float
    rounded_share: float

    @classmethod
    def of(cls, plan: Plan) -> "Precision | None":
        """What a build measured; None for float32 bodies, and in caches of earlier versions. Raises CacheDamaged."""
        if plan.precision is None:
            return None
        try:
            return cls(**plan.precision)
        except TypeError as exc:
            names = ", ".join(field.name for field in fields(cls))
            raise CacheDamaged(f"plan: precision: expected {names}, got {', '.join(plan.precision)}") from exc

    def to_json(self) -> dict[str, Any]:
        """With three digits: more would be noise, and would make two builds of the same inputs differ."""
        return {name: float(f"{v:.3g}") if isinstance(v, float) else v for name, v in asdict(self).items()}

    @property
    def expected_error(self) -> float:
        """Part of the measured error that is expected of `dtype` itself.

        The difference of two half-precision dtypes is nearly all made by the coarser one, and rounding is proportional
        to its spacing. So for the finer one it is divided by the ratio of the spacings.
        """
        if self.against is None or self.against == "float32":
            return 1.0
        return min(1.0, SPACINGS[self.dtype] / SPACINGS[self.against])

    def faults(self) -> Iterator[tuple[int, str]]:
        """(1 for care or 2 for not good, what is wrong and what helps)."""
        if self.against is None:
            yield 1, f"what bodies in {self.dtype} cost is not known: run precompute.check where float32 bodies fit"
            return
        remedy = _remedy(self.dtype)
        angle = self.angle_degrees * self.expected_error
        if angle > GOOD_DEGREES:
            yield (
                1 + (angle > BAD_DEGREES),
                f"bodies in {self.dtype} turn the gradient by {angle:.1f} degrees, over {GOOD_DEGREES:g}: {remedy}",
            )
        rounded = self.rounded_share * self.expected_error
        if rounded > MUCH_ROUNDING:
            yield 1, f"D_t is mostly rounding at {rounded:.0%} of the positions, over {MUCH_ROUNDING:.0%}: {remedy}"

    def __str__(self) -> str:
        if self.against is None:
            return f"{self.dtype} bodies, not measured"
        share, bound = self.expected_error, ""
        if self.against != "float32":
            bound = f"a float32 body does not fit, so these are at most the differences to {self.against}; "
        return (
            f"{self.dtype} bodies on {self.positions:,} positions: {bound}l_dpo - l_{self.negative} off by "
            f"{self.error_nats:.2g} of {self.signal_nats:.2g} nat, the gradient by {self.angle_degrees:.2g} degrees, "
            f"D_t mostly rounding at {self.rounded_share:.1%}" + ("" if share == 1 else f"; expected {share:g} of that")
        )


def _remedy(dtype: str) -> str:
    match dtype:
        case "bfloat16":
            return "build with --dtype float16, or float32"
        case "float16":
            return "build with --dtype float32"
        case _:
            return "build with --tf32 false"
