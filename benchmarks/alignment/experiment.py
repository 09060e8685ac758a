"""One seed: every method at every value of its knob, judged during its training; and the choices made before."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from benchmarks.alignment.credit import credit
from benchmarks.alignment.frontier import reward_at
from benchmarks.alignment.methods import (
    DPO_BETAS,
    FEW,
    IN_ROUNDS,
    ITSELF,
    LEARNING_RATE_OF,
    ON_ROLLOUTS,
    PAPER,
    PAPER_BETA,
    POLICY_GRADIENT_KL_COEFS,
    PRESETS,
    STUDENTS,
)
from benchmarks.alignment.options import AlignmentOptions
from benchmarks.alignment.task import prompts, true_reward
from benchmarks.alignment.train import (
    Watch,
    build_cache,
    sample,
    silent,
    train_dpo,
    train_policy_gradient,
    train_student,
)
from benchmarks.alignment.world import World, make_world
from examples.demo.models import load_model
from shards import ShardCache, TeacherSpec
from shards.format.schema import Role
from shards.preferences.pairs import accuracy, find_pairs, preference_margins

KLS = (0.25, 0.5, 1.0, 2.0)
"""KLs at which frontiers are compared, nats."""
MAX_NEW_TOKENS = 40
GENERATIONS = 8
Run = dict[str, Any]
Choices = dict[str, Any]


def tune(folder: Path, seed: int, options: AlignmentOptions, *, few: bool) -> Choices:
    """The choices made before the seeds run, on a separate seed; and where the chosen teachers have their distance,
    compared with those of the paper's beta.

    One rule for all: the mean height over KLS of a method's frontier, on the half of the samples for choosing.

    rates, scores         learning rate by method, and the score of each that was tried
    dpo_beta              of the DPO run with the highest final reward
    beta, teacher_rate    of the teachers' dpo and reverse, by the frontiers of the four teachers themselves,
                          sampled without a student
    """
    bench = open_bench(folder, seed, options, {"rates": {}, "scores": {}}, few=few)
    runs = bench.choose("dpo", DPO_BETAS, bench.dpo)
    bench.choices["dpo_beta"] = max(runs, key=lambda run: run["points"][-1]["choice_reward"])["value"]
    bench.choose_teachers()
    for name in PRESETS if few else STUDENTS:
        if name not in LEARNING_RATE_OF:
            bench.choose(name, STUDENTS[name].values, partial(bench.student, name, bench.cache_of_pairs()))
    if not few:
        bench.choose("policy gradient", POLICY_GRADIENT_KL_COEFS, bench.policy_gradient)
    beta, rate = bench.choices["beta"], bench.choices["teacher_rate"]
    found = {f"beta {beta:g}": credit(bench.world, bench.models(beta, rate), beta)}
    if beta != PAPER_BETA:
        rate = bench.choices["rates"]["dpo"]
        found[f"beta {PAPER_BETA:g}"] = credit(bench.world, bench.models(PAPER_BETA, rate), PAPER_BETA)
    return {**bench.choices, "credit": found}


def run_seed(folder: Path, seed: int, options: AlignmentOptions, choices: Choices, *, few: bool) -> dict[str, Any]:
    """All runs of a seed, how its teachers judge held-out pairs, and the CPU time."""
    started = time.perf_counter(), time.process_time()
    bench = open_bench(folder, seed, options, choices, few=few)
    title = f"seed {seed}, {FEW}" if few else f"seed {seed}"
    found = bench.some_runs() if few else bench.all_runs()
    runs = list(tqdm(found, desc=title, unit="run", disable=options.workers > 1))
    if few:
        runs = [run | {"method": f"{run['method']}, {FEW}"} for run in runs]
    return {
        "reference": bench.start,
        "runs": runs,
        "teacher_seconds": bench.seconds,
        "accuracy": bench.accuracies(),
        "ceiling": bench.world.ceiling,
        "wall_seconds": time.perf_counter() - started[0],
        "cpu_seconds": time.process_time() - started[1],
    }


def open_bench(folder: Path, seed: int, options: AlignmentOptions, choices: Choices, *, few: bool) -> "Bench":
    """few: with the first pairs only, and proportionally fewer steps."""
    world = make_world(folder, seed, options)
    if few:
        world = dataclasses.replace(world, pairs=world.few)
        options = dataclasses.replace(options, pairs=options.few_pairs)
    return Bench(world, options, choices)


class Bench:
    """The methods on one world, each as a function to a run: its name, its knob's value, its points.

    choices   the result of `tune`, complete or in progress
    seconds   CPU time that students need first: dpo, reverse, cache
    """

    kls: Sequence[float] = KLS
    dpo_settings: dict[str, Any] = {}  # noqa: RUF012 - of trainings and builds, beside those of `train`
    student_settings: dict[str, Any] = {}  # noqa: RUF012
    build_settings: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, world: World, options: AlignmentOptions, choices: Choices) -> None:
        self.world, self.options, self.choices = world, options, choices
        self.judged_steps = options.judged_steps
        self.seconds: dict[str, float] = {}
        self.learned: dict[str, TeacherSpec] = {}
        self.start = {"step": 0, "seconds": 0.0, **dataclasses.asdict(world.judge(world.judge.reference))}
        self.start |= {"kl_nats": 0.0, "choice_kl": 0.0}

    # ---- choices

    def choose(self, name: str, values: Sequence[float], run: Callable[[float, float], Run]) -> list[Run]:
        """The learning rate of a method; the runs with it."""
        runs = {rate: [run(value, rate) for value in values] for rate in self.options.learning_rates}
        scores = {rate: self.score(found) for rate, found in runs.items()}
        best = max(scores, key=lambda rate: scores[rate])
        self.choices["scores"][name] = {f"{rate:g}": score for rate, score in scores.items()}
        self.choices["rates"][name] = best
        return runs[best]

    def choose_teachers(self) -> None:
        scores = {}
        for beta in DPO_BETAS:
            for rate in self.options.learning_rates:
                self.make_teachers(beta, rate)
                runs = list(self.teachers_themselves(self.models(beta, rate), beta))
                parts = [[run for run in runs if run["method"].startswith(f"{name}, ")] for name in PRESETS]
                scores[beta, rate] = fmean(map(self.score, parts))
        self.choices["beta"], self.choices["teacher_rate"] = max(scores, key=lambda pair: scores[pair])
        self.choices["teacher_scores"] = {f"{beta:g}": {} for beta in DPO_BETAS}
        for (beta, rate), score in scores.items():
            self.choices["teacher_scores"][f"{beta:g}"][f"{rate:g}"] = score

    def score(self, runs: Sequence[Run]) -> float:
        """The mean height of a frontier, on the half of the samples for choosing."""
        points = [self.start, *(point for run in runs for point in run["points"])]
        return fmean(reward_at(points, kl, reward="choice_reward") for kl in self.kls)

    # ---- what is run

    def some_runs(self) -> Iterator[Run]:
        """DPO, the teachers themselves, their students on the pairs' responses."""
        yield from (self.dpo(beta, self.choices["rates"]["dpo"]) for beta in DPO_BETAS)
        beta, rate = self.choices["beta"], self.choices["teacher_rate"]
        self.make_teachers(beta, rate)
        yield from self.teachers_themselves(self.models(beta, rate), beta)
        yield from self.students(PRESETS, self.cache_of_pairs())

    def all_runs(self) -> Iterator[Run]:
        yield from self.some_runs()
        yield from self.students([name for name in STUDENTS if name not in PRESETS], self.cache_of_pairs())
        rollouts = self.cache(
            "rollouts", self.sampled("rollouts", self.world.reference, self.world.pairs, self.world.seed)
        )
        yield from self.students(ON_ROLLOUTS, rollouts, ending=", rollouts")
        for name in IN_ROUNDS:
            yield from (self.rounds(name, value, self.choices["rates"][name]) for value in STUDENTS[name].values)
        rate = self.choices["rates"]["policy gradient"]
        yield from (self.policy_gradient(kl_coef, rate) for kl_coef in POLICY_GRADIENT_KL_COEFS)
        if self.choices["beta"] != PAPER_BETA:
            rate = self.choices["rates"]["dpo"]
            self.make_teachers(PAPER_BETA, rate)
            yield from self.teachers_themselves(self.models(PAPER_BETA, rate), PAPER_BETA, ending=f", {PAPER}")

    def students(self, names: Iterable[str], cache: Path, *, ending: str = "") -> Iterator[Run]:
        for name in names:
            rate = self.choices["rates"][LEARNING_RATE_OF.get(name, name)]
            for value in STUDENTS[name].values:
                yield self.student(name, cache, value, rate) | {"method": f"{name}{ending}"}

    def teachers_themselves(
        self, models: Mapping[Role, PreTrainedModel], beta: float, *, ending: str = ""
    ) -> Iterator[Run]:
        """A run without a student: responses sampled from p* itself."""
        for name, student in PRESETS.items():
            for value in student.values:
                quality = self.world.judge.of_teacher(models, student.spec_at(value, beta))
                point = {"step": 0, "seconds": 0.0, **dataclasses.asdict(quality)}
                yield {"method": f"{name}, {ITSELF}{ending}", "knob": student.knob, "value": value,
                       "learning_rate": 0.0, "points": [point]}  # fmt: skip

    def dpo(self, beta: float, rate: float) -> Run:
        watch = self._watch()
        self._train_dpo("dpo", watch, beta, rate)
        return _run("dpo", "beta", beta, rate, watch)

    def student(self, name: str, cache: Path, value: float, rate: float) -> Run:
        watch = self._watch()
        self._distil(name, value, cache, self.world.reference, watch, rate)
        return _run(name, STUDENTS[name].knob, value, rate, watch)

    def rounds(self, name: str, value: float, rate: float) -> Run:
        """Sample from the student, score, train, again; the seconds include all three."""
        watch, start = self._watch(), self.world.reference
        for number, data in enumerate(self.world.thirds, start=1):
            with watch.counting():
                cache = self.cache("round", self.sampled("round", start, data, 1000 * number + self.world.seed))
            start = self._distil(name, value, cache, start, watch, rate, number)
        return _run(f"{name}, {len(self.world.thirds)} rounds", STUDENTS[name].knob, value, rate, watch)

    def policy_gradient(self, kl_coef: float, rate: float) -> Run:
        watch = self._watch()
        dish_of = dict(prompts(held_out=False))
        with silent():
            train_policy_gradient(
                self.world.reference, list(dish_of), lambda prompt, text: true_reward(dish_of[prompt], text), watch,
                self.world.folder / "policy-gradient", kl_coef=kl_coef, learning_rate=rate,
                steps=self.options.steps, generations=GENERATIONS, max_new_tokens=MAX_NEW_TOKENS,
                seed=self.world.seed,
            )  # fmt: skip
        return _run("policy gradient", "kl_coef", kl_coef, rate, watch)

    def accuracies(self) -> dict[str, float]:
        """Share of held-out pairs that each teacher gets right; a student is named with the value of its knob."""
        cache = ShardCache(self.cache("held-out", self.world.held_out, responses="both"))
        specs = {}
        for name, student in STUDENTS.items():
            if student.knob is not None or name in self.learned:
                for value in student.values:
                    spec = self.learned.get(name) or student.spec_at(value, self.choices["beta"])
                    specs[student.label(name, value)] = spec
        margins = preference_margins(cache, find_pairs(cache), specs)
        return {name: accuracy(margins_P) for name, margins_P in margins.items()}

    # ---- what they are made of

    def make_teachers(self, beta: float, rate: float) -> None:
        """Train dpo and reverse if they do not exist yet."""
        for role in ("dpo", "reverse"):
            if not (self._teachers(beta, rate) / role).exists():
                self._train_dpo(role, Watch(judge=self.world.judge, steps=()), beta, rate)

    def models(self, beta: float, rate: float) -> dict[Role, PreTrainedModel]:
        return {role: load_model(folder) for role, folder in self._folders(beta, rate).items()}

    def cache_of_pairs(self) -> Path:
        """Made on first use."""
        out = self._cache_folder("pairs")
        return out if out.exists() else self.cache("pairs", self.world.pairs, responses="both")

    def cache(self, name: str, data: Path, *, responses: str = "chosen") -> Path:
        """With the chosen models."""
        began = time.process_time()
        folders = self._folders(self.choices["beta"], self.choices["teacher_rate"])
        with silent():
            out = build_cache(folders, data, self._cache_folder(name), responses=responses, **self.build_settings)
        self.seconds[f"cache of {name}"] = time.process_time() - began
        return out

    def sampled(self, name: str, model: Path, data: Path, seed: int) -> Path:
        with silent():
            return sample(model, data, self.world.folder / f"{name}.jsonl", max_new_tokens=MAX_NEW_TOKENS, seed=seed)

    def _watch(self) -> Watch:
        return Watch(judge=self.world.judge, steps=self.judged_steps)

    def _teachers(self, beta: float, rate: float) -> Path:
        return self.world.folder / f"teachers-{beta:g}-{rate:g}"

    def _folders(self, beta: float, rate: float) -> dict[Role, Path]:
        return self.world.models(self._teachers(beta, rate))

    def _cache_folder(self, name: str) -> Path:
        return self.world.folder / f"cache-{name}"

    def _train_dpo(self, role: Any, watch: Watch, beta: float, rate: float) -> None:
        with silent():
            train_dpo(
                role, self.world.reference, self.world.pairs, self._teachers(beta, rate), watch, beta=beta,
                learning_rate=rate, seed=self.world.seed, **self.dpo_settings,
            )  # fmt: skip
        self.seconds[role] = watch.seconds

    def _distil(
        self, name: str, value: float, cache: Path, start: Path, watch: Watch, rate: float, number: int = 0
    ) -> Path:
        """The student's folder; `number`: of the round."""
        out = self.world.folder / f"student-{number}"
        flags = STUDENTS[name].flags_at(value, self.choices["beta"])
        with silent():
            args = train_student(
                cache, start, out, watch, teacher=flags, learning_rate=rate, seed=self.world.seed,
                **self.student_settings,
            )  # fmt: skip
        if args.spec.strength == "learned":
            self.learned[name] = args.spec
        return out


def _run(method: str, knob: str | None, value: float, rate: float, watch: Watch) -> Run:
    return {"method": method, "knob": knob, "value": value, "learning_rate": rate, "points": watch.points}
