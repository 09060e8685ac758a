"""Pickles that leave a mark when they are opened, in every place where one could lie, and the commands that pass by."""

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from conftest import build_options
from tiny import make_pairs, make_trio, write_jsonl

from precompute.build.build import build
from precompute.rollout.__main__ import rollout
from precompute.rollout.options import RolloutOptions
from shards.errors import AlignDistilError
from student.evaluate.__main__ import main as evaluate
from student.options import DistillArguments
from student.report.__main__ import main as report
from student.train.__main__ import train

IN_MODELS = (
    "pytorch_model.bin",
    "adapter_model.bin",
    "model.pt",
    "consolidated.00.pth",
    "training_args.bin",
    "optimizer.pt",
)
IN_CHECKPOINTS = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
"""Files of a checkpoint that a swap leaves as long as they were; and these that it does not have: """
BESIDE_CHECKPOINTS = ("pytorch_model.bin", "scaler.pt", "rng_state_0.pth", "optimizer.bin", "adapter_model.bin")
IN_DATA = ("cache.pkl", "dataset.pt", "data.pickle", "state.bin", "loader.py", "__init__.py")


class Poison:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def poison(path: Path, mark: Path, size: int | None = None) -> Path:
    """A pickle under a name; of an exact size if one is given, else in torch's own format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".py":
        path.write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    elif size is None:
        torch.save({"state": Poison(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Poison(mark), protocol=2).ljust(size, b"\0"))
    return path


class Ground:
    """A tiny trio, its data and cache, and a run of two steps with its checkpoints. Made once, in a fork."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trio = {role: folder / "trio" / role for role in ("reference", "dpo", "reverse")}
        self.data, self.cache, self.run = folder / "data.jsonl", folder / "cache", folder / "run"

    def make(self) -> None:
        if not self.run.exists():
            make_trio(self.folder / "trio")
            write_jsonl(self.data, make_pairs(8))
            build(build_options(self.trio, self.data, self.cache, responses="both", top_k=5))
            train(self.arguments(self.run))

    def arguments(self, out: Path, **more: Any) -> DistillArguments:
        given = {
            "shards": [str(self.cache)],
            "model": str(self.trio["reference"]),
            "output_dir": str(out),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "max_steps": 2,
            "save_steps": 1,
            "global_batch_size": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
        }
        return DistillArguments(**given | more)


def resumed(ground: Ground, out: Path) -> None:
    train(ground.arguments(out, resume_from_checkpoint=str(out / "checkpoint-1")))


def places(ground: Ground, work: Path, mark: Path) -> Iterator[tuple[str, Callable[[], Callable[[], object]]]]:
    """(name, what puts the poison and gives the command that passes by it), each in the empty folder `work`."""
    for name in IN_CHECKPOINTS:
        yield f"train resumes over a swapped {name}", lambda name=name: _swapped(ground, work, mark, name)
    for name in BESIDE_CHECKPOINTS:
        yield f"train resumes beside {name}", lambda name=name: _beside(ground, work, mark, name)
    yield "train resumes without safetensors", lambda: _only_pickled(ground, work, mark)
    yield "build of models with pickles beside", lambda: _built(ground, work, mark, keep=True)
    yield "build of models with pickles alone", lambda: _built(ground, work, mark, keep=False)
    yield "build of models with code of their own", lambda: _own_code(ground, work, mark)
    yield "rollout of a model with pickles beside", lambda: _sampled(ground, work, mark)
    yield "evaluate a model with pickles beside", lambda: _evaluated(ground, work, mark)
    yield "report a run with pickles beside", lambda: _reported(ground, work, mark)
    yield "build from a folder with pickles beside its data", lambda: _data(ground, work, mark)


def _copy(ground: Ground, work: Path) -> Path:
    return Path(shutil.copytree(ground.run, work / "run"))


def _swapped(ground: Ground, work: Path, mark: Path, name: str) -> Callable[[], object]:
    out = _copy(ground, work)
    path = out / "checkpoint-1" / name
    poison(path, mark, path.stat().st_size)
    return lambda: resumed(ground, out)


def _beside(ground: Ground, work: Path, mark: Path, name: str) -> Callable[[], object]:
    out = _copy(ground, work)
    poison(out / "checkpoint-1" / name, mark)
    return lambda: resumed(ground, out)


def _only_pickled(ground: Ground, work: Path, mark: Path) -> Callable[[], object]:
    """The record names the pickle where it named the weights."""
    out = _copy(ground, work)
    folder = out / "checkpoint-1"
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").unlink()
    poison(folder / "pytorch_model.bin", mark, size)
    record = folder / "distill_run.json"
    record.write_text(record.read_text().replace("model.safetensors", "pytorch_model.bin"))
    return lambda: resumed(ground, out)


def _models(ground: Ground, work: Path, mark: Path) -> dict[str, Path]:
    trio = {role: Path(shutil.copytree(path, work / role)) for role, path in ground.trio.items()}
    for path in trio.values():
        for name in IN_MODELS:
            poison(path / name, mark)
    return trio


def _built(ground: Ground, work: Path, mark: Path, *, keep: bool) -> Callable[[], object]:
    trio = _models(ground, work, mark)
    if not keep:
        (trio["dpo"] / "model.safetensors").unlink()
    return lambda: build(build_options(trio, ground.data, work / "cache", top_k=5))


def _own_code(ground: Ground, work: Path, mark: Path) -> Callable[[], object]:
    trio = _models(ground, work, mark)
    for file, auto_map in (
        ("config.json", '"auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}, "model_type": "own", '),
        ("tokenizer_config.json", '"auto_map": {"AutoTokenizer": ["own.T", null]}, '),
    ):
        path = trio["dpo"] / file
        path.write_text(path.read_text().replace("{", "{" + auto_map, 1).replace('"model_type": "llama"', '"kind": 1'))
    poison(trio["dpo"] / "own.py", mark)
    return lambda: build(build_options(trio, ground.data, work / "cache", top_k=5))


def _sampled(ground: Ground, work: Path, mark: Path) -> Callable[[], object]:
    model = _models(ground, work, mark)["dpo"]
    given = {"model": str(model), "data": str(ground.data), "out": str(work / "samples.jsonl"), "device": "cpu"}
    return lambda: rollout(RolloutOptions(**given, max_new_tokens=2, limit=2))


def _evaluated(ground: Ground, work: Path, mark: Path) -> Callable[[], object]:
    model = _models(ground, work, mark)["dpo"]
    return lambda: evaluate(["--model", str(model), "--shards", str(ground.cache), "--device", "cpu"])


def _reported(ground: Ground, work: Path, mark: Path) -> Callable[[], object]:
    out = _copy(ground, work)
    for name in (*IN_MODELS, *IN_CHECKPOINTS):
        poison(out / name, mark)
    return lambda: report([str(out), "--html", str(work / "page.html")])


def _data(ground: Ground, work: Path, mark: Path) -> Callable[[], object]:
    folder = work / "data"
    folder.mkdir()
    shutil.copy(ground.data, folder / "pairs.jsonl")
    for name in IN_DATA:
        poison(folder / name, mark)
    return lambda: build(build_options(ground.trio, folder, work / "cache", top_k=5))


def passed(put: Callable[[], Callable[[], object]], mark: Path) -> str | None:
    """What is wrong with a command that passes a poisoned pickle: it opened it, or did not end in one clear line."""
    command = put()
    found = None
    try:
        command()
    except AlignDistilError:
        pass
    except Exception as exc:
        found = f"{type(exc).__name__}: {str(exc)[:120]!r}"
    return "opened the pickle" if mark.exists() else found
