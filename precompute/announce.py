"""Before the work: what a build will do, how long it takes, and what looks wrong with its inputs."""

import time
from collections.abc import Sequence
from pathlib import Path

from precompute.build_inputs import Inputs
from precompute.corpus import Corpus
from precompute.made_from import direction_warnings
from precompute.options import BuildOptions
from precompute.preferences import sample_directions
from precompute.processes import Processes
from precompute.report import bytes_per_position, corpus_warnings, directions_text, plan_text, shared_text
from precompute.score import Scorer, batches_by_length
from precompute.spread import sample_rows
from precompute.support import SupportRule
from precompute.tokenized import TokenizedResponse
from shards.manifest import Plan, ShardPlan
from shards.space import require_space


def announce(
    out: Path,
    options: BuildOptions,
    inputs: Inputs,
    plan: Plan,
    todo: Sequence[ShardPlan],
    scorer: Scorer,
    rule: SupportRule,
    processes: Processes,
) -> None:
    """Say what will be done, and what looks wrong with it, before the work; the first process for all.

    Raises OptionError where the disk has no room for the shards `todo`.
    """
    if not processes.is_first:
        return
    projected = sum(shard.positions for shard in todo) * bytes_per_position(plan, options.top_k)
    warnings = [*direction_warnings(inputs.folders, inputs.identity["models"]), *corpus_warnings(inputs.corpus)]
    for warning in filter(None, [*warnings, require_space(out, projected)]):
        print(f"warning: {warning}")
    speed = _tokens_per_second(scorer, inputs.corpus, rule, options.batch_tokens)
    print(plan_text(plan, inputs.corpus, todo, options.top_k, speed and speed * processes.world_size))
    if options.share_prompts:
        print(shared_text(inputs.corpus.facts))
    if todo:
        sample, batch_tokens = options.sample_rows, options.batch_tokens
        if found := sample_directions(inputs.corpus, scorer, sample=sample, batch_tokens=batch_tokens):
            print(directions_text(found))


def _tokens_per_second(scorer: Scorer, corpus: Corpus, rule: SupportRule, batch_tokens: int) -> float | None:
    """The better speed of two passes over a batch of typical rows, for the plan's estimate only.

    None where models are moved in turn: what that costs a token is known after a shard, when the bar shows it.
    """
    if scorer.one_at_a_time:
        return None
    rows = sample_rows(corpus.responses, 16)
    if scorer.share_prompts:
        rows = [row for i in sample_rows(range(len(corpus.responses)), 8) for row in _with_partner(corpus.responses, i)]
    batches = batches_by_length(rows, batch_tokens, share_prompts=scorer.share_prompts)
    batch = [rows[i] for i in batches[len(batches) // 2]]
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        positions = sum(scores.num_positions for scores in next(scorer.score([batch], rule)))
        seconds.append(time.perf_counter() - start)
    return positions / min(seconds)


def _with_partner(rows: Sequence[TokenizedResponse], i: int) -> list[TokenizedResponse]:
    """The responses of a row's pair, which stand next to each other."""
    near = rows[max(i - 1, 0) : i + 2]
    return [row for row in near if row.pair_id == rows[i].pair_id]
