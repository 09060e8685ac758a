"""The build from start to finish: find the inputs, load the models, plan, score, write, finish."""

import contextlib
import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from precompute.build.directions import sample_directions
from precompute.build.identity import read_earlier, with_sizes
from precompute.build.inputs import BuildInputs, find_sources, load_scorer, measured_precision, probe, read_inputs
from precompute.build.options import BuildOptions
from precompute.build.plan import log_threshold, make_plan, support_rule
from precompute.build.report import (
    batches_text,
    bytes_per_position,
    corpus_warnings,
    directions_text,
    dtype_text,
    plan_text,
    shared_text,
    summary_text,
    times_text,
)
from precompute.build.shard_work import ShardWork
from precompute.build.speed import tokens_per_second, with_measured_batches
from precompute.feeding.budget import AUTO
from precompute.feeding.stages import Times
from precompute.feeding.writers import writers_for
from precompute.models.made_from import direction_warnings
from precompute.processes import Processes
from precompute.scoring.score import Scorer
from precompute.scoring.support import SupportRule
from shards.cli.device import resolve_device
from shards.cli.space import require_space, require_writable
from shards.errors import CacheDamaged
from shards.format.finishing import Findings, finished
from shards.format.index import INDEX_FILE
from shards.format.manifest import (
    MANIFEST_FILE,
    PLAN_FILE,
    PROVENANCE_FILE,
    VOCABULARY_FILE,
    Manifest,
    read_manifest,
    read_plan,
    require_files,
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
from shards.places.out import Out, open_out


def build(options: BuildOptions) -> Manifest:
    """Build the cache of these options, finish a begun one, or recognise a finished one. Raises AlignDistilError."""
    place = open_out(options.out, options.cache_dir)
    with place.named():
        return _build(options, place, Processes.join())


def _build(options: BuildOptions, place: Out, processes: Processes) -> Manifest:
    out = place.folder
    device = processes.together(lambda: resolve_device(torch, options.device, processes.local_rank))
    options = processes.together(lambda: with_sizes(options, place, device))
    sources = processes.together(lambda: find_sources(options, processes))
    processes.require_equal(sources.identity)
    begun = processes.together(lambda: read_earlier(place, sources.identity))
    if isinstance(begun, Manifest):
        return _already_built(place, begun, processes)
    processes.together(lambda: require_writable(out, place.option))
    inputs = read_inputs(options, sources, processes)
    # before the models are loaded: one float32 body needs the memory of two in half precision
    exact = processes.together(lambda: probe(options, inputs) if processes.is_first and begun is None else None)
    scorer = processes.together(lambda: load_scorer(options, inputs, processes))
    precision = processes.together(lambda: None if exact is None else measured_precision(options, scorer, exact))
    exact = None  # a gigabyte for a large vocabulary
    if options.batch_tokens == AUTO:
        options, inputs = with_measured_batches(options, inputs, scorer, processes)
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        processes.together(lambda: _enter(place, stack) if processes.is_first else None)
        # nobody else writes here from now on; another build may have written until now
        earlier = processes.together(lambda: read_earlier(place, inputs.identity))
        if isinstance(earlier, Manifest):
            return _already_built(place, earlier, processes)
        work = Build(
            place=place, options=options, inputs=inputs, scorer=scorer, processes=processes, precision=precision
        )
        return work.run(earlier)


def _enter(place: Out, stack: contextlib.ExitStack) -> None:
    """Keep other builds of this machine out of the folder, as long as `stack` is open."""
    stack.enter_context(exclusive(place.folder))
    place.clear()


def _already_built(place: Out, manifest: Manifest, processes: Processes) -> Manifest:
    """The manifest of a finished cache. Raises CacheMissing, CacheDamaged unless every shard is present."""
    processes.together(lambda: require_files(manifest, place.present(), place.name))
    if processes.is_first:
        print(f"{place}: already built from the same inputs, nothing to do")
    return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A build with its inputs and models, on one of its processes: it plans, scores, writes and finishes.

    The first process plans, announces and finishes for all. Each process scores and writes its own shards.

    precision: what the precision probe found, for a new build with bodies that are not float32.
    """

    place: Out
    options: BuildOptions
    inputs: BuildInputs
    scorer: Scorer
    processes: Processes
    precision: Mapping[str, Any] | None = None

    @property
    def out(self) -> Path:
        return self.place.folder

    def run(self, earlier: Plan | None) -> Manifest:
        """The finished cache's manifest. earlier: the plan of an interrupted build of the same inputs."""
        plan = self.begin() if earlier is None else self.go_on(earlier)
        work = self.work(plan)
        self.processes.together(lambda: self.announce(work) if self.processes.is_first else None)
        parts = self.processes.gather(work.run(show=self.processes.is_first))
        if self.processes.is_first:
            self.finish(plan, [findings for findings, _ in parts], [times for _, times in parts])
        self.processes.wait()
        return read_manifest(self.place.bring(MANIFEST_FILE).parent)

    def begin(self) -> Plan:
        """Set the threshold, plan the shards and write the plan. The first process does it for all."""
        planned = self.processes.together(lambda: self._write_plan() if self.processes.is_first else None)
        if planned is None:
            planned = read_plan(self.place.bring(PLAN_FILE))
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
            self.place.publish(INDEX_FILE)

        self.processes.together(lambda: restore() if self.processes.is_first else None)
        self._clean()
        return plan

    def rule(self, threshold: float | None) -> SupportRule:
        return support_rule(self.options, self.inputs.vocabulary_size, threshold)

    def work(self, plan: Plan) -> ShardWork:
        """The shards of this process."""
        there = self.place.present()
        mine = [number for number in range(len(plan.shards)) if self.processes.owns(number)]
        return ShardWork(
            place=self.place,
            plan=plan,
            rows=self.inputs.corpus.responses,
            scorer=self.scorer,
            rule=self.rule(plan.log_threshold),
            batch_tokens=self.options.tokens_per_batch,
            left=[shard for shard in plan.shards if shard.file not in there],
            todo=[number for number in mine if plan.shards[number].file not in there],
            unread=deque(number for number in mine if plan.shards[number].file in there),
            writers=writers_for(self.scorer.device, self.processes.world_size),
        )

    def announce(self, work: ShardWork) -> None:
        """Print the plan, its duration and warnings about the inputs.

        Raises OptionError if the disk has no room for the shards that are left.
        """
        options, corpus = self.options, self.inputs.corpus
        projected = sum(shard.positions for shard in work.left) * bytes_per_position(work.plan, options.top_k)
        warnings = [*direction_warnings(self.inputs.folders, self.inputs.identity["models"]), *corpus_warnings(corpus)]
        for warning in filter(None, [*warnings, require_space(self.out, self.place.at_once(projected, len(work.left), work.writers + 1), self.place.option)]):
            print(f"warning: {warning}")
        speed = tokens_per_second(self.scorer, corpus.responses, work.rule, options.tokens_per_batch)
        all_speed = speed and speed * self.processes.world_size
        print(plan_text(work.plan, corpus, work.left, options.top_k, all_speed))
        print(dtype_text(self.scorer.models))
        if options.share_prompts:
            print(shared_text(corpus.facts))
        print(batches_text(work, options))
        if work.left:
            sample, batch_tokens = options.sample_rows, options.tokens_per_batch
            if found := sample_directions(corpus, self.scorer, sample=sample, batch_tokens=batch_tokens):
                print(directions_text(found))

    def finish(self, plan: Plan, parts: Sequence[Findings], times: Sequence[Times]) -> None:
        """Write the manifest. parts: what each process found when it read its shards back; times: of each process."""
        manifest = finished(self.out, plan, parts)
        print(summary_text(manifest))
        print(times_text(sum(times, Times()), len(times)))
        write_json(self.out, MANIFEST_FILE, manifest.to_json())
        self.place.publish(MANIFEST_FILE, last=True)
        print(f"{self.place}: done")

    def _write_plan(self) -> Plan:
        options, corpus, inputs = self.options, self.inputs.corpus, self.inputs
        threshold = None
        if options.support == "adaptive":
            threshold = log_threshold(self.scorer, corpus.responses, options, self.rule(None).highest)
        index = corpus.facts.index.encoded()
        index_sha256 = hashlib.sha256(index).hexdigest()
        plan = make_plan(options, inputs.identity, corpus, inputs.vocabulary_size, threshold, index_sha256)
        plan = replace(plan, precision=self.precision)
        files = {
            INDEX_FILE: index,
            VOCABULARY_FILE: json_bytes(inputs.vocabulary),
            PROVENANCE_FILE: json_bytes({"models": inputs.places, "data": options.data_sources.places}),
        }
        for file in self.place.present():  # without a plan they may be the user's own files
            if file in files:
                require_absent_or_same(self.place.bring(file), files[file])
        for file, content in files.items():
            write_bytes(self.out, file, content)
        write_json(self.out, PLAN_FILE, plan.to_json())
        for file in (*files, PLAN_FILE):
            self.place.publish(file, last=file == PLAN_FILE)
        return plan

    def _clean(self) -> None:
        if self.processes.is_first:
            remove_temporary_files(self.out)
