"""python -m precompute.build: three models and preference data -> a cache.

Plan first, then one shard after the other (each whole or not there at all), the manifest last. A build that was killed
goes on where it stopped when the same command is given again.
"""

import contextlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from tqdm.auto import tqdm
from transformers import HfArgumentParser

from precompute.announce import announce
from precompute.build_inputs import Inputs, find_sources, read_inputs
from precompute.corpus import Corpus
from precompute.models import load_models
from precompute.options import BuildOptions
from precompute.plan import log_threshold, make_plan, read_earlier, resolve_device, support_rule
from precompute.processes import Processes
from precompute.report import summary_text
from precompute.score import Scorer, batches_by_length, require_shared_prompts
from precompute.support import SupportRule
from shards import ShardCache
from shards.batches import BatchReader
from shards.command import OneLineErrors, run_command
from shards.errors import CacheConflict
from shards.head import require_room
from shards.manifest import (
    MANIFEST_FILE,
    PLAN_FILE,
    PROVENANCE_FILE,
    VOCABULARY_FILE,
    Manifest,
    Plan,
    ShardEntry,
    ShardPlan,
    file_sha256,
    read_json,
    read_manifest,
)
from shards.scores import Scores
from shards.space import require_writable
from shards.statistics import add_shard, new_histograms
from shards.writer import exclusive, remove_temporary_files, write_json, write_shard


def build(options: BuildOptions) -> Manifest:
    """Build, finish or recognise the cache that the options ask for. Raises AlignDistilError."""
    processes = Processes.join()
    out = Path(options.out)
    sources = processes.together(lambda: find_sources(options, processes))
    processes.require_equal(sources.identity)
    earlier = processes.together(lambda: read_earlier(out, sources.identity))
    if isinstance(earlier, Manifest):
        found = processes.together(lambda: ShardCache(out).manifest)  # done is what has every shard in its place
        if processes.is_first:
            print(f"{out}: already built from the same inputs, nothing to do")
        return found
    processes.together(lambda: require_writable(out))
    inputs = read_inputs(options, sources, processes)
    earlier = processes.together(lambda: cast(Plan | None, read_earlier(out, inputs.identity)))
    scorer = processes.together(lambda: load_scorer(options, inputs, processes))
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        processes.together(lambda: stack.enter_context(exclusive(out)) if processes.is_first else None)
        return _build(out, options, inputs, scorer, processes, earlier)


def _build(
    out: Path, options: BuildOptions, inputs: Inputs, scorer: Scorer, processes: Processes, earlier: Plan | None
) -> Manifest:
    """Plan, shards, manifest."""
    plan = earlier or begin(out, options, inputs, scorer, processes)
    rule = support_rule(options, inputs.vocabulary_size, plan.log_threshold)
    todo = [shard for shard in plan.shards if not (out / shard.file).exists()]
    if processes.is_first:
        remove_temporary_files(out)
    processes.together(lambda: announce(out, options, inputs, plan, todo, scorer, rule, processes))
    left = set(todo)
    mine = [shard for i, shard in enumerate(plan.shards) if processes.owns(i) and shard in left]
    write_shards(out, plan, mine, inputs.corpus, scorer, rule, options.batch_tokens, show=processes.is_first)
    processes.wait()
    if processes.is_first:
        finish(out, plan)
        print(f"{out}: done")
    processes.wait()
    return read_manifest(out)


def load_scorer(options: BuildOptions, inputs: Inputs, processes: Processes) -> Scorer:
    device = resolve_device(options.device, processes.local_rank)
    models = load_models(
        inputs.folders,
        inputs.vocabulary_size,
        dtype=options.dtype,
        device=str(device),
        one_at_a_time=options.models_in_memory == "one",
        device_map=options.device_map,
        attn_implementation=options.attn_implementation,
        trust_remote_code=options.trust_remote_code,
    )
    longest, pair = inputs.corpus.facts.longest, inputs.corpus.facts.longest_pair
    for role, role_model in models.items():
        require_room(role_model.model.config, longest, role)
    if options.share_prompts and pair is not None:
        require_shared_prompts(models, pair, longest)
    return Scorer(
        models=models,
        pairs=options.served_pairs,
        nodes=options.nodes,
        chunk_positions=options.chunk_positions,
        device=device,
        one_at_a_time=options.models_in_memory == "one",
        share_prompts=options.share_prompts,
    )


