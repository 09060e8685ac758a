"""Selection: which values of a cache to read, and which columns hold them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shards.format import schema
from shards.format.plan import Plan
from shards.format.schema import Column, Pair, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What to read besides the tokens and the kept ids; the fields of `Scores` get exactly these keys.

    roles          whose log-probs of the kept tokens
    tails          whose log mass outside the support
    distances      negatives whose D_t
    pairs          whose tail log partitions
    next_tokens    whether to read the log-probs of the actual next token, under `roles`
    names          whether to read sample_id, pair_id, chosen and response_start
    """

    roles: tuple[Role, ...]
    tails: tuple[Role, ...]
    distances: tuple[Role, ...]
    pairs: tuple[Pair, ...]
    next_tokens: bool
    names: bool

    @classmethod
    def everything(
        cls, plan: Plan, roles: Iterable[Role] | None = None, pairs: Iterable[Pair] | None = None
    ) -> "Selection":
        """All values of these roles and pairs (default: all)."""
        chosen = plan.roles if roles is None else tuple(roles)
        return cls(
            roles=chosen,
            tails=chosen,
            distances=tuple(n for n in schema.NEGATIVES if n in chosen),
            pairs=plan.pairs if pairs is None else tuple(pairs),
            next_tokens=True,
            names=True,
        )

    def columns(self, plan: Plan) -> tuple[Column, ...]:
        """The columns to read, in stored order."""
        wanted = {schema.INPUT_IDS, schema.LOSS_MASK, schema.SUPPORT_COUNT}
        if self.names:
            wanted |= {schema.SAMPLE_ID, schema.PAIR_ID, schema.CHOSEN, schema.RESPONSE_START}
        wanted |= {schema.l1_distance_column(n) for n in self.distances}
        wanted |= self._float32(plan) if plan.values == "float32" else self._compact(plan)
        return tuple(column for column in plan.columns() if column.name in wanted)

    def _float32(self, plan: Plan) -> set[str]:
        return {
            schema.SUPPORT_IDS,
            *map(schema.logprobs_column, self.roles),
            *map(schema.tail_logprob_column, self.tails),
            *map(schema.tail_logpartition_column, self.pairs),
            *(map(schema.next_logprob_column, self.roles) if self.next_tokens else ()),
        }

    def _compact(self, plan: Plan) -> set[str]:
        def codes(column: Callable[[Role], str], roles: Iterable[Role]) -> Iterable[str]:
            return map(column, leaning(roles, plan))

        split = {
            schema.SUPPORT_GAPS,
            *codes(schema.codes_column, self.roles),
            *codes(schema.tail_code_column, self.tails),
            *map(schema.tail_partition_codes_column, self.pairs),
            *(codes(schema.next_code_column, self.roles) if self.next_tokens else ()),
        }
        unit = schema.l1_distance_column(plan.unit_negative)
        return {unit, *map(schema.low, split), *map(schema.high, split)}


def leaning(roles: Iterable[Role], plan: Plan) -> tuple[Role, ...]:
    """The roles whose codes are needed to decode those of `roles`: reverse needs dpo, dpo needs the reference."""
    return tuple(role for role in plan.roles if role != "reverse" or "reverse" in roles)
