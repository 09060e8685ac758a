"""python -m benchmarks.ranks: one student on 1, 2 and 4 processes, and one that changes their number on its way.

All runs have the same cache, seed and global batch size. The last one starts on the most processes, is resumed from its
checkpoint on fewer, and again, down to one. Losses and weights are compared with those of one process, and so are those
of one process with micro-batches of half the size: what rounding alone changes.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.command import parse
from benchmarks.machine import processor, versions
from benchmarks.plots import require_matplotlib, save_svg
from shards import ShardCache
from shards.cli.command import flag, require_at_least, run_command
from shards.errors import AlignDistilError, OptionError
from shards.modelfiles.find import resolve
from student.train.reference import reference_of

VERSIONS = ("torch", "transformers", "accelerate")


@dataclass(kw_only=True)
class Options:
    """Flags of the benchmark. Raises OptionError."""

    shards: str = flag("shards", "cache to train on")
    model: str | None = flag(None, "student to start from; default: the cache's reference")
    ranks: list[int] = flag([1, 2, 4], "numbers of processes, rising, the first is 1")
    steps: int = flag(12, "optimizer steps")
    global_batch_size: int = flag(16, "responses of a step, over all processes")
    micro_batch_size: int = flag(4, "responses of a micro-batch")
    learning_rate: float = flag(1e-4, "peak learning rate")
    out: str = flag("runs/ranks", "folder for the runs, results and the picture")
    svg: str | None = flag(None, "where to write the picture too")

    def __post_init__(self) -> None:
        require_at_least(self, 1, ["steps", "global_batch_size", "micro_batch_size"])
        if self.ranks[:1] != [1] or sorted(set(self.ranks)) != self.ranks:
            raise OptionError(f"ranks: expected rising numbers that begin with 1, got {self.ranks}")

    @property
    def every(self) -> int:
        """Steps between checkpoints: as many parts as the run that changes its ranks has."""
        return max(1, self.steps // len(self.ranks))


def train(options: Options, name: str, ranks: int, checkpoint: Path | None = None, *, micro: int) -> Path:
    """Train on so many processes, with micro-batches of `micro` rows; the student's folder. Raises AlignDistilError."""
    out = Path(options.out) / name
    out.mkdir(parents=True, exist_ok=True)
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    flags = {
        "shards": options.shards, "output_dir": out, "overwrite_output_dir": "true", "max_steps": options.steps,
        "global_batch_size": options.global_batch_size, "per_device_train_batch_size": micro,
        "learning_rate": options.learning_rate, "save_strategy": "steps", "save_steps": options.every,
        "use_cpu": "true", "report_to": "none", "disable_tqdm": "true",
        "model": options.model, "resume_from_checkpoint": checkpoint,
    }  # fmt: skip
    command = [sys.executable, *launcher, "-m", "student.train"]
    command += [str(part) for flag, value in flags.items() if value is not None for part in (f"--{flag}", value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (out / "log.txt").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code:
        raise AlignDistilError(f"{name}: expected exit code 0, got {code}; see {out / 'log.txt'}")
    return out


def losses(folder: Path) -> dict[int, float]:
    """The loss of each step that the run has logged, with those of the run that it was resumed from."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


def apart(folder: Path, other: Path, start: Path) -> float:
    """How far two students' weights are from each other, as a share of the way that the first one went."""
    mine, theirs, first = (load_file(path / "model.safetensors") for path in (folder, other, start))
    between = sum((mine[name].double() - theirs[name].double()).square().sum() for name in mine)
    way = sum((mine[name].double() - first[name].double()).square().sum() for name in mine)
    return float((between / way).sqrt())


def compare(options: Options, folders: dict[str, Path], start: Path) -> dict[str, dict]:
    """Losses by step, the largest relative difference to those of one process, and the distance of the weights."""
    one = losses(folders["1"])
    found = {}
    for name, folder in folders.items():
        mine = losses(folder)
        if mine.keys() != one.keys():
            raise AlignDistilError(f"{name}: expected losses of steps {sorted(one)}, got {sorted(mine)}")
        off = {step: abs(mine[step] - one[step]) / abs(one[step]) for step in one}
        found[name] = {"losses": mine, "off": off, "weights_off": apart(folders["1"], folder, start)}
    return found


def text_of(options: Options, found: dict[str, dict], command: str, seconds: dict[str, float]) -> str:
    rows = [
        f"| {name} | {run['losses'][1]:.6g} | {run['losses'][options.steps]:.6g} | {max(run['off'].values()):.1e} | "
        f"{run['weights_off']:.1e} | {seconds[name]:.0f} |"
        for name, run in found.items()
    ]
    return "\n".join([
        f"`{command}`", "",
        f"{processor()}, {os.cpu_count()} cores, one thread a process; {versions(VERSIONS)}. {options.steps} steps of "
        f"{options.global_batch_size} responses, micro-batches of {options.micro_batch_size}.", "",
        "| processes | loss of the first step | of the last | largest relative difference of a step's loss to one "
        "process's | weights apart, share of the way | seconds |",
        "|---|--:|--:|--:|--:|--:|",
        *rows,
    ])  # fmt: skip


def draw(found: dict[str, dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(7, 5.5), sharex=True, height_ratios=(3, 2))
    for number, (name, run) in enumerate(found.items()):
        steps = list(run["losses"])
        label = f"on {name}"
        style = {"linewidth": 11 - 2 * number, "alpha": 0.6, "color": f"C{number}"}
        upper.plot(steps, list(run["losses"].values()), label=label, **style)
        if number:
            lower.plot(steps, [max(off, 1e-9) for off in run["off"].values()], marker="o", color=f"C{number}")
    upper.set(ylabel="loss", title="One student, one global batch size: number of processes")
    upper.legend()
    lower.set(yscale="log", xlabel="step", ylabel="relative difference\nto one process")
    lower.axhline(2**-24, color="grey", linestyle=":")
    lower.text(steps[-1], 2**-24 / 1.3, "rounding of one float32", fontsize=8, color="grey", ha="right", va="top")
    figure.tight_layout()
    save_svg(figure, path, salt="ranks")
    pyplot.close(figure)


def run(options: Options, command: str) -> str:
    """Train all, write results.json, results.md and the picture; the text. Raises AlignDistilError."""
    require_matplotlib()
    folders, seconds = {}, {}

    def timed(name: str, folder: str, ranks: int, checkpoint: Path | None = None, micro: int | None = None) -> None:
        started = time.perf_counter()
        folders[name] = train(options, folder, ranks, checkpoint, micro=micro or options.micro_batch_size)
        seconds[name] = time.perf_counter() - started
        print(f"{name}: {seconds[name]:.0f} s", flush=True)

    for ranks in options.ranks:
        timed(str(ranks), f"on-{ranks}", ranks)
    down = options.ranks[::-1]
    before = Path(folders[str(down[0])])
    for number, (earlier, ranks) in enumerate(pairwise(down), start=1):
        name = ", then ".join(map(str, down[: number + 1]))
        timed(name, f"from-{earlier}-on-{ranks}", ranks, before / f"checkpoint-{number * options.every}")
        before = folders[name]
    timed("1, in another order of sums", "other-sums", 1, micro=max(1, options.micro_batch_size // 2))
    start = resolve(options.model) if options.model else reference_of(ShardCache(options.shards))
    found = compare(options, folders, start.path)
    out = Path(options.out)
    (out / "results.json").write_text(json.dumps({"runs": found, "seconds": seconds}, indent=1))
    draw(found, out / "ranks.svg")
    if options.svg is not None:
        draw(found, Path(options.svg))
    text = text_of(options, found, command, seconds)
    (out / "results.md").write_text(text + "\n")
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(Options, "benchmarks.ranks", __doc__, arguments)
    print(run(options, command))


if __name__ == "__main__":
    run_command(main)
