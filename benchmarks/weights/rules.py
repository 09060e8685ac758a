"""The rules for weak positions that are compared: none, caps of lambda_t, larger smallest strengths."""

from collections.abc import Sequence
from dataclasses import dataclass

NONE = "as it is"
FINAL = "at the end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """cap: of lambda_t in units of beta, that is 1 over the strength below which it holds; None: the default."""

    cap: float | None = None
    min_strength: float | None = None

    @property
    def name(self) -> str:
        if self.cap is not None:
            return f"lambda_t at most {self.cap:g} beta"
        return NONE if self.min_strength is None else f"min_strength {self.min_strength:g}"

    def flags(self, beta: float) -> dict[str, float]:
        """Of TeacherSpec, and of `python -m student.train`."""
        if self.cap is not None:
            return {"max_weight": self.cap * beta}
        return {} if self.min_strength is None else {"min_strength": self.min_strength}


def rules(caps: Sequence[float], min_strengths: Sequence[float]) -> list[Rule]:
    """The default first."""
    return [Rule(), *(Rule(cap=cap) for cap in caps), *(Rule(min_strength=least) for least in min_strengths)]
