"""ModelWork: the models of a build on one device, and all that a build needs them for."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from precompute.build.identity import with_batch_tokens
from precompute.build.inputs import BuildInputs, load_scorer, measured_precision
from precompute.build.options import BuildOptions
from precompute.build.plan import log_threshold, support_rule
from precompute.build.report import dtype_text
from precompute.build.work.directions import sample_directions
from precompute.build.work.shard_work import ShardWork
from precompute.build.work.speed import measured_batch_tokens, tokens_per_second
from precompute.feeding.budget import CudaMemory
from precompute.feeding.writers import writers_for
from precompute.scoring.probe import Exact
from precompute.scoring.score import Scorer
from precompute.scoring.support import SupportRule
from shards.format.plan import Plan
from shards.places.out import Out
from shards.preferences.directions import Direction


class Trial(NamedTuple):
    """What a few rows show before the work.

    tokens_per_second: of this device; None if the models are moved to it in turn. dtype: lines for the user.
    """

    tokens_per_second: float | None
    dtype: str
    directions: Sequence[Direction]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWork:
    """The models of a build, loaded. A process of a launcher has one, and so has each worker of a cluster.

    precision: what the precision probe found, where it was run.
    """

    options: BuildOptions
    inputs: BuildInputs
    scorer: Scorer
    precision: Mapping[str, Any] | None = None

    @classmethod
    def load(
        cls, options: BuildOptions, inputs: BuildInputs, *, local_rank: int = 0, exact: Exact | None = None
    ) -> "ModelWork":
        """Load the models. exact: what rounded bodies are compared with. Raises ModelError, NonFiniteLogits."""
        scorer = load_scorer(options, inputs, local_rank)
        precision = None if exact is None else measured_precision(options, scorer, exact)
        return cls(options=options, inputs=inputs, scorer=scorer, precision=precision)

    def rule(self, threshold: float | None) -> SupportRule:
        return support_rule(self.options, self.inputs.vocabulary_size, threshold)

    def fitting_batch_tokens(self) -> int:
        """The padded tokens of a batch that this device has room for. Raises OptionError."""
        return measured_batch_tokens(self.scorer, self.inputs.corpus, self.rule(None), CudaMemory(self.scorer.device))

    def with_batch_tokens(self, batch_tokens: int) -> "ModelWork":
        """The same with the size that was measured, in its options and its identity."""
        identity = with_batch_tokens(self.inputs.identity, batch_tokens)
        options = replace(self.options, batch_tokens=str(batch_tokens))
        return replace(self, options=options, inputs=replace(self.inputs, identity=identity))

    def threshold(self) -> float | None:
        """The threshold of the support; None for a fixed one."""
        if self.options.support == "fixed":
            return None
        return log_threshold(self.scorer, self.inputs.corpus.responses, self.options, self.rule(None).highest)

    def trial(self, threshold: float | None, *, compare: bool) -> Trial:
        """What a few rows show. compare: also what the models prefer in a few pairs."""
        corpus, batch_tokens = self.inputs.corpus, self.options.tokens_per_batch
        speed = tokens_per_second(self.scorer, corpus.responses, self.rule(threshold), batch_tokens)
        sample = self.options.sample_rows
        found = sample_directions(corpus, self.scorer, sample=sample, batch_tokens=batch_tokens) if compare else []
        return Trial(speed, dtype_text(self.scorer.models), found)

    def shards(
        self, place: Out, plan: Plan, todo: Sequence[int], unread: Sequence[int] = (), processes: int = 1
    ) -> ShardWork:
        """The work on some shards. processes: how many share this machine's cores."""
        return ShardWork(
            place=place,
            plan=plan,
            rows=self.inputs.corpus.responses,
            scorer=self.scorer,
            rule=self.rule(plan.log_threshold),
            batch_tokens=self.options.tokens_per_batch,
            todo=todo,
            unread=deque(unread),
            writers=writers_for(self.scorer.device, processes),
        )
