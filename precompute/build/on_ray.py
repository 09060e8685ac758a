"""A build on a Ray cluster. This process tokenises, plans and finishes; workers hold the models and do the shards."""

import contextlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from precompute.build.identity import (
    build_identity,
    read_earlier,
    recorded_threads,
    with_batch_tokens,
    with_sizes,
)
from precompute.build.inputs import (
    BuildInputs,
    BuildSources,
    data_sha256,
    find_models,
    read_inputs,
    tokenized_if_new,
)
from precompute.build.options import BuildOptions
from precompute.build.steps import Build, Left, alone, begin_alone, recognised
from precompute.build.work.shard_work import READ_BEHIND
from precompute.build.worker import BuildWorker, Done, Look
from precompute.cluster.answers import Refusal
from precompute.cluster.crew import Crew
from precompute.cluster.keeper import Keeper, tokens_on
from precompute.cluster.members import Member, Stage, Task
from precompute.cluster.session import session
from precompute.cluster.sizes import Sizes
from precompute.cluster.table import workers_text
from precompute.feeding.budget import AUTO
from precompute.feeding.stages import Times
from precompute.models.tokenizer_identity import tokenizer_identity
from precompute.numerics import versions
from precompute.processes import Processes
from precompute.scoring.probe import needs_probe
from precompute.tokens.token_store import TokenStore
from shards.cli.space import require_writable
from shards.errors import OptionError
from shards.files import make_folder, remove_temporary_files
from shards.format.finishing import Findings
from shards.format.manifest import Manifest, differences
from shards.format.plan import Plan
from shards.places.out import Out, open_out
from shards.progress import progress
from shards.say import say, warn

SECONDS_FOR_THE_OTHERS = 60.0
"""How long the build waits, before its first byte, for workers for which the cluster has room."""


def build_on_ray(options: BuildOptions) -> Manifest:
    """The same as `build`, by workers of a Ray cluster. Raises AlignDistilError."""
    given = open_out(options.out, options.cache_dir)
    if options.out.startswith("hf://"):
        expected = "a bucket or a shared folder with --ray, then python -m shards.copy"
        raise OptionError(f"out: expected {expected}, got {options.out}: a commit a shard is more than the hub takes")
    place = replace(given, folder=given.folder.absolute())
    options = replace(options, models=[f"{role}={_absolute(name)}" for role, name in options.model_names.items()])
    with contextlib.ExitStack() as stack:
        stack.enter_context(place.named())
        alone(place, stack)  # the workers write under this process's lock
        ray = stack.enter_context(session(options))
        sizes = Sizes.of(ray, options, options.device)
        crew = Crew(BuildWorker, sizes, max_retries=options.max_retries, say=warn)
        stack.callback(crew.end)
        return ClusterBuild(ray=ray, options=options, place=place, crew=crew, sizes=sizes).run(stack)


