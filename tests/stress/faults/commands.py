"""The commands that write, as a person types them, on tiny inputs."""

import json
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TRAINING = (
    *("--use_cpu", "true", "--dataloader_pin_memory", "false", "--report_to", "none", "--disable_tqdm", "true"),
    *("--max_steps", "2", "--logging_steps", "1", "--save_strategy", "steps", "--save_steps", "1"),
    *("--save_total_limit", "1", "--learning_rate", "1e-2"),
)
LLAMA = "transformers.models.llama.modeling_llama"
BUILD = ["--responses", "both", "--top_k", "5", "--max_top_k", "12", "--device", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Folders of a campaign. inputs: what all cases read. here: what one case writes. tmp: its TMPDIR."""

    inputs: Path
    here: Path
    tmp: Path

    @classmethod
    def under(cls, ground: Path) -> "Places":
        return cls(inputs=ground / "inputs", here=ground / "here", tmp=ground / "tmp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """name: in counts. module: of python -m. flags: of one run. imports: what is loaded before the forks."""

    name: str
    module: str
    flags: Callable[[Places], Sequence[object]]
    imports: tuple[str, ...] = ()

    def run(self, places: Places) -> None:
        """In a fork: as python -m does it."""
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))  # not a test's
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ["TMPDIR"], tempfile.tempdir = str(places.tmp), None
        os.chdir(places.here)
        sys.argv = [self.module, *map(str, self.flags(places))]
        sys.modules.pop(f"{self.module}.__main__", None)  # that of a test's process
        runpy.run_module(self.module, run_name="__main__", alter_sys=True)


def _models(places: Places) -> list[str]:
    return [f"{role}={places.inputs / role}" for role in ("dpo", "reverse", "reference")]


def _build(places: Places) -> Sequence[object]:
    data = places.inputs / "pairs.jsonl"
    return "--models", *_models(places), "--data", data, "--out", places.here / "out", "--tokens_per_shard", 40, *BUILD


def _train(places: Places) -> Sequence[object]:
    flags = ("--shards", places.inputs / "cache", "--output_dir", places.here / "out", *TRAINING)
    return *flags, "--global_batch_size", 4, "--per_device_train_batch_size", 4, "--resume_from_checkpoint", "true"


def _teachers(places: Places) -> Sequence[object]:
    data = ("--reference", places.inputs / "reference", "--data", places.inputs / "pairs.jsonl")
    small = ["--per_device_train_batch_size", "4", "--gradient_checkpointing", "false", "--max_length", "64"]
    return *data, "--out", places.here / "out", *TRAINING, *small


def _rollout(places: Places) -> Sequence[object]:
    flags = ("--model", places.inputs / "reference", "--data", places.inputs / "pairs.jsonl", "--batch_size", 4)
    return *flags, "--out", places.here / "out.jsonl", "--max_new_tokens", 4, "--device", "cpu"


def _copy(places: Places) -> Sequence[object]:
    return places.inputs / "cache", places.here / "out", "--jobs", 1, "--verify", "content"


def _evaluate(places: Places) -> Sequence[object]:
    flags = ("--model", places.inputs / "reference", "--shards", places.inputs / "cache", "--device", "cpu")
    return *flags, "--json", places.here / "out.json"


def _page(places: Places) -> Sequence[object]:
    return places.inputs / "cache", "--html", places.here / "out.html"


def _report(places: Places) -> Sequence[object]:
    return places.inputs / "run", "--html", places.here / "out.html"


COMMANDS = {
    command.name: command
    for command in (
        Command(name="build", module="precompute.build", flags=_build, imports=("precompute.build.build", LLAMA)),
        Command(
            name="train",
            module="student.train",
            flags=_train,
            imports=(
                "student.trainer",
                "student.train.saving",
                "student.train.reference",
                "student.train.distance",
                LLAMA,
            ),
        ),
        Command(
            name="teachers", module="precompute.teachers", flags=_teachers, imports=("precompute.teachers.dpo", LLAMA)
        ),
        Command(
            name="rollout",
            module="precompute.rollout",
            flags=_rollout,
            imports=("precompute.rollout.inputs", "precompute.rollout.file", "precompute.rollout.vllm_engine", LLAMA),
        ),
        Command(name="copy", module="shards.copy", flags=_copy, imports=("shards.copy.copying",)),
        Command(name="verify", module="shards.verify", flags=lambda places: [places.inputs / "cache"]),
        Command(name="learn", module="shards.learn", flags=lambda places: [places.inputs / "cache"]),
        Command(name="evaluate", module="student.evaluate", flags=_evaluate, imports=("student.evaluate.judge", LLAMA)),
        Command(name="inspect", module="shards.inspect", flags=_page, imports=("shards.inspect.page",)),
        Command(name="report", module="student.report", flags=_report, imports=("student.report.page",)),
    )
}


def make_inputs(places: Places) -> None:
    """In a fork: a trio, pairs, a cache of them, and the folder of a run."""
    import tiny
    from fake_run import make_run

    from precompute.build.build import build
    from precompute.build.options import BuildOptions

    tiny.make_trio(places.inputs)
    data = tiny.write_jsonl(places.inputs / "pairs.jsonl", tiny.make_pairs(12))
    out = str(places.inputs / "cache")
    settings = {"responses": "both", "top_k": 5, "max_top_k": 12, "tokens_per_shard": 60, "device": "cpu"}
    build(BuildOptions(models=_models(places), data=str(data), out=out, **settings))
    make_run(places.inputs / "run", steps=5)
    (places.inputs / "made.json").write_text(json.dumps(True))
