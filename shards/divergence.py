"""Divergences between student and teacher over buckets, and their derivatives.

A bucket is a kept token, or the tail: everything outside the support as one extra symbol. P are a position's bucket
masses under the student, P* under the teacher. Every function is elementwise arithmetic on log masses, of any shape,
numpy or torch (`xp` is the module); the caller sums over the buckets of a position.

With g(b) = dD/dP(b), the gradient over the student's logits z is

    dD/dz_v = p(v) * (g(b(v)) - sum_b P(b) g(b)),         b(v): the bucket that token v lies in,

and P(b) g(b) is what is returned here: it stays finite where P underflows. An empty bucket (-inf on both sides)
contributes 0 to both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from shards.errors import OptionError

DivergenceName = Literal["reverse_kl", "forward_kl", "jsd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Which divergence, and the teacher's weight c in the mixture of the generalised JSD (0 < c < 1)."""

    name: DivergenceName = "reverse_kl"
    jsd_weight: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in _TERMS:
            raise OptionError(f"divergence: expected one of {', '.join(_TERMS)}, got {self.name!r}")
        if not 0 < self.jsd_weight < 1:
            raise OptionError(f"jsd_weight: expected a number between 0 and 1, both excluded, got {self.jsd_weight}")

    def terms(self, student: Any, teacher: Any, xp: ModuleType) -> tuple[Any, Any]:
        """(contribution, P g) of each bucket.

        student, teacher   log masses of the same buckets, same shape, nats; -inf marks no mass
        The contribution sums over a position's buckets to the divergence in nats.
        """
        empty = xp.isneginf(student)
        value, slope = _TERMS[self.name](xp.where(empty, xp.zeros_like(student), student), teacher, self.jsd_weight, xp)
        # a bucket that the student cannot reach still costs the teacher's side of the JSD, c P* log(1 / c); under the
        # KL to it nothing, and the forward KL of a mass that the student lacks is infinite, as it should be
        unreached = _UNREACHED[self.name](teacher, self.jsd_weight, xp)
        return xp.where(empty, unreached, value), xp.where(empty, xp.zeros_like(slope), slope)


def _reverse_kl(student: Any, teacher: Any, _: float, xp: ModuleType) -> tuple[Any, Any]:
    term = xp.exp(student) * (student - teacher)
    return term, term


def _forward_kl(student: Any, teacher: Any, _: float, xp: ModuleType) -> tuple[Any, Any]:
    mass = xp.exp(teacher)
    finite = xp.where(xp.isneginf(teacher), xp.zeros_like(teacher), teacher)
    return mass * (finite - student), -mass


def _jsd(student: Any, teacher: Any, weight: float, xp: ModuleType) -> tuple[Any, Any]:
    """Agarwal et al. 2024 (GKD), eq. 1: c KL(P* || M) + (1 - c) KL(P || M), M = c P* + (1 - c) P."""
    mixture = _mixture(student, teacher, weight, xp)
    slope = (1 - weight) * xp.exp(student) * (student - mixture)
    finite = xp.where(xp.isneginf(teacher), mixture, teacher)
    return weight * xp.exp(teacher) * (finite - mixture) + slope, slope


def _mixture(student: Any, teacher: Any, weight: float, xp: ModuleType) -> Any:
    return xp.logaddexp(teacher + math.log(weight), student + math.log(1 - weight))


def _unreached_reverse_kl(teacher: Any, _: float, xp: ModuleType) -> Any:
    return xp.zeros_like(teacher)


def _unreached_forward_kl(teacher: Any, _: float, xp: ModuleType) -> Any:
    return xp.where(xp.isneginf(teacher), xp.zeros_like(teacher), xp.zeros_like(teacher) + xp.inf)


def _unreached_jsd(teacher: Any, weight: float, xp: ModuleType) -> Any:
    return -weight * math.log(weight) * xp.exp(teacher)


_TERMS: dict[str, Callable[..., tuple[Any, Any]]] = {"reverse_kl": _reverse_kl, "forward_kl": _forward_kl, "jsd": _jsd}
_UNREACHED: dict[str, Callable[..., Any]] = {
    "reverse_kl": _unreached_reverse_kl,
    "forward_kl": _unreached_forward_kl,
    "jsd": _unreached_jsd,
}
