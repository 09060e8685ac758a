"""One seed: every method at every value of its knob, judged along its training; and the choice of learning rates."""

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
    BETA,
    DPO_BETAS,
    IN_ROUNDS,
    ITSELF,
    LEARNING_RATE_OF,
    MILD,
    ON_ROLLOUTS,
    PLENTY,
    POLICY_GRADIENT_KL_COEFS,
    STUDENTS,
    TEACHER_GAINS,
    TEACHER_KL_COEFS,
    WITH_MILD_TEACHERS,
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
from shards.preferences import accuracy, find_pairs, preference_margins
from shards.schema import Role

KLS = (0.25, 0.5, 1.0, 2.0)
"""Where frontiers are compared, nats."""
MAX_NEW_TOKENS = 40
GENERATIONS = 8
Run = dict[str, Any]


def tune(options: AlignmentOptions, seed: int) -> dict[str, Any]:
    """Every method's learning rate, on a seed that is no other's."""
    world = make_world(Path(options.out) / f"seed-{seed}", seed, options)
    return {"seed": seed, **choose_rates(Bench(world, options, {}), STUDENTS)}


def tune_mild(options: AlignmentOptions, seed: int, rates: Mapping[str, float]) -> dict[str, Any]:
    """The same with mild teachers; and where both kinds of teachers put their distance."""
    world = make_world(Path(options.out) / f"seed-{seed}", seed, options)
    strong = Bench(world, options, dict(rates))
    strong.make_teachers()
    mild = Bench(world, options, {"dpo": min(options.learning_rates)}, folder=MILD)
    chosen = choose_rates(mild, WITH_MILD_TEACHERS)
    return {**chosen, "credit": {"chosen": credit(world, strong.models()), MILD: credit(world, mild.models())}}


def choose_rates(bench: "Bench", students: Iterable[str]) -> dict[str, Any]:
    """The learning rate at which a method's frontier, over all values of its knob, is highest on average over KLS.

    One rule for all methods, by the half of the samples that chooses. What the bench has a rate for keeps it.
    """
    scores: dict[str, dict[str, float]] = {}

    def choose(name: str, values: Sequence[float], run: Callable[[float, float], Run]) -> None:
        scores[name] = {
            f"{rate:g}": bench.score([run(value, rate) for value in values]) for rate in bench.options.learning_rates
        }
        bench.rates[name] = float(max(scores[name], key=lambda rate: scores[name][rate]))

    whole = "dpo" not in bench.rates
    if whole:
        choose("dpo", DPO_BETAS, bench.dpo)
    bench.make_teachers()
    cache = bench.cache("pairs", bench.world.pairs, responses="both")
    for name in students:
        if name not in LEARNING_RATE_OF:
            choose(name, STUDENTS[name].values, partial(bench.student, name, cache))
    if whole:
        choose("policy gradient", POLICY_GRADIENT_KL_COEFS, bench.policy_gradient)
    return {"scores": scores, "rates": bench.rates}


def run_seed(seed: int, options: AlignmentOptions, rates: Mapping[str, float]) -> dict[str, Any]:
    """All runs of a seed, what its teachers make of held-out pairs, and what it took."""
    started = time.perf_counter(), time.process_time()
    bench = Bench(make_world(Path(options.out) / f"seed-{seed}", seed, options), options, dict(rates))
    runs = list(tqdm(bench.all_runs(), desc=f"seed {seed}", unit="run"))
    return {
        "reference": bench.start,
        "runs": runs,
        "teacher_seconds": bench.seconds,
        "accuracy": bench.accuracies(),
        "ceiling": bench.world.ceiling,
        "wall_seconds": time.perf_counter() - started[0],
        "cpu_seconds": time.process_time() - started[1],
    }


def run_mild(
    seed: int, options: AlignmentOptions, rates: Mapping[str, float], mild_rates: Mapping[str, float]
) -> dict[str, Any]:
    """The same seed once more, with teachers that went less far: DPO at the lowest learning rate, and some students;
    and what the teachers are worth themselves, of both kinds."""
    started = time.perf_counter(), time.process_time()
    world = make_world(Path(options.out) / f"seed-{seed}", seed, options)
    strong = Bench(world, options, dict(rates))
    strong.make_teachers()
    runs = list(strong.teachers_themselves())
    mild = Bench(world, options, dict(mild_rates), folder=MILD)
    found = tqdm(mild.mild_runs(), desc=f"seed {seed}, {MILD}", unit="run")
    runs += [run | {"method": f"{run['method']}, {MILD}"} for run in found]
    return {
        "runs": runs,
        "wall_seconds": time.perf_counter() - started[0],
        "cpu_seconds": time.process_time() - started[1],
    }


