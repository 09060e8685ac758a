"""BuildWorker: the actor of a build on Ray. It holds the models of one device and does single shards."""

import gc
import os
import pickle
import platform
import time
import zlib
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from precompute.build.identity import build_numerics
from precompute.build.inputs import BuildInputs, FoundModels, find_models, probe
from precompute.build.options import BuildOptions
from precompute.build.work.models import ModelWork
from precompute.cluster.answers import Refusal, answer
from precompute.cluster.keeper import once
from precompute.feeding.stages import Times
from precompute.models.tokenizer_identity import tokenizer_identity
from precompute.scoring.probe import Exact
from precompute.tokens.token_store import RowTable, TokenStore
from shards.cli.device import resolve_device
from shards.errors import CacheMissing, OptionError
from shards.format.finishing import Findings
from shards.format.manifest import PLAN_FILE, read_plan
from shards.format.plan import Plan
from shards.places.out import Out

SECONDS_FOR_THE_PLAN = 60.0
"""A network file system may show a new file late."""


class Look(NamedTuple):
    """What a worker finds around it."""

    node_id: str
    machine: str
    pid: int
    device: torch.device
    numerics: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The models as one machine has them: folders, and what they and the tokenizer are."""

    found: FoundModels
    identity: dict[str, Any]


class Done(NamedTuple):
    """Some kilobytes about shards that are published: bytes, sha256, and what the manifest's statistics need of them.

    packed: their Findings; as they are, counts over thousands of bins, mostly empty, would take half a megabyte.
    """

    packed: bytes
    times: Times
    tokens: int
    seconds: float

    @property
    def findings(self) -> Findings:
        found: Findings = pickle.loads(zlib.decompress(self.packed))
        return found


def model_facts(options: BuildOptions) -> ModelFacts:
    """Raises ModelError, OptionError."""
    found = find_models(options)
    identity = {"models": found.identity, "tokenizer": tokenizer_identity(found.tokenizer)}
    return ModelFacts(found=replace(found, tokenizer=None), identity=identity)


class BuildWorker:
    """Stages: look, identify, load, plan. Each method gives a value or a Refusal."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._facts: ModelFacts | None = None
        self._work: ModelWork | None = None
        self._place: Out | None = None
        self._plan: Plan | None = None

    # ---- stages

    def look(self, options: BuildOptions, threads: int) -> Look | Refusal:
        """Find the device, and begin anew: after a broken connection the driver does not know what is here."""
        import ray

        self._work = None
        gc.collect()

        def look() -> Look:
            device = resolve_device(torch, options.device)
            if device.type == "cuda":
                torch.cuda.set_device(device)
            else:  # Ray gives an actor as many threads as CPUs, and the order of sums depends on them
                torch.set_num_threads(threads)
            node_id = ray.get_runtime_context().get_node_id()
            return Look(node_id, platform.node(), os.getpid(), device, build_numerics(options, device))

        return answer(look)

    def identify(self, options: BuildOptions, keeper: Any) -> dict[str, Any] | Refusal:
        """What the models and the tokenizer on this machine are; its first worker hashes them for all."""
        import ray

        found = once(ray, keeper, "models", partial(model_facts, options))
        if isinstance(found, Refusal):
            return found
        self._facts = found
        return found.identity

    def load(self, options: BuildOptions, inputs: BuildInputs, table: RowTable, probing: bool) -> Any:
        """Open the tokens and load the models; the result is what the precision probe found, if it was asked for."""

        def load() -> Any:
            assert self._facts is not None
            store = TokenStore.opened(table)
            if store is None:
                raise OptionError(f"TMPDIR: expected the tokens of this machine at {table.place}, found none")
            corpus = replace(inputs.corpus, responses=store)
            here = replace(inputs, corpus=corpus, folders=self._facts.found.folders)
            exact: Exact | None = probe(options, here) if probing else None
            self._work = ModelWork.load(options, here, exact=exact)
            return self._work.precision

        return answer(load)

    def fitting_batch_tokens(self) -> int | Refusal:
        return answer(self._models.fitting_batch_tokens)

    def plan(self, options: BuildOptions, place: Out, plan: Plan) -> Refusal | None:
        """Get ready for shards. Refuses a folder in which the driver's plan does not appear."""

        def begin() -> None:
            place.folder.mkdir(parents=True, exist_ok=True) if place.is_url else None
            require_plan(place, plan)
            self._work = replace(self._models, options=options)
            self._place, self._plan = place, plan

        return answer(begin)

    # ---- tasks

    def threshold(self, options: BuildOptions) -> Any:
        return answer(replace(self._models, options=options).threshold)

    def trial(self, options: BuildOptions, threshold: float | None, compare: bool) -> Any:
        return answer(partial(replace(self._models, options=options).trial, threshold, compare=compare))

    def shards(self, todo: list[int], unread: list[int]) -> Done | Refusal:
        """Score and write shards, and read others back."""
        assert self._place is not None
        assert self._plan is not None
        start = time.perf_counter()
        work, place = self._models.shards(self._place, self._plan, todo, unread), self._place

        def run() -> tuple[Findings, Times]:
            with place.named():
                return work.run(show=False)

        found = answer(run)
        if isinstance(found, Refusal):
            return found
        findings, times = found
        tokens = sum(self._plan.shards[number].positions for number in todo)
        packed = zlib.compress(pickle.dumps(findings))
        return Done(packed, times, tokens, time.perf_counter() - start)

    @property
    def _models(self) -> ModelWork:
        assert self._work is not None
        return self._work


def require_plan(place: Out, plan: Plan) -> None:
    """Raise CacheMissing unless this machine sees the plan that the driver has written."""
    begun = time.monotonic()
    while True:
        try:
            found = read_plan(place.bring(PLAN_FILE))
        except CacheMissing as exc:
            if time.monotonic() - begun > SECONDS_FOR_THE_PLAN:
                expected = "a folder that all machines share, or a URL, with the plan of this build"
                raise CacheMissing(f"out: expected {expected}, got {place} without one") from exc
            time.sleep(1)
            continue
        if found.sha256 != plan.sha256:
            raise CacheMissing(f"out: expected the driver's plan in {place}, found another")
        return
