"""The commands that are killed, with tiny models: their flags, and what a kill may and may not leave behind."""

import importlib
import os
import posix
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Words = Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command line, the same from the first start to the last.

    module  of the command; imported before it is forked, as what it imports itself
    words   the flags, for an output at a path
    out     name of the output in the folder of a case
    """

    module: str
    words: Callable[[Path], Words]
    out: str
    loads: tuple[str, ...] = ()

    def run(self, folder: Path) -> None:
        """In a fork: as `python -m` does it."""
        as_command(self.module, self.words(folder / self.out))


def as_command(module: str, words: Words) -> None:
    from shards.cli.command import run_command

    os.fsync = posix.fsync  # tests take it away
    run_command(lambda: importlib.import_module(module).main([str(word) for word in words]))


def flags(**given: object) -> list[str]:
    found = []
    for name, value in given.items():
        found += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What all commands read."""

    models: dict[str, Path]
    data: Path
    cache: Path


BUILD, COPY = "precompute.build.__main__", "shards.copy.__main__"
QUICK = {"use_cpu": "true", "report_to": "none", "disable_tqdm": "true", "dataloader_pin_memory": "false"}


def to_buckets(given: Inputs) -> dict[str, tuple[str, Callable[[str, Path], Words]]]:
    """Commands that write to a URL, with a cache_dir: module and flags."""
    return {
        "build to a bucket": (BUILD, lambda url, here: [*_build(given, url), "--cache_dir", str(here)]),
        "copy to a bucket": (COPY, lambda url, here: [str(given.cache), url, "--jobs", "1", "--cache_dir", str(here)]),
    }


def commands(given: Inputs) -> dict[str, Command]:
    """Small enough for a second, large enough for several shards, checkpoints and batches."""
    return {
        "build": Command(module=BUILD, out="cache", words=lambda out: _build(given, out)),
        "train": Command(module="student.train.__main__", out="student", words=lambda out: flags(
            shards=given.cache, eval_shards=given.cache, output_dir=out, train_on="both", global_batch_size=4,
            per_device_train_batch_size=4, max_steps=3, save_steps=1, save_total_limit=1, warmup_steps=1,
            learning_rate=0.01, resume_from_checkpoint="true", **QUICK,
        )),
        "teachers": Command(module="precompute.teachers.__main__", out="teachers", words=lambda out: flags(
            reference=given.models["reference"], data=given.data, out=out, learning_rate=0.02, max_steps=2,
            per_device_train_batch_size=4, save_steps=1, save_total_limit=1, activation_checkpointing="false", **QUICK,
        ), loads=("precompute.teachers.dpo",)),
        "rollout": Command(module="stress.kills.counted", out="rollout/samples.jsonl", words=lambda out: flags(
            model=given.models["reference"], data=given.data, out=out, max_new_tokens=4, batch_size=2, device="cpu",
        )),
        "copy": Command(module=COPY, out="copy", words=lambda out: [str(given.cache), str(out), "--jobs", "1"]),
    }  # fmt: skip


def _build(given: Inputs, out: object) -> Words:
    models = [f"{role}={folder}" for role, folder in given.models.items()]
    how = {"responses": "both", "top_k": 5, "max_top_k": 12, "tokens_per_shard": 15}
    return flags(models=models, data=given.data, out=out, **how)
