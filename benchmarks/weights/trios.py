"""Trios: students of 16 steps from caches of bodies of several dtypes, judged in float32 against the true teacher.

The students are float32. Their metrics are sums over the whole vocabulary, on held-out responses, with live float32
models. The true teacher is the one of these models, without a limit on lambda_t.

Dimensions: N response positions of a batch, V vocabulary.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_callback import PrinterCallback

from benchmarks.alignment.train import silent
from benchmarks.online.experiment import Bench, Recipe, arguments, load_student
from benchmarks.online.live import response_logprobs, reverse_kl
from benchmarks.online.measure import HeldOutBatch, held_out_batches
from benchmarks.online.trainer import Recorder
from benchmarks.weights.options import WeightsOptions
from benchmarks.weights.rules import Rule
from precompute.build.build import build
from precompute.build.options import BuildOptions
from precompute.tokens.corpus import load_corpus
from shards import TeacherSpec
from shards.format.schema import Role
from student.data.responses import CachedResponses
from student.trainer import DistillTrainer

BATCH = 8
MEASURE_EVERY = 4
Point = dict[str, float]


def run_part(
    folder: Path,
    models: Mapping[Role, Path],
    gain: float,
    seed: int,
    dtype: str,
    wanted: Sequence[tuple[Rule, float]],
    options: WeightsOptions,
) -> dict[str, Any]:
    """The wanted students (rule, learning rate) from bodies of one dtype. The cache is made on first use."""
    started = time.process_time()
    bench = open_bench(folder, models, dtype, options)
    vocabulary_size = CachedResponses([bench.cache]).caches[0].plan.vocabulary_size
    true = TeacherSpec(gain=gain)
    held_out = held_out_batches(bench.models, bench.held_out, true, vocabulary_size, batch_size=BATCH)
    runs = []
    for rule, rate in wanted:
        recipe = Recipe(
            steps=options.trio_steps,
            batch_size=BATCH,
            learning_rate=rate,
            measure_every=MEASURE_EVERY,
            seed=seed,
            other_seed=seed,
        )
        points = student(bench, held_out, replace(true, **rule.flags(true.beta)), recipe)
        runs.append({"rule": rule.name, "rate": rate, "points": points})
    return {"runs": runs, "cpu_seconds": time.process_time() - started}


def open_bench(folder: Path, models: Mapping[Role, Path], dtype: str, options: WeightsOptions) -> Bench:
    cache = folder / f"cache-{dtype}"
    wanted = BuildOptions(
        models=[f"{role}={path}" for role, path in models.items()],
        data=str(options.data),
        out=str(cache),
        limit=options.trio_rows,
        max_length=options.max_length,
        top_k=options.trio_top_k,
        dtype=dtype,
        device="cpu",
    )
    with silent():
        build(wanted)
        corpus = load_corpus(
            str(options.held_out_data),
            tokenizer=AutoTokenizer.from_pretrained(models["reference"]),
            max_length=options.max_length,
            limit=options.held_out_rows,
        )
    live = {
        role: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)
        for role, path in models.items()
    }
    return Bench(models=live, student=models["reference"], cache=cache, held_out=corpus.responses,
                 scratch=folder / "scratch")  # fmt: skip


def student(bench: Bench, held_out: Sequence[HeldOutBatch], spec: TeacherSpec, recipe: Recipe) -> list[Point]:
    """The judgements along one training."""
    recorder: Any = Recorder(lambda model: judge(model, held_out), recipe.measure_every)
    with silent():
        trainer = DistillTrainer(
            load_student(bench.student),
            arguments(bench, spec, recipe, recipe.seed),
            CachedResponses([bench.cache]),
            processing_class=AutoTokenizer.from_pretrained(bench.student),
            callbacks=[recorder],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [{"step": step, **point} for step, point in recorder.curve.items()]


@torch.no_grad()
def judge(model: Any, held_out: Sequence[HeldOutBatch]) -> Point:
    """Means over all response tokens of the held-out responses, nats.

    reward                   beta (l_dpo - l_reverse), expected under the student
    kl_nats, teacher_kl      of the student to the reference, and to the true teacher
    """
    training, sums, positions = model.training, torch.zeros(3, dtype=torch.float64), 0
    model.eval()
    for part in held_out:
        student_NV = response_logprobs(model, part.batch, part.teacher.shape[1])
        reward_N = (student_NV.exp() * part.reward).sum(-1)
        kl_N, teacher_kl_N = reverse_kl(student_NV, part.reference), reverse_kl(student_NV, part.teacher)
        sums += torch.stack([reward_N, kl_N, teacher_kl_N]).double().sum(-1)
        positions += len(student_NV)
    model.train(training)
    return dict(zip(("reward", "kl_nats", "teacher_kl"), (sums / positions).tolist(), strict=True))
