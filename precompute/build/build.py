"""The build from start to finish: find the inputs, load the models, plan, score, write, finish."""

import contextlib
import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from precompute.build.directions import sample_directions
from precompute.build.identity import read_earlier
from precompute.build.inputs import BuildInputs, find_sources, read_inputs
from precompute.build.options import BuildOptions
from precompute.build.plan import log_threshold, make_plan, support_rule
from precompute.build.report import (
    bytes_per_position,
    corpus_warnings,
    directions_text,
    plan_text,
    precision_text,
    shared_text,
    summary_text,
)
from precompute.build.shard_work import ShardWork
from precompute.build.speed import tokens_per_second
from precompute.models.folders import load_models
from precompute.models.made_from import direction_warnings
from precompute.processes import Processes
from precompute.scoring.score import Scorer, require_shared_prompts
from precompute.scoring.support import SupportRule
from shards import ShardCache
from shards.cli.device import resolve_device
from shards.cli.space import require_space, require_writable
from shards.errors import CacheDamaged
from shards.format.finishing import Findings, finished
from shards.format.index import INDEX_FILE
from shards.format.manifest import (
    MANIFEST_FILE,
    PLAN_FILE,
    PROVENANCE_FILE,
    SHARD_GLOB,
    VOCABULARY_FILE,
    Manifest,
    read_manifest,
    read_plan,
)
from shards.format.plan import Plan
from shards.format.writer import (
    exclusive,
    json_bytes,
    remove_temporary_files,
    require_absent_or_same,
    write_bytes,
    write_json,
)
from shards.modelfiles.head import require_room


def build(options: BuildOptions) -> Manifest:
    """Build the cache of these options, finish a begun one, or recognise a finished one. Raises AlignDistilError."""
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
        # nobody else writes here from now on; another build may have written until now
        earlier = processes.together(lambda: read_earlier(out, inputs.identity))
        if isinstance(earlier, Manifest):
            return _already_built(out, processes)
        return Build(out=out, options=options, inputs=inputs, scorer=scorer, processes=processes).run(earlier)


def _already_built(out: Path, processes: Processes) -> Manifest:
    """The manifest of a finished cache. Raises CacheMissing, CacheDamaged unless every shard is present."""
    found = processes.together(lambda: ShardCache(out).manifest)
    if processes.is_first:
        print(f"{out}: already built from the same inputs, nothing to do")
    return found


def load_scorer(options: BuildOptions, inputs: BuildInputs, processes: Processes) -> Scorer:
    """The models on this process's device. Raises ModelError if the longest row does not fit into one."""
    device = resolve_device(torch, options.device, processes.local_rank)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A build with its inputs and models, on one of its processes: it plans, scores, writes and finishes.

    The first process plans, announces and finishes for all. Each process scores and writes its own shards.
    """

    out: Path
    options: BuildOptions
    inputs: BuildInputs
    scorer: Scorer
    processes: Processes

    def run(self, earlier: Plan | None) -> Manifest:
        """The finished cache's manifest. earlier: the plan of an interrupted build of the same inputs."""
        plan = self.begin() if earlier is None else self.go_on(earlier)
        work = self.work(plan)
        self.processes.together(lambda: self.announce(work) if self.processes.is_first else None)
        parts = self.processes.gather(work.run(show=self.processes.is_first))
        if self.processes.is_first:
            self.finish(plan, parts)
        self.processes.wait()
        return read_manifest(self.out)

    def begin(self) -> Plan:
        """Set the threshold, plan the shards and write the plan. The first process does it for all."""
        planned = self.processes.together(lambda: self._write_plan() if self.processes.is_first else None)
        if planned is None:
            planned = read_plan(self.out / PLAN_FILE)
        self._clean()
        return planned

    def go_on(self, plan: Plan) -> Plan:
        """Write the index of an interrupted build again. Raises CacheDamaged if its plan names another index."""

        def restore() -> None:
            index = self.inputs.corpus.facts.index.encoded()
            if hashlib.sha256(index).hexdigest() != plan.index_sha256:
                expected = f"an index with sha256 {plan.index_sha256}"
                raise CacheDamaged(f"{self.out}: expected {expected}, got another from the data")
            write_bytes(self.out, INDEX_FILE, index)

        self.processes.together(lambda: restore() if self.processes.is_first else None)
        self._clean()
        return plan

    def rule(self, threshold: float | None) -> SupportRule:
        return support_rule(self.options, self.inputs.vocabulary_size, threshold)

    def work(self, plan: Plan) -> ShardWork:
        """The shards of this process."""
        there = {path.name for path in self.out.glob(SHARD_GLOB)}
        mine = [number for number in range(len(plan.shards)) if self.processes.owns(number)]
        return ShardWork(
            out=self.out,
            plan=plan,
            rows=self.inputs.corpus.responses,
            scorer=self.scorer,
            rule=self.rule(plan.log_threshold),
            batch_tokens=self.options.batch_tokens,
            left=[shard for shard in plan.shards if shard.file not in there],
            todo=[number for number in mine if plan.shards[number].file not in there],
            unread=deque(number for number in mine if plan.shards[number].file in there),
        )

    def announce(self, work: ShardWork) -> None:
        """Print the plan, its duration and warnings about the inputs.

        Raises OptionError if the disk has no room for the shards that are left.
        """
        options, corpus = self.options, self.inputs.corpus
        projected = sum(shard.positions for shard in work.left) * bytes_per_position(work.plan, options.top_k)
        warnings = [*direction_warnings(self.inputs.folders, self.inputs.identity["models"]), *corpus_warnings(corpus)]
        for warning in filter(None, [*warnings, require_space(self.out, projected)]):
            print(f"warning: {warning}")
        speed = tokens_per_second(self.scorer, corpus.responses, work.rule, options.batch_tokens)
        all_speed = speed and speed * self.processes.world_size
        print(plan_text(work.plan, corpus, work.left, options.top_k, all_speed))
        print(precision_text(self.scorer.models))
        if options.share_prompts:
            print(shared_text(corpus.facts))
        if work.left:
            sample, batch_tokens = options.sample_rows, options.batch_tokens
            if found := sample_directions(corpus, self.scorer, sample=sample, batch_tokens=batch_tokens):
                print(directions_text(found))

    def finish(self, plan: Plan, parts: Sequence[Findings]) -> None:
        """Write the manifest. parts: what each process found when it read its shards back."""
        manifest = finished(self.out, plan, parts)
        print(summary_text(manifest))
        write_json(self.out, MANIFEST_FILE, manifest.to_json())
        print(f"{self.out}: done")

    def _write_plan(self) -> Plan:
        options, corpus, inputs = self.options, self.inputs.corpus, self.inputs
        threshold = None
        if options.support == "adaptive":
            threshold = log_threshold(self.scorer, corpus.responses, options, self.rule(None).highest)
        index = corpus.facts.index.encoded()
        index_sha256 = hashlib.sha256(index).hexdigest()
        plan = make_plan(options, inputs.identity, corpus, inputs.vocabulary_size, threshold, index_sha256)
        files = {
            INDEX_FILE: index,
            VOCABULARY_FILE: json_bytes(inputs.vocabulary),
            PROVENANCE_FILE: json_bytes({"models": inputs.places, "data": options.data_sources.places}),
        }
        for file, content in files.items():  # without a plan they may be the user's own files
            require_absent_or_same(self.out / file, content)
        for file, content in files.items():
            write_bytes(self.out, file, content)
        write_json(self.out, PLAN_FILE, plan.to_json())
        return plan

    def _clean(self) -> None:
        if self.processes.is_first:
            remove_temporary_files(self.out)
