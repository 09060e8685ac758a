"""The known-reward task of benchmarks/alignment: students of one cache per dtype of the bodies, one per rule and gain.

The students themselves are float32. A seed draws its own data, and trains its own reference, dpo and reverse.
"""

import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from benchmarks.alignment.experiment import Bench
from benchmarks.alignment.options import AlignmentOptions
from benchmarks.alignment.train import Watch, build_cache, silent, train_student
from benchmarks.alignment.world import make_world
from benchmarks.weights.options import WeightsOptions
from benchmarks.weights.rules import Rule

Run = dict[str, Any]


def run_part(folder: Path, seed: int, dtype: str, options: WeightsOptions) -> dict[str, Any]:
    """All students of a seed from bodies of a dtype, judged along their training, and the CPU time.

    What the seed trained before for another dtype is used again if the folder still has it.
    """
    started = time.process_time()
    same = ("texts", "pairs", "samples_per_prompt", "hidden_size")
    sizes = AlignmentOptions(few_pairs=options.pairs, **{name: getattr(options, name) for name in same})
    bench = Bench(make_world(folder, seed, sizes), sizes, {})
    bench.judged_steps = (sizes.steps // 2, sizes.steps)
    wanted = [(rule, gain) for rule in options.rules_for(dtype) for gain in options.known_gains]
    cache = make_cache(bench, dtype, options)
    title = f"seed {seed}, {dtype}"
    runs = [student(bench, cache, rule, gain, options) for rule, gain in tqdm(wanted, desc=title, unit="run")]
    return {"reference": bench.start, "runs": runs, "cpu_seconds": time.process_time() - started}


def make_cache(bench: Bench, dtype: str, options: WeightsOptions) -> Path:
    """Of both responses, from the seed's dpo and reverse."""
    beta, rate, world = options.known_beta, options.known_teacher_rate, bench.world
    bench.make_teachers(beta, rate)
    folders = world.models(world.folder / f"teachers-{beta:g}-{rate:g}")
    with silent():
        return build_cache(folders, world.pairs, world.folder / "cache", responses="both", dtype=dtype)


def student(bench: Bench, cache: Path, rule: Rule, gain: float, options: WeightsOptions) -> Run:
    """One student of aligndistil from the cache."""
    watch, out = Watch(judge=bench.world.judge, steps=bench.judged_steps), bench.world.folder / "student"
    flags = {"teacher": "aligndistil", "beta": options.known_beta, "gain": gain} | rule.flags(options.known_beta)
    with silent():
        train_student(cache, bench.world.reference, out, watch, teacher=flags, learning_rate=options.known_rate,
                      seed=bench.world.seed)  # fmt: skip
    return {"rule": rule.name, "gain": gain, "points": watch.points}