def run_plenty(seed: int, options: AlignmentOptions) -> dict[str, Any]:
    """One seed with PLENTY times the pairs and steps: DPO at the lowest learning rate, and its teachers themselves."""
    more = dataclasses.replace(options, pairs=PLENTY * options.pairs)
    world = make_world(Path(options.out) / f"seed-{seed}", seed, more)
    bench = Bench(world, more, {"dpo": min(options.learning_rates)}, folder="plenty")
    runs = [bench.dpo(beta, bench.rates["dpo"]) for beta in dict.fromkeys((BETA, DPO_BETAS[-1]))]
    bench.make_teachers()
    runs += bench.teachers_themselves()
    return {"reference": bench.start, "runs": runs, "credit": credit(world, bench.models())}


class Bench:
    """The methods on one world, each as a function to a run: its name, its knob's value, its points.

    folder    of the world's folder, where the teachers are
    seconds   CPU time of what students need first: dpo, reverse, cache
    """

    def __init__(
        self, world: World, options: AlignmentOptions, rates: dict[str, float], *, folder: str = "teachers"
    ) -> None:
        self.world, self.options, self.rates = world, options, rates
        self.seconds: dict[str, float] = {}
        self.learned: dict[str, TeacherSpec] = {}
        self.start = {"step": 0, "seconds": 0.0, **dataclasses.asdict(world.judge(world.judge.reference))}
        self.start |= {"kl_nats": 0.0, "choice_kl": 0.0}
        self._teachers = world.folder / folder

    def all_runs(self) -> Iterator[Run]:
        for beta in DPO_BETAS:
            yield self.dpo(beta, self.rates["dpo"])
        self.make_teachers()
        cache = self.cache("pairs", self.world.pairs, responses="both")
        for name, student in STUDENTS.items():
            for value in student.values:
                yield self.student(name, cache, value, self.rates[LEARNING_RATE_OF.get(name, name)])
        rollouts = self.sampled("rollouts", self.world.reference, self.world.pairs, self.world.seed)
        cache = self.cache("rollouts", rollouts)
        for name in ON_ROLLOUTS:
            for value in STUDENTS[name].values:
                yield self.student(name, cache, value, self.rates[name]) | {"method": f"{name}, rollouts"}
        for name in IN_ROUNDS:
            for value in STUDENTS[name].values:
                yield self.rounds(name, value, self.rates[name])
        for kl_coef in POLICY_GRADIENT_KL_COEFS:
            yield self.policy_gradient(kl_coef, self.rates["policy gradient"])

    def mild_runs(self) -> Iterator[Run]:
        for beta in DPO_BETAS:
            yield self.dpo(beta, self.rates["dpo"])
        self.make_teachers()
        cache = self.cache("pairs", self.world.pairs, responses="both")
        for name in WITH_MILD_TEACHERS:
            for value in STUDENTS[name].values:
                yield self.student(name, cache, value, self.rates[name])
        yield from self.teachers_themselves()

    def models(self) -> dict[Role, PreTrainedModel]:
        return {role: load_model(folder) for role, folder in self.world.models(self._teachers).items()}

    def teachers_themselves(self) -> Iterator[Run]:
        """Without a student: sampled from p* itself."""
        models = self.models()
        for name in WITH_MILD_TEACHERS:
            knob = str(STUDENTS[name].knob)
            for value in TEACHER_GAINS if knob == "gain" else TEACHER_KL_COEFS:
                quality = self.world.judge.of_teacher(models, _spec({"teacher": name, knob: value}))
                point = {"step": 0, "seconds": 0.0, **dataclasses.asdict(quality)}
                yield {"method": f"{name}, {ITSELF}", "knob": knob, "value": value, "learning_rate": 0.0,
                       "points": [point]}  # fmt: skip

    def dpo(self, beta: float, rate: float) -> Run:
        watch, out = self._watch(), self.world.folder / f"dpo-{beta:g}-{rate:g}"
        self._train_dpo("dpo", out, watch, beta, rate)
        return self._run("dpo", "beta", beta, rate, watch)

    def make_teachers(self) -> None:
        """dpo and reverse at BETA and DPO's learning rate."""
        for role in ("dpo", "reverse"):
            watch = Watch(judge=self.world.judge, steps=())
            self._train_dpo(role, self._teachers, watch, BETA, self.rates["dpo"])
            self.seconds[role] = watch.seconds

    def cache(self, name: str, data: Path, *, responses: str = "chosen") -> Path:
        began = time.process_time()
        with silent():
            out = build_cache(
                self.world.models(self._teachers), data, self.world.folder / f"cache-{name}", responses=responses
            )
        self.seconds[f"cache of {name}"] = time.process_time() - began
        return out

    def sampled(self, name: str, model: Path, data: Path, seed: int) -> Path:
        with silent():
            return sample(model, data, self.world.folder / f"{name}.jsonl", max_new_tokens=MAX_NEW_TOKENS, seed=seed)

    def student(self, name: str, cache: Path, value: float, rate: float) -> Run:
        watch = self._watch()
        self._distil(name, value, cache, self.world.reference, watch, rate)
        return self._run(name, STUDENTS[name].knob, value, rate, watch)

    def rounds(self, name: str, value: float, rate: float) -> Run:
        """Sample from the student, score, train, again; the seconds are those of all three."""
        watch, start = self._watch(), self.world.reference
        for number, data in enumerate(self.world.thirds, start=1):
            with watch.counting():
                cache = self.cache("round", self.sampled("round", start, data, 1000 * number + self.world.seed))
            start = self._distil(name, value, cache, start, watch, rate, number)
        return self._run(f"{name}, {len(self.world.thirds)} rounds", STUDENTS[name].knob, value, rate, watch)

    def policy_gradient(self, kl_coef: float, rate: float) -> Run:
        watch, dish_of = self._watch(last=2 * self.options.steps), dict(prompts(held_out=False))
        with silent():
            train_policy_gradient(
                self.world.reference, list(dish_of), lambda prompt, text: true_reward(dish_of[prompt], text), watch,
                self.world.folder / "policy-gradient", kl_coef=kl_coef, learning_rate=rate,
                steps=2 * self.options.steps, generations=GENERATIONS, max_new_tokens=MAX_NEW_TOKENS,
                seed=self.world.seed,
            )  # fmt: skip
        return self._run("policy gradient", "kl_coef", kl_coef, rate, watch)

    def accuracies(self) -> dict[str, float]:
        """Share of held-out pairs that each teacher tells right; a student is named with its knob's value."""
        cache = ShardCache(self.cache("held-out", self.world.held_out, responses="both"))
        specs = {}
        for name, student in STUDENTS.items():
            for value in student.values:
                label = name if student.knob is None else f"{name}, {student.knob} {value:g}"
                specs[label] = self.learned.get(name) or _spec(student.flags_at(value))
        margins = preference_margins(cache, find_pairs(cache), specs)
        return {name: accuracy(margins_P) for name, margins_P in margins.items()}

    def score(self, runs: Sequence[Run]) -> float:
        """The mean height of a frontier, by the half of the samples that chooses."""
        points = [self.start, *(point for run in runs for point in run["points"])]
        return fmean(reward_at(points, kl, reward="choice_reward") for kl in KLS)

    def _watch(self, last: int | None = None) -> Watch:
        steps = self.options.judged_steps
        return Watch(judge=self.world.judge, steps=steps if last is None else (*steps[1:], last))

    def _run(self, method: str, knob: str | None, value: float, rate: float, watch: Watch) -> Run:
        return {"method": method, "knob": knob, "value": value, "learning_rate": rate, "points": watch.points}

    def _train_dpo(self, role: Any, out: Path, watch: Watch, beta: float, rate: float) -> None:
        with silent():
            train_dpo(
                role, self.world.reference, self.world.pairs, out, watch, beta=beta, learning_rate=rate,
                seed=self.world.seed,
            )  # fmt: skip

    def _distil(
        self, name: str, value: float, cache: Path, start: Path, watch: Watch, rate: float, number: int = 0
    ) -> Path:
        """Where the student lies then; `number`: of the round."""
        out = self.world.folder / f"student-{number}"
        with silent():
            args = train_student(
                cache, start, out, watch, teacher=STUDENTS[name].flags_at(value), learning_rate=rate,
                seed=self.world.seed,
            )  # fmt: skip
        if args.spec.strength == "learned":
            self.learned[name] = args.spec
        return out


def _spec(flags: Mapping[str, Any]) -> TeacherSpec:
    given = dict(flags)
    return TeacherSpec.preset(given.pop("teacher"), beta=BETA, **given)
