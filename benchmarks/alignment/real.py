"""The same protocol on real pairs and a given trio, without a known true reward: held-out accuracy, and the contrastive
reward against KL, from `student.evaluate` on a cache of held-out pairs.

Each seed draws its own training pairs. Trio, held-out pairs and judge are the same for all.
"""

import copy
import dataclasses
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from benchmarks.alignment.experiment import Bench, Choices, Run
from benchmarks.alignment.methods import STUDENTS
from benchmarks.alignment.options import TUNING_SEED, AlignmentOptions
from benchmarks.alignment.train import build_cache, silent
from benchmarks.alignment.world import World
from examples.demo.models import load_model
from examples.demo.report import write_jsonl
from precompute.data.reading import read_rows
from precompute.models.roles import parse_models
from shards import Divergence, ShardCache, TeacherSpec
from shards.errors import OptionError
from shards.format.schema import Role
from shards.preferences.pairs import accuracy, find_pairs, preference_margins
from student.evaluate.figures import margins, outcomes
from student.evaluate.measure import measure

BETA = 0.1
"""Beta of the trio, and of the contrastive reward."""
BETAS = (0.1, 0.5)
KLS = (0.5, 1.0, 2.0, 4.0)
BATCH = 8
TOP_K = 64
VALUES = {
    "linear": (1.0, 4.0),
    "contrastive": (0.5, 2.0),
    "adaptive": (20.0,),
    "aligndistil": (5.0, 20.0),
}
"""Method -> values of its knob."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Means over cached responses to held-out prompts. One half of the pairs chooses, the other is reported.

    reward, choice_reward   beta sum_t sum_v p(v) [l_dpo(v) - l_reverse(v)] of a response, on the kept tokens
    kl_nats, choice_kl      sum over a response's positions of KL(model || reference), over buckets
    accuracy                share of all pairs whose chosen response has the larger log p - l_ref; a tie counts half
    """

    reward: float
    kl_nats: float
    choice_reward: float
    choice_kl: float
    accuracy: float


class HeldOutJudge:
    """Measures a model on a cache of held-out pairs."""

    def __init__(self, reference: PreTrainedModel, cache: ShardCache) -> None:
        self.reference, self.cache = copy.deepcopy(reference).eval(), cache
        self.pairs = find_pairs(cache)
        self._copy = copy.deepcopy(self.reference)

    def __call__(self, model: PreTrainedModel) -> Quality:
        self._copy.load_state_dict(model.state_dict())
        with silent():
            sums = measure(
                self._copy, self.cache, TeacherSpec(beta=BETA), divergence=Divergence(), batch_size=8,
                chunk_positions=256, pad_token_id=0, description="held-out pairs",
            )  # fmt: skip
        order = np.unique(self.cache.index.pair_id, return_inverse=True)[1]
        reported, choosing = (order % 2 == half for half in (0, 1))
        return Quality(
            reward=float(sums.expected_reward[reported].mean()),
            kl_nats=float(sums.kl_reference[reported].mean()),
            choice_reward=float(sums.expected_reward[choosing].mean()),
            choice_kl=float(sums.kl_reference[choosing].mean()),
            accuracy=float(outcomes(margins(self.pairs, sums.log_ratio)).mean()),
        )


class RealBench(Bench):
    """DPO and students of the given trio."""

    kls = KLS

    def __init__(self, world: World, options: AlignmentOptions, choices: Choices) -> None:
        options = dataclasses.replace(options, learning_rates=options.real_learning_rates)
        super().__init__(world, options, {"beta": BETA, "teacher_rate": 0.0} | choices)
        steps, length = options.real_pairs // BATCH, options.real_length
        self.judged_steps = (steps // 2, steps)
        self.dpo_settings = {"per_device_train_batch_size": BATCH, "max_length": length}
        self.student_settings = {"per_device_train_batch_size": BATCH, "global_batch_size": BATCH}
        self.build_settings = {"max_length": length, "top_k": TOP_K, "rows_per_batch": 1}

    def runs(self) -> Iterator[Run]:
        yield from (self.dpo(beta, self.choices["rates"]["dpo"]) for beta in BETAS)
        for name, values in VALUES.items():
            rate = self.choices["rates"][name]
            yield from (self.student(name, self.cache_of_pairs(), value, rate) for value in values)

    def _folders(self, beta: float, rate: float) -> dict[Role, Path]:
        return trio_of(self.options)


def tune(folder: Path, options: AlignmentOptions) -> Choices:
    """Learning rates, by the rule of the toy task."""
    bench = open_bench(folder, TUNING_SEED, options, {"rates": {}, "scores": {}})
    bench.choose("dpo", BETAS, bench.dpo)
    for name, values in VALUES.items():
        bench.choose(name, values, partial(bench.student, name, bench.cache_of_pairs()))
    return bench.choices


def run_seed(folder: Path, seed: int, options: AlignmentOptions, choices: Choices) -> dict[str, Any]:
    started = time.process_time()
    bench = open_bench(folder, seed, options, choices)
    runs = list(tqdm(bench.runs(), desc=f"real pairs, seed {seed}", unit="run", disable=options.workers > 1))
    return {"reference": bench.start, "runs": runs, "cpu_seconds": time.process_time() - started}


def trio_figures(folder: Path, options: AlignmentOptions) -> dict[str, Any]:
    """The quality of the trio's models by the same judge, and how many held-out pairs its teachers get right."""
    judge = make_judge(folder, options)
    specs = {
        STUDENTS[name].label(name, value): STUDENTS[name].spec_at(value, BETA)
        for name, values in VALUES.items()
        for value in values
    }
    found = preference_margins(judge.cache, judge.pairs, specs)
    return {
        "models": {role: dataclasses.asdict(judge(load_model(path))) for role, path in trio_of(options).items()},
        "accuracy": {name: accuracy(margins_P) for name, margins_P in found.items()},
        "pairs": len(judge.pairs),
        "tokens": float(judge.cache.index.num_positions.mean()),
        "parameters": judge.reference.num_parameters(),
        "vocabulary_size": judge.cache.plan.vocabulary_size,
    }


def open_bench(folder: Path, seed: int, options: AlignmentOptions, choices: Choices) -> RealBench:
    judge, pairs = make_judge(folder, options), folder / "pairs.jsonl"
    rows = [dict(row) for _, row in read_rows(str(options.data))]
    if len(rows) < options.real_pairs:
        raise OptionError(f"data: expected {options.real_pairs} pairs or more, got {len(rows)}")
    write_jsonl(pairs, random.Random(seed).sample(rows, options.real_pairs))
    reference = trio_of(options)["reference"]
    world = World(
        seed=seed, folder=folder, reference=reference, pairs=pairs, few=pairs, thirds=(), held_out=folder, ceiling=1.0,
        judge=judge,
    )  # fmt: skip
    return RealBench(world, options, choices)


def make_judge(folder: Path, options: AlignmentOptions) -> HeldOutJudge:
    """With a cache of its own, in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    trio = trio_of(options)
    with silent():
        cache = build_cache(
            trio, Path(str(options.held_out)), folder / "cache-held-out", responses="both", top_k=TOP_K,
            rows_per_batch=1, max_length=options.real_length, limit=options.real_held_out_pairs,
        )  # fmt: skip
    return HeldOutJudge(load_model(trio["reference"]), ShardCache(cache))


def trio_of(options: AlignmentOptions) -> dict[Role, Path]:
    return {role: Path(name) for role, name in parse_models(options.models).items()}
