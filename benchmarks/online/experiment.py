"""The same student three times: with live models, from the cache, and with live models in another order."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_callback import PrinterCallback

from benchmarks.online.live import TokenRow
from benchmarks.online.measure import Metrics, held_out_batches, measure
from benchmarks.online.trainer import OnlineTrainer, Recorder, batch_order
from shards import TeacherSpec
from shards.cli.flags.teacher_flags import FIELDS
from shards.format.schema import Role
from student.data.order import BatchItem, GlobalBatchSampler
from student.data.responses import CachedResponses
from student.options import DistillArguments
from student.trainer import DistillTrainer

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The settings shared by all runs. Students start at the reference; each step is one batch of chosen responses."""

    steps: int
    batch_size: int
    learning_rate: float
    measure_every: int
    seed: int
    other_seed: int
    chunk_positions: int = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One training: step -> metrics on held-out responses, the final weights, and the time of a step.

    step_seconds: the training's wall time without the measurements, over its steps
    """

    curve: dict[int, Metrics]
    weights: Weights
    step_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """The three runs of one teacher, and the weights that they started from.

    embeddings: names of the weights of input and output embeddings
    """

    start: Weights
    embeddings: frozenset[str]
    online: Run
    offline: Run
    other_seed: Run


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bench:
    """Models, cache and data of an experiment.

    models     role -> live model, for the online side and for the measurements; all three roles
    student    folder that every student starts from, with the tokenizer
    held_out   tokenised responses that no student is trained on
    scratch    folder that the trainers may write to
    """

    models: Mapping[Role, Any]
    student: Path
    cache: Path
    held_out: Sequence[TokenRow]
    scratch: Path


def compare(bench: Bench, spec: TeacherSpec, recipe: Recipe) -> Comparison:
    """Train online, offline and online with the other seed, which changes the order of the data and nothing else."""
    data = CachedResponses([bench.cache])
    vocabulary_size = data.caches[0].plan.vocabulary_size
    held_out = held_out_batches(bench.models, bench.held_out, spec, vocabulary_size, batch_size=recipe.batch_size)
    measured = partial(measure, held_out=held_out, vocabulary_size=vocabulary_size)
    student = load_student(bench.student)
    return Comparison(
        start=weights_of(student),
        embeddings=embedding_names(student),
        online=train_online(bench, data, spec, recipe, Recorder(measured, recipe.measure_every), seed=recipe.seed),
        offline=train_offline(bench, data, spec, recipe, Recorder(measured, recipe.measure_every)),
        other_seed=train_online(bench, data, spec, recipe, Recorder(measured, recipe.steps), seed=recipe.other_seed),
    )


def train_offline(bench: Bench, data: CachedResponses, spec: TeacherSpec, recipe: Recipe, recorder: Recorder) -> Run:
    """From the cache, by DistillTrainer."""
    trainer = DistillTrainer(
        load_student(bench.student),
        arguments(bench, spec, recipe, recipe.seed),
        data,
        processing_class=AutoTokenizer.from_pretrained(bench.student),
        callbacks=[recorder],
    )
    return _run(trainer, recorder)


def train_online(
    bench: Bench, data: CachedResponses, spec: TeacherSpec, recipe: Recipe, recorder: Recorder, *, seed: int
) -> Run:
    """With live models, in the order that DistillTrainer has with this seed. Only tokens are taken from the data."""
    sampler = GlobalBatchSampler(
        data.lengths, seed=seed, micro_batch_size=recipe.batch_size, accumulation_steps=1, world_size=1, rank=0
    )
    trainer = OnlineTrainer(
        load_student(bench.student),
        arguments(bench, spec, recipe, seed),
        rows=data.__getitems__([BatchItem(i, True) for i in range(len(data))]).tokens,
        order=batch_order(sampler, recipe.steps),
        models=bench.models,
        spec=spec,
        vocabulary_size=data.caches[0].plan.vocabulary_size,
        callbacks=[recorder],
    )
    return _run(trainer, recorder)


def arguments(bench: Bench, spec: TeacherSpec, recipe: Recipe, seed: int) -> DistillArguments:
    """The released recipe (AdamW, warm-up, cosine), shortened; the same object for both sides."""
    return DistillArguments(
        output_dir=str(bench.scratch),
        **{name: getattr(spec, name) for name in FIELDS if not name.startswith("learned")},
        learning_rate=recipe.learning_rate,
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        global_batch_size=recipe.batch_size,
        chunk_positions=recipe.chunk_positions,
        seed=seed,
        bf16=False,
        use_cpu=bench.models["reference"].device.type == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def summary(compared: Comparison) -> dict[str, Any]:
    """One teacher's entry of results.json: curves, final values and their differences, distances of weights."""
    return {
        "steps": list(compared.online.curve),
        "metrics": {name: metric_summary(compared, name) for name in Metrics.__slots__},
        "weights": weights_summary(compared),
        "step_seconds": {"online": compared.online.step_seconds, "offline": compared.offline.step_seconds},
    }


def metric_summary(compared: Comparison, name: str) -> dict[str, Any]:
    """Both curves of a metric, and how much the final values of offline and of the other seed differ from online's."""
    online, offline, other = (
        [getattr(point, name) for point in run.curve.values()]
        for run in (compared.online, compared.offline, compared.other_seed)
    )
    return {
        "online": online,
        "offline": offline,
        "other_seed_final": other[-1],
        "difference": relative_difference(offline[-1], online[-1]),
        "other_seed_difference": relative_difference(other[-1], online[-1]),
        "curve_gap": curve_gap(offline, online),
    }


def weights_summary(compared: Comparison) -> dict[str, float]:
    """Distances to the online student's weights; `ratio` is offline's over the other seed's."""
    online, offline, other = (run.weights for run in (compared.online, compared.offline, compared.other_seed))
    body = [name for name in online if name not in compared.embeddings]
    return {
        "moved": distance(compared.start, online),
        "offline": distance(offline, online),
        "other_seed": distance(other, online),
        "ratio": distance(offline, online) / distance(other, online),
        "ratio_without_embeddings": distance(offline, online, body) / distance(other, online, body),
    }


def relative_difference(value: float, expected: float) -> float:
    """|value - expected| / |expected|."""
    return abs(value - expected) / abs(expected)


def curve_gap(values: Sequence[float], expected: Sequence[float]) -> float:
    """Largest gap between two curves, as a share of the range of the second."""
    gap = max(abs(value - other) for value, other in zip(values, expected, strict=True))
    return gap / (max(expected) - min(expected))


def distance(first: Weights, second: Weights, names: Iterable[str] | None = None) -> float:
    """Euclidean distance over the named weights, or over all."""
    chosen = first if names is None else names
    return math.sqrt(sum(float((first[name].double() - second[name].double()).square().sum()) for name in chosen))


def embedding_names(model: Any) -> frozenset[str]:
    """The parameters that the input embedding and the output layer consist of; one where they share it."""
    own = [*model.get_input_embeddings().parameters(), *model.get_output_embeddings().parameters()]
    return frozenset(name for name, parameter in model.named_parameters() if any(parameter is other for other in own))


def weights_of(model: Any) -> Weights:
    """A copy of every parameter, on the CPU; shared ones once."""
    return {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}


def load_student(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _run(trainer: Any, recorder: Recorder) -> Run:
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started - recorder.seconds
    return Run(
        curve=recorder.curve, weights=weights_of(trainer.model), step_seconds=seconds / trainer.state.global_step
    )
