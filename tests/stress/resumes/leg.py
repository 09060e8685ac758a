"""One run of a schedule, in forks: how it trains, how it is stopped, and what really passed through its loss."""

import gc
import json
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import save_file
from transformers import TrainerCallback
from transformers.utils import logging

from shards.cli.command import run_command
from shards.cli.launcher import leave
from shards.progress import commanded
from stress import forked
from stress.resumes.ground import EPOCHS, GLOBAL_BATCH, SEED, Ground, key_of
from student.data.responses import CachedResponses
from student.options import DistillArguments
from student.runs.outside import naming_processes
from student.trainer import DistillTrainer

WEIGHTS = "weights.safetensors"
SECONDS = 120
"""After these a run hangs: it takes one or two on an idle core."""

How = Literal["kill after a checkpoint", "kill in a step", "SIGTERM", "--max_steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is the same in all runs of a schedule."""

    caches: int
    window: int | None
    bf16: bool
    dropout: bool
    optim: str
    rates: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a global batch is divided: sequences of a micro-batch, and ranks."""

    micro: int
    ranks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """A run. stop: how and after which step it ends; None at its own end."""

    layout: Layout
    workers: int
    persistent: bool
    save_every: int
    stop: tuple[How, int] | None


def run_leg(
    ground: Ground, kind: Kind, leg: Leg, out: Path, log: Path, extra: dict[str, Any] | None = None
) -> list[forked.Ended]:
    """The ends of its ranks."""
    given = extra or {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = range(leg.layout.ranks)
    logs = [Path(f"{log}-{rank}") for rank in ranks]
    pids = [
        forked.start(lambda rank=rank: _train(ground, kind, leg, out, rank, port, **given), logs[rank])  # type: ignore[misc]
        for rank in ranks
    ]
    return [forked.wait(pid, log, SECONDS) for pid, log in zip(pids, logs, strict=True)]


def _train(
    ground: Ground, kind: Kind, leg: Leg, out: Path, rank: int, port: int, *, callbacks: Any = (), **flags: Any
) -> None:
    PartialState._reset_state(), AcceleratorState._reset_state()  # of the process that was forked
    if leg.layout.ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(leg.layout.ranks)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(leg.layout.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    gc.freeze()  # every Trainer asks for a collection first, which need not look at what is imported
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    logging.disable_progress_bar()
    logging.set_verbosity_error()

    for callback in callbacks:
        callback.prepare()

    def command() -> None:
        trainer = _trainer(ground, kind, leg, out, callbacks, flags)
        with commanded(quiet=True, level=30), naming_processes():
            trainer.train(resume_from_checkpoint=any(out.glob("checkpoint-*")))
            if rank == 0:
                save_file({n: t.contiguous() for n, t in trainer.model.state_dict().items()}, out / WEIGHTS)
            leave(torch.distributed)

    run_command(command)


def _trainer(ground: Ground, kind: Kind, leg: Leg, out: Path, callbacks: Any, flags: dict[str, Any]) -> DistillTrainer:
    caches = ground.caches(kind.caches)
    settings = {
        "shards": caches, "output_dir": str(out), "train_on": "both", "use_cpu": True, "report_to": "none",
        "disable_tqdm": True, "num_train_epochs": EPOCHS, "save_strategy": "steps", "save_steps": leg.save_every,
        "save_total_limit": 2, "learning_rate": 0.5 if kind.optim == "sgd" else 0.02, "seed": SEED, "optim": kind.optim,
        "lr_scheduler_type": kind.rates, "warmup_steps": 2, "bf16": kind.bf16, "shuffle_window": kind.window,
        "global_batch_size": GLOBAL_BATCH, "per_device_train_batch_size": leg.layout.micro, "max_grad_norm": 0,
        "dataloader_num_workers": leg.workers, "dataloader_persistent_workers": leg.persistent, "record_samples": True,
        "stop_on_spike": False,
    }  # fmt: skip
    if leg.stop is not None and leg.stop[0] == "--max_steps":
        settings["max_steps"] = leg.stop[1]
    args = DistillArguments(**settings | flags)
    model = ground.student(dropout=kind.dropout)
    data = CachedResponses(args.shards, train_on="both", room=args.room)
    trainer = DistillTrainer(model, args, data, callbacks=[_Stops(leg.stop), *callbacks])
    _record_what_passes(trainer, out / f"passed-{args.process_index}.jsonl")
    return trainer


class _Stops(TrainerCallback):
    """Ends the process as the leg says."""

    def __init__(self, stop: tuple[How, int] | None) -> None:
        self.how, self.step = stop or (None, 0)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.how == "kill after a checkpoint" and state.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_pre_optimizer_step(args, state, control)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.how == "kill in a step" and state.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.how == "SIGTERM" and state.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def _record_what_passes(trainer: DistillTrainer, path: Path) -> None:
    """Write the responses of each micro-batch that is trained on, from the tensors that the model is called with."""
    plain = trainer.compute_loss

    def compute_loss(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        line = json.dumps({"step": trainer.state.global_step + 1, "keys": passed(inputs)})
        with path.open("a") as file:
            file.write(line + "\n")
        return plain(model, inputs, *args, **kwargs)

    trainer.compute_loss = compute_loss  # type: ignore[method-assign]


def passed(inputs: dict[str, Any]) -> list[str | None]:
    """The response of each row of a padded micro-batch; None where none of its positions has a weight."""
    mask_BT, ids_BT = inputs["attention_mask"], inputs["input_ids"]
    weighed = set((inputs["position"][inputs["coefficient"] != 0] // ids_BT.shape[1]).tolist())
    return [
        key_of(ids[mask == 1]) if b in weighed else None
        for b, (ids, mask) in enumerate(zip(ids_BT, mask_BT, strict=True))
    ]
