"""The build against its floor, by stage: bodies, output layers, vocabulary, the rest, and how long the GPU is idle.

The floor are three bare forward passes in half precision over the same batches, without masks: a body, and the output
layer at the response positions, whose logits stay as they are. Nothing is read from files and nothing is tokenised.

Dimensions: N response positions of a batch, H hidden size, T tokens, B sequences.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

import precompute.build.inputs
from benchmarks.gpu.models import (
    DTYPES,
    Load,
    device_of,
    free,
    load_of,
    make_trio,
    peak_since,
    random_rows,
    role_models,
    sizes_of,
    vocabulary_of,
)
from benchmarks.gpu.options import GpuOptions
from benchmarks.gpu.parts import Cell, Cells, NotHere
from benchmarks.gpu.shapes import MODELS, SHAPES, Shape, card_of
from benchmarks.step.measure import interleaved, medians, timed
from precompute.build.identity import with_sizes
from precompute.build.inputs import BuildInputs
from precompute.build.options import BuildOptions
from precompute.build.plan import log_threshold, make_plan
from precompute.build.work.models import ModelWork
from precompute.scoring.score import Scorer, hidden_states
from precompute.tokens.corpus import Corpus
from precompute.tokens.tally import facts_of
from shards.cli.device import set_products
from shards.errors import OptionError
from shards.format.schema import ROLES
from shards.places.out import Out, open_out

ROW_SECONDS = 12.0
"""About what a row takes, its models aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How the work over the vocabulary is done, and whether bodies are compiled."""

    size: str
    dtype: str
    kernels: str
    compiled: bool = False

    @property
    def row(self) -> str:
        return f"{self.size}, {self.dtype}, {self.kernels}" + (", compiled bodies" if self.compiled else "")


def ways(options: GpuOptions) -> Iterator[Way]:
    """In the order of their worth; ways with the same models come one after the other. A dry run has the kernels once,
    since their interpreter is slow, and compiles nothing.
    """
    first, *others = sizes_of(options)
    yield Way(size=first, dtype="float16", kernels="triton")
    yield Way(size=first, dtype="float16", kernels="torch")
    yield Way(size=first, dtype="bfloat16", kernels="torch" if options.dry_run else "triton")
    for size in others:
        yield Way(size=size, dtype="float16", kernels="triton")
    if not options.dry_run:
        yield Way(size=others[0] if others else first, dtype="float16", kernels="triton", compiled=True)


def planned(options: GpuOptions) -> list[str]:
    return [way.row for way in ways(options)]


def measure(cells: Cells, options: GpuOptions) -> None:
    load, device = load_of(options), device_of(options)
    cells.fact(**{name: getattr(load, name) for name in ("rows", "length", "prompt", "batches", "top_k")})
    held: tuple[str, str] | None = None
    trio: Mapping[Any, Any] = {}
    for way in ways(options):
        with cells.row(way.row, seconds=0.0 if options.dry_run else ROW_SECONDS):
            if held != (way.size, way.dtype):
                trio, held = {}, None
                free(device)
                trio = make_trio(SHAPES[way.size], DTYPES[way.dtype], device)
                held = (way.size, way.dtype)
            peak_since(device)
            try:
                bench = Bench.of(trio, way, options)
            except OptionError as exc:
                raise NotHere(f"the build refuses it: {exc}") from exc
            cells.put(way.row, bench.stages(options.repeats))
            cells.put(way.row, bench.whole())
            cells.put(way.row, {"peak_bytes": peak_since(device)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Models, batches and a planned build of them, for one way."""

    shape: Shape
    load: Load
    vocabulary: int
    device: torch.device
    place: Out
    work: ModelWork

    @classmethod
    def of(cls, trio: Mapping[Any, Any], way: Way, options: GpuOptions) -> "Bench":
        """Raises NotHere for what the build refuses on this machine."""
        load, vocabulary, device = load_of(options), vocabulary_of(options), device_of(options)
        rows = random_rows(load, vocabulary, load.batches)
        facts = facts_of(rows)
        corpus = Corpus(responses=rows, rows_read=len(rows), facts=facts, skipped={}, has_pairs=True, data_sha256="")
        asked = BuildOptions(
            models=[f"{role}={role}" for role in ROLES],
            data="random",
            out=str(Path(options.out) / "build"),
            responses="both",
            top_k=load.top_k,
            max_top_k=min(BuildOptions.max_top_k, vocabulary),
            batch_tokens=str(load.rows * load.length),
            tokens_per_shard=load.positions,
            sample_rows=2,
            device=str(device),
            **_flags(way),
        )
        asked = with_sizes(asked, open_out(asked.out), device)
        set_products(torch, dtype=way.dtype, tf32=False, device=device)
        named = {f"token{i}": i for i in range(vocabulary)}
        inputs = BuildInputs(folders={}, vocabulary=named, corpus=corpus, identity={})
        scorer = make_scorer(trio, inputs, asked)
        work = ModelWork(options=asked, inputs=inputs, scorer=scorer)
        return cls(
            shape=SHAPES[way.size],
            load=load,
            vocabulary=vocabulary,
            device=device,
            place=open_out(asked.out),
            work=work,
        )

    def stages(self, repeats: int) -> dict[str, Cell]:
        """Microseconds per response position of the floor and of each stage that is run by itself."""
        batch = list(self.work.inputs.corpus.responses[: self.load.rows])
        scorer = self.work.scorer
        rule = self.work.rule(log_threshold(scorer, batch, self.work.options, self.work.rule(None).highest))
        floor, hidden = Floor(scorer, batch, self.load, self.device), {}

        @torch.no_grad()
        def bodies() -> None:
            hidden.update({role: hidden_states(model, batch) for role, model in scorer.models.items()})

        @torch.no_grad()
        def heads() -> None:
            for role, model in scorer.models.items():
                for hidden_CH in hidden[role].split(scorer.chunk_positions):
                    model.logits(hidden_CH)

        def score() -> None:
            for _ in scorer.score([batch], rule):
                pass

        works = {"floor": floor, "bodies": bodies, "heads": heads, "score": score}
        found = medians(interleaved(works, lambda: None, repeats=repeats, device=self.device), self.device)
        micros = {name: 1e6 * seconds / self.load.positions for name, seconds in found.items()}
        beyond = micros["score"] - micros["bodies"] - micros["heads"]
        return {
            **{f"{name}_us": micros[name] for name in ("floor", "bodies", "heads")},
            "vocabulary_us": beyond,
            "score_us": micros["score"],
        }

    def whole(self) -> dict[str, Cell]:
        """All shards, one a batch: scored, written, read back. A first few of them again with a profile."""
        corpus = self.work.inputs.corpus
        positions, tokens = int(sum(corpus.facts.index.num_positions)), corpus.facts.tokens
        seconds = timed(self._run(corpus.responses), self.device)
        idle = idle_share(self._run(corpus.responses[: self.load.rows * self.load.profiled]), self.device)
        shutil.rmtree(self.place.folder)
        bodies, heads = self.shape.body_flop(self.load.length), self.shape.head_flop(self.vocabulary)
        return {
            "build_us": 1e6 * seconds / positions,
            "idle": idle,
            "tokens_per_second": tokens / seconds,
            **mfu(MODELS * (tokens * bodies + positions * heads) / seconds, self.device),
        }

    def _run(self, rows: Sequence[Any]) -> Callable[[], Any]:
        """The build of these rows, planned, in an empty folder."""
        shutil.rmtree(self.place.folder, ignore_errors=True)
        self.place.folder.mkdir(parents=True)
        options, inputs = self.work.options, self.work.inputs
        corpus = replace(inputs.corpus, responses=rows, facts=facts_of(rows))
        work = replace(self.work, inputs=replace(inputs, corpus=corpus))
        plan = make_plan(options, {}, corpus, self.vocabulary, work.threshold(), index_sha256="")
        shards = work.shards(self.place, plan, range(len(plan.shards)))
        return lambda: shards.run(show=False)