def _absolute(model: str) -> str:
    """A folder's path from anywhere; a hub name as it is."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


@dataclass(kw_only=True)
class ClusterBuild:
    """A build as its driver sees it.

    numerics     of the first worker, with this process's versions of libraries: those of the build
    keepers      by node; tables: where the workers of a node find the tokens
    precision    what the precision probe found; probing: the worker that runs it
    """

    ray: Any
    options: BuildOptions
    place: Out
    crew: Crew
    sizes: Sizes
    numerics: dict[str, Any] | None = None
    device: torch.device = field(init=False)
    keepers: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    precision: Any = None
    probing: Member | None = None

    def run(self, stack: contextlib.ExitStack) -> Manifest:
        """stack: closed when the build ends."""
        options, place = self.options, self.place
        models = find_models(options)
        identity = {"models": models.identity, "tokenizer": tokenizer_identity(models.tokenizer)}
        self._open_first_stages(identity, recorded_threads(place) or torch.get_num_threads())
        corpus = tokenized_if_new(options, place, models.tokenizer)  # while Ray starts the workers
        rows = data_sha256(options, corpus, Processes())
        self._await_others()
        assert self.numerics is not None
        self.options = options = with_sizes(options, place, self.device)
        asked = build_identity(options, self.numerics, models.identity, models.tokenizer, rows)
        begun = read_earlier(place, asked)
        if isinstance(begun, Manifest):
            return recognised(place, begun)
        require_writable(place.folder, place.option)
        inputs = read_inputs(options, BuildSources(models=models, identity=asked, corpus=corpus), Processes())
        inputs = self._load(inputs, probing=begun is None and needs_probe(self.numerics))
        make_folder(place.folder)
        begin_alone(place, stack)
        earlier = read_earlier(place, inputs.identity)
        if isinstance(earlier, Manifest):
            manifest = recognised(place, earlier)
        else:
            manifest = self._write(Build(place=place, options=self.options, inputs=inputs), earlier)
        place.clear()
        return manifest

    # ---- before the work

    def _open_first_stages(self, identity: dict[str, Any], threads: int) -> None:
        def looked(member: Member, look: Look) -> Refusal | None:
            member.node_id, member.machine, member.pid = look.node_id, look.machine, look.pid
            member.device = look.numerics["device"]
            if self.numerics is None:
                self.numerics, self.device = {**look.numerics, "versions": versions()}, look.device
            return other_inputs({"numerics": self.numerics}, {"numerics": look.numerics})

        def identified(member: Member, found: dict[str, Any]) -> Refusal | None:
            return other_inputs(identity, found)

        options = self.options
        self.crew.open(Stage("look", lambda member: (options, threads), looked, repeated=True))
        self.crew.open(Stage("identify", lambda member: (options, self._keeper(member)), identified))

    def _await_others(self) -> None:
        """Wait for a worker, and a little for all others for which the cluster has room."""
        first: list[float] = []

        def ready() -> bool:
            found = sum("identify" in member.passed for member in self.crew.members)
            if found and not first:
                first.append(time.monotonic())
            late = bool(first) and time.monotonic() - first[0] > SECONDS_FOR_THE_OTHERS
            return found >= min(self.sizes.room, self.sizes.wanted) or late

        self.crew.until(lambda: ready() and self.numerics is not None)

    def _keeper(self, member: Member) -> Any:
        """The keeper of a worker's machine; another one if it was lost."""
        node = member.node_id
        if node in self.keepers:
            try:
                self.ray.get(self.keepers[node].alive.remote())
                return self.keepers[node]
            except self.ray.exceptions.RayActorError:
                self.tables.pop(node, None)
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        flags = {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
        self.keepers[node] = self.ray.remote(Keeper).options(**flags).remote()
        return self.keepers[node]

    def _load(self, inputs: BuildInputs, *, probing: bool) -> BuildInputs:
        """Load the models on all workers. The inputs, with the size of batches if that was to be measured."""
        store, crew, options = inputs.corpus.responses, self.crew, self.options
        assert isinstance(store, TokenStore)
        sent = self.ray.put(replace(inputs, corpus=replace(inputs.corpus, responses=())))

        def arguments(member: Member) -> tuple[Any, ...] | Refusal:
            keeper, node = self._keeper(member), member.node_id
            if node not in self.tables:
                found = tokens_on(self.ray, keeper, store)
                if isinstance(found, Refusal):
                    return found
                self.tables[node] = self.ray.put(found)
            if needed := self.precision is None and probing and not (self.probing and self.probing.work is load):
                self.probing = member
            return options, sent, self.tables[node], needed

        def loaded(member: Member, precision: Any) -> None:
            self.precision = self.precision or precision

        load = Stage("load", arguments, loaded)
        crew.open(load)
        crew.until(lambda: bool(crew.passed(load)) and (not probing or self.precision is not None))
        if options.batch_tokens != AUTO:
            return inputs
        smallest = self._smallest_batch()
        self.options = replace(options, batch_tokens=str(smallest))
        return replace(inputs, identity=with_batch_tokens(inputs.identity, smallest))

    def _smallest_batch(self) -> int:
        """The padded tokens of a batch for which every worker has room."""
        found: list[int] = []
        measure = Stage("fitting_batch_tokens", lambda member: (), lambda member, tokens: found.append(tokens))
        self.crew.open(measure)
        here = [member for member in self.crew.members if "identify" in member.passed]
        self.crew.until(
            lambda: bool(found) and all(measure.name in member.passed or member.failed_starts for member in here)
        )
        self.crew.close(measure)
        return min(found)

    # ---- the work

    def _write(self, build: Build, earlier: Plan | None) -> Manifest:
        options, crew = build.options, self.crew
        if earlier is None:
            threshold = crew.ask(Task(name="threshold of the support", method="threshold", arguments=(options,)))
            plan = build.begin(threshold, self.precision)
        else:
            plan = build.go_on(earlier)
        left = build.left(plan)
        build.warn(plan, left, staged=2 * len(crew.members))
        arguments = options, plan.log_threshold, bool(left.todo)
        trial = crew.ask(Task(name="speed and preferences of a few rows", method="trial", arguments=arguments))
        build.announce(plan, left, trial, processes=len(crew.members))
        say(f"{'workers':>18}  {len(crew.members)} {self.sizes}")
        sent = self.ray.put(plan)
        crew.started = True
        crew.open(Stage("plan", lambda member: (options, self.place, sent), lambda member, answer: None))
        findings, times = self._shards(plan, left)
        remove_temporary_files(self.place.folder)  # of workers that were lost
        manifest = build.finish(plan, [findings], list(times.values()))
        say(workers_text(crew.members, times))
        return manifest

    def _shards(self, plan: Plan, left: Left) -> tuple[Findings, dict[int, Times]]:
        """Hand out the shards. What was found when they were read back, and the times of each worker."""
        findings, times = Findings.nothing(plan), dict[int, Times]()
        total = sum(plan.shards[number].positions for number in left.todo)
        with progress(None, "scoring", total=total, unit="tok") as bar:

            def take(member: Member, task: Task, done: Done) -> None:
                findings.merge(done.findings)
                times[member.number] = times.get(member.number, Times()) + done.times
                member.tasks += len(task.arguments[0])
                member.tokens += done.tokens
                member.seconds += done.seconds
                written = sum(other.tasks for other in self.crew.members)
                bar.set_postfix_str(
                    f"{written}/{len(left.todo)} shards, {len(self.crew.members)} workers", refresh=False
                )
                bar.update(done.tokens)

            self.crew.run(shard_tasks(left), take)
        return findings, times


def shard_tasks(left: Left) -> list[Task]:
    """A task for each shard that is not there, and one for a few of those that are, which are read back."""
    tasks = [Task(name=f"shard {number}", method="shards", arguments=([number], [])) for number in left.todo]
    for start in range(0, len(left.there), READ_BEHIND):
        some = list(left.there[start : start + READ_BEHIND])
        tasks.append(Task(name=f"reading back shard {some[0]}", method="shards", arguments=([], some)))
    return tasks


def other_inputs(expected: dict[str, Any], found: dict[str, Any]) -> Refusal | None:
    """The first difference, as a Refusal."""
    for name, wanted, got in differences(expected, found):
        message = f"has other inputs than the build, {name}: expected {wanted}, got {got}"
        return Refusal(kind="CacheConflict", message=message)
    return None