def begin(out: Path, options: BuildOptions, inputs: Inputs, scorer: Scorer, processes: Processes) -> Plan:
    """Set the threshold, plan the shards and write the plan: the first process alone, for all."""
    if not processes.is_first:
        processes.wait()
        return Plan.from_json(read_json(out / PLAN_FILE), str(out / PLAN_FILE))
    if read_earlier(out, inputs.identity) is not None:
        raise CacheConflict(f"{out}: expected no build here, found one that began meanwhile; run this one again")
    threshold = None
    if options.support == "adaptive":
        highest = support_rule(options, inputs.vocabulary_size, None).highest
        threshold = log_threshold(scorer, inputs.corpus.responses, options, highest)
    plan = make_plan(options, inputs.identity, inputs.corpus, inputs.vocabulary_size, threshold)
    places = {role: str(folder.path.resolve()) for role, folder in inputs.folders.items() if folder.commit is None}
    places |= {role: folder.name for role, folder in inputs.folders.items() if folder.commit is not None}
    write_json(out, VOCABULARY_FILE, inputs.vocabulary)
    write_json(out, PROVENANCE_FILE, {"models": dict(sorted(places.items())), "data": options.data_sources.places})
    write_json(out, PLAN_FILE, plan.to_json())
    processes.wait()
    return plan


def write_shards(
    out: Path,
    plan: Plan,
    todo: Sequence[ShardPlan],
    corpus: Corpus,
    scorer: Scorer,
    rule: SupportRule,
    batch_tokens: int,
    *,
    show: bool,
) -> None:
    """Score and write the shards `todo`, with a bar in response tokens. A shard is written while the next is scored."""
    total = sum(shard.positions for shard in todo)
    bar = tqdm(total=total, unit="tok", desc="scoring", smoothing=0.05, disable=not show)
    with bar, ThreadPoolExecutor(max_workers=1) as writer:
        writing: Future[None] | None = None
        for shard in todo:
            rows = corpus.responses[shard.first_row : shard.first_row + shard.rows]
            order = batches_by_length(rows, batch_tokens, share_prompts=scorer.share_prompts)
            scores: dict[int, Scores] = {}
            for batch, found in zip(order, scorer.score([[rows[i] for i in b] for b in order], rule), strict=True):
                scores |= zip(batch, found, strict=True)
                bar.update(sum(scores[i].num_positions for i in batch))
            responses = [row.with_scores(scores[i]) for i, row in enumerate(rows)]
            if writing is not None:
                writing.result()  # two shards in memory at most, and an error is seen
            writing = writer.submit(write_shard, out, shard, plan, responses)
        if writing is not None:
            writing.result()


def finish(out: Path, plan: Plan) -> None:
    """Read every shard back, checking it, and write the manifest."""
    reader = BatchReader(out, plan)
    histograms = new_histograms(plan)
    entries = []
    for i, shard in enumerate(tqdm(plan.shards, unit="shard", desc="checking")):
        kept = add_shard(histograms, reader, i)
        path = out / shard.file
        entries.append(ShardEntry(file=shard.file, entries=kept, bytes=path.stat().st_size, sha256=file_sha256(path)))
    statistics = {name: histogram.summary() for name, histogram in histograms.items()}
    manifest = Manifest(plan=plan, entries=tuple(entries), statistics=statistics)
    print(summary_text(manifest))
    write_json(out, MANIFEST_FILE, manifest.to_json())


class _Parser(OneLineErrors, HfArgumentParser):
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _Parser(cast(Any, BuildOptions), prog="python -m precompute.build", description=__doc__)
    (options,) = parser.parse_args_into_dataclasses(arguments)
    build(options)
    Processes.join().leave()


if __name__ == "__main__":
    run_command(main, interrupted="interrupted; finished shards stay, and the same command goes on from there")