class Floor:
    """Three bare forward passes with output layers, over a batch that is on the device already."""

    def __init__(self, scorer: Scorer, batch: Sequence[Any], load: Load, device: torch.device) -> None:
        self.models = [model.model for model in scorer.models.values()]
        self.ids_BT = torch.stack([torch.from_numpy(row.input_ids).long() for row in batch]).to(device)
        self.first, self.chunk = load.prompt - 1, load.floor_chunk

    @torch.no_grad()
    def __call__(self) -> None:
        for model in self.models:
            hidden_BTH = model.base_model(input_ids=self.ids_BT, use_cache=False)[0]
            for hidden_CH in hidden_BTH[:, self.first : -1].flatten(0, 1).split(self.chunk):
                model.get_output_embeddings()(hidden_CH)


def make_scorer(trio: Mapping[Any, Any], inputs: BuildInputs, asked: BuildOptions) -> Scorer:
    """The build's own scorer with all that its flags ask for, around models in memory instead of loaded ones."""
    models = role_models(trio, inputs.vocabulary_size)
    with patch.object(precompute.build.inputs, "load_models", lambda *given, **flags: models):
        return precompute.build.inputs.load_scorer(asked, inputs)


def _flags(way: Way) -> dict[str, Any]:
    """The build's flags for a way."""
    return {"dtype": way.dtype, "kernels": way.kernels, "torch_compile": way.compiled}


def mfu(flop_per_second: float, device: torch.device) -> dict[str, Cell]:
    """The share of the card's stated peak in half precision; nothing for a card that is not in the list."""
    if device.type != "cuda":
        return {"mfu": 0.0}
    card = card_of(torch.cuda.get_device_name(device))
    return {} if card is None else {"mfu": flop_per_second / card.half}


def idle_share(work: Callable[[], Any], device: torch.device) -> float:
    """The share of the time from a work's first kernel or copy on the GPU to its last in which none runs there; by
    torch's profiler. 1 on a CPU.
    """
    with profile(activities=[ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]) as profiler:
        timed(work, device)
    kind = torch.autograd.DeviceType.CUDA
    spans = sorted((e.time_range.start, e.time_range.end) for e in profiler.events() if e.device_type == kind)
    return 1 - busy(spans) / (max(end for _, end in spans) - spans[0][0]) if spans else 1.0


def busy(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of intervals, which are sorted by their start."""
    total, end = 0.0, float("-inf")
    for start, stop in spans:
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
