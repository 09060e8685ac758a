"""python -m precompute.build: three models and preference data -> a cache.

Plan first, then one shard after the other (each whole or not there at all), the manifest last. A build that was killed
goes on where it stopped when the same command is given again.
"""

import contextlib
import hashlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from transformers import HfArgumentParser

from precompute.announce import announce
from precompute.build_inputs import Inputs, find_sources, read_inputs
from precompute.models import load_models
from precompute.options import BuildOptions
from precompute.plan import log_threshold, make_plan, read_earlier, resolve_device, support_rule
from precompute.processes import Processes
from precompute.report import summary_text
from precompute.score import Scorer, require_shared_prompts
from precompute.shard_work import ShardWork
from shards import ShardCache
from shards.command import OneLineErrors, run_command
from shards.errors import CacheDamaged
from shards.finishing import Findings, finished
from shards.head import require_room
from shards.index import INDEX_FILE
from shards.manifest import (
    MANIFEST_FILE,
    PLAN_FILE,
    PROVENANCE_FILE,
    SHARD_GLOB,
    VOCABULARY_FILE,
    Manifest,
    Plan,
    read_json,
    read_manifest,
)
from shards.space import require_writable
from shards.writer import (
    exclusive,
    json_bytes,
    remove_temporary_files,
    require_absent_or_same,
    write_bytes,
    write_json,
)


def build(options: BuildOptions) -> Manifest:
    """Build, finish or recognise the cache that the options ask for. Raises AlignDistilError."""
    processes = Processes.join()
    out = Path(options.out)
    sources = processes.together(lambda: find_sources(options, processes))
    processes.require_equal(sources.identity)
    if isinstance(processes.together(lambda: read_earlier(out, sources.identity)), Manifest):
        return _already_built(out, processes)
    processes.together(lambda: require_writable(out))
    inputs = read_inputs(options, sources, processes)
    scorer = processes.together(lambda: load_scorer(options, inputs, processes))
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        processes.together(lambda: stack.enter_context(exclusive(out)) if processes.is_first else None)
        # from here on nobody else writes there; another build may have done so until now
        earlier = processes.together(lambda: read_earlier(out, inputs.identity))
        if isinstance(earlier, Manifest):
            return _already_built(out, processes)
        return _build(out, options, inputs, scorer, processes, earlier)


def _already_built(out: Path, processes: Processes) -> Manifest:
    """The manifest of a finished cache, every shard of which is in its place. Raises CacheMissing, CacheDamaged."""
    found = processes.together(lambda: ShardCache(out).manifest)
    if processes.is_first:
        print(f"{out}: already built from the same inputs, nothing to do")
    return found


def _build(
    out: Path, options: BuildOptions, inputs: Inputs, scorer: Scorer, processes: Processes, earlier: Plan | None
) -> Manifest:
    """Plan, shards, manifest."""
    plan = earlier or begin(out, options, inputs, scorer, processes)
    if earlier is not None:
        processes.together(lambda: restore_index(out, plan, inputs) if processes.is_first else None)
    rule = support_rule(options, inputs.vocabulary_size, plan.log_threshold)
    there = {path.name for path in out.glob(SHARD_GLOB)}
    todo = [shard for shard in plan.shards if shard.file not in there]
    if processes.is_first:
        remove_temporary_files(out)
    processes.together(lambda: announce(out, options, inputs, plan, todo, scorer, rule, processes))
    mine = [number for number in range(len(plan.shards)) if processes.owns(number)]
    work = ShardWork(
        out=out,
        plan=plan,
        rows=inputs.corpus.responses,
        scorer=scorer,
        rule=rule,
        batch_tokens=options.batch_tokens,
        todo=[number for number in mine if plan.shards[number].file not in there],
        unread=deque(number for number in mine if plan.shards[number].file in there),
    )
    parts = processes.gather(work.run(show=processes.is_first))
    if processes.is_first:
        finish(out, plan, parts)
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
    begun = processes.together(lambda: _begin(out, options, inputs, scorer) if processes.is_first else None)
    return begun or Plan.from_json(read_json(out / PLAN_FILE), str(out / PLAN_FILE))


def _begin(out: Path, options: BuildOptions, inputs: Inputs, scorer: Scorer) -> Plan:
    threshold = None
    if options.support == "adaptive":
        highest = support_rule(options, inputs.vocabulary_size, None).highest
        threshold = log_threshold(scorer, inputs.corpus.responses, options, highest)
    index = inputs.corpus.facts.index.encoded()
    index_sha256 = hashlib.sha256(index).hexdigest()
    plan = make_plan(options, inputs.identity, inputs.corpus, inputs.vocabulary_size, threshold, index_sha256)
    places = {role: str(folder.path.resolve()) for role, folder in inputs.folders.items() if folder.commit is None}
    places |= {role: folder.name for role, folder in inputs.folders.items() if folder.commit is not None}
    provenance = {"models": dict(sorted(places.items())), "data": options.data_sources.places}
    files = {
        INDEX_FILE: index,
        VOCABULARY_FILE: json_bytes(inputs.vocabulary),
        PROVENANCE_FILE: json_bytes(provenance),
    }
    for file, content in files.items():  # without a plan they may be anybody's
        require_absent_or_same(out / file, content)
    for file, content in files.items():
        write_bytes(out, file, content)
    write_json(out, PLAN_FILE, plan.to_json())
    return plan


def restore_index(out: Path, plan: Plan, inputs: Inputs) -> None:
    """See that the index of a build that goes on is whole. Raises CacheDamaged where the plan names another."""
    index = inputs.corpus.facts.index.encoded()
    if hashlib.sha256(index).hexdigest() != plan.index_sha256:
        raise CacheDamaged(f"{out}: expected an index with sha256 {plan.index_sha256}, got another from the data")
    write_bytes(out, INDEX_FILE, index)


def finish(out: Path, plan: Plan, parts: Sequence[Findings]) -> None:
    """Write the manifest, of shards that were all read back."""
    manifest = finished(out, plan, parts)
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
