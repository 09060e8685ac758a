"""The trainings, each judged at some steps: the project's own commands, and TRL's policy gradient."""

import contextlib
import dataclasses
import io
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback

from benchmarks.alignment.judge import Quality
from benchmarks.alignment.options import BATCH_SIZE
from precompute.build.build import build
from precompute.build.options import BuildOptions
from precompute.processes import Processes
from precompute.rollout.__main__ import rollout
from precompute.rollout.options import RolloutOptions
from precompute.teachers.__main__ import find_sources, read_inputs
from precompute.teachers.options import TeacherOptions
from shards.format.schema import Role
from student import DistillArguments, DistillTrainer
from student.data.responses import CachedResponses
from student.load import load_model, load_tokenizer

Point = dict[str, float]
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": BATCH_SIZE,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "warmup_steps": 0.1,
    "adam_beta2": 0.95,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "logging_steps": 10_000,
    "save_strategy": "no",
    "report_to": "none",
}
"""Common settings of DPO, students and the policy gradient: batch, schedule, optimizer."""


@dataclass(kw_only=True)
class Watch(TrainerCallback):
    """Judges the model during training at some steps.

    first_step      steps of earlier rounds
    points          the results: step, seconds of this training's CPU time without the judge's, and a Quality
    """

    judge: Callable[[PreTrainedModel], Quality]
    steps: Sequence[int]
    first_step: int = 0
    seconds: float = 0.0
    points: list[Point] = field(default_factory=list)
    _since: float = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        step = self.first_step + state.global_step
        if step in self.steps:
            self.add_seconds()
            self.points.append({"step": step, "seconds": self.seconds, **dataclasses.asdict(self.judge(model))})
            self._since = time.process_time()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.add_seconds()
        self.first_step += state.global_step

    def add_seconds(self) -> None:
        """The CPU time since the last call, or since the training started."""
        now = time.process_time()
        self.seconds, self._since = self.seconds + now - self._since, now

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count work outside of a training too."""
        self._since = time.process_time()
        yield
        self.add_seconds()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Hide the output of commands; if one fails, its output is lost but the error is raised."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def train_dpo(
    role: Role, reference: Path, data: Path, out: Path, watch: Watch, *, beta: float, learning_rate: float,
    seed: int, **settings: Any,
) -> None:  # fmt: skip
    """`python -m precompute.teachers` for one role, watched: OUT/ROLE. settings: of DPOConfig, beside COMMON."""
    from precompute.teachers.arguments import DPOArguments
    from precompute.teachers.dpo import train_role

    options = TeacherOptions(reference=str(reference), data=str(data), out=str(out))
    args = DPOArguments(
        beta=beta, learning_rate=learning_rate, num_train_epochs=1, seed=seed, gradient_checkpointing=False,
        **COMMON | settings,
    )  # fmt: skip
    processes = Processes.join()
    inputs = read_inputs(options, args, find_sources(options, args), processes)
    out.mkdir(parents=True, exist_ok=True)
    train_role(role, inputs.pairs, inputs.reference, inputs.records[role], options, args, callbacks=[watch])


def build_cache(models: dict[Role, Path], data: Path, out: Path, *, responses: str = "chosen", **settings: Any) -> Path:
    """`python -m precompute.build`; a mean of 16 tokens a position where settings say nothing else."""
    shutil.rmtree(out, ignore_errors=True)
    given: dict[str, Any] = {"on_empty": "skip", "top_k": 16, "rows_per_batch": 32, "device": "cpu"} | settings
    names = [f"{role}={folder}" for role, folder in models.items()]
    build(BuildOptions(models=names, data=str(data), out=str(out), responses=responses, **given))
    return out


def train_student(
    shards: Path, start: Path, out: Path, watch: Watch, *, teacher: dict[str, Any], learning_rate: float,
    seed: int, **settings: Any,
) -> DistillArguments:  # fmt: skip
    """`python -m student.train` from Python, judged; the model is saved to `out`. settings: its flags, besides COMMON.

    Returns the flags, including the numbers of a learned strength.
    """
    common = COMMON | {"global_batch_size": BATCH_SIZE} | settings
    args = DistillArguments(
        output_dir=str(out), shards=[str(shards)], learning_rate=learning_rate, num_train_epochs=1, seed=seed,
        **common, **teacher,
    )  # fmt: skip
    tokenizer = load_tokenizer(str(start), trust_remote_code=False)
    trainer = DistillTrainer(
        model=load_model(str(start), dtype="float32", attn_implementation=None, trust_remote_code=False),
        args=args,
        train_dataset=CachedResponses(args.shards),
        processing_class=tokenizer,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.distill_forward.restore()
    trainer.model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return args


def sample(model: Path, data: Path, out: Path, *, max_new_tokens: int, seed: int) -> Path:
    """`python -m precompute.rollout`: a response to every prompt of the data."""
    out.unlink(missing_ok=True)
    return rollout(
        RolloutOptions(
            model=str(model),
            data=str(data),
            out=str(out),
            max_new_tokens=max_new_tokens,
            seed=seed,
            batch_size=256,
            device="cpu",
        )
    )


def train_policy_gradient(
    reference: Path, prompts: Sequence[str], reward: Callable[[str, str], float], watch: Watch, out: Path, *,
    kl_coef: float, learning_rate: float, steps: int, generations: int, max_new_tokens: int, seed: int,
) -> None:  # fmt: skip
    """TRL's RLOO with the true reward: no method that learns from preferences can be expected to beat it by much."""
    from trl import RLOOConfig, RLOOTrainer

    def rewards(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [reward(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    common = COMMON | {"per_device_train_batch_size": 2 * BATCH_SIZE}
    args = RLOOConfig(
        output_dir=str(out), beta=kl_coef, learning_rate=learning_rate, max_steps=steps, seed=seed,
        num_generations=generations, max_completion_length=max_new_tokens, gradient_checkpointing=False, bf16=False,
        temperature=1.0, **common,
    )  # fmt: skip
    trainer = RLOOTrainer(
        model=load_model(str(reference), dtype="float32", attn_implementation=None, trust_remote_code=False),
        reward_funcs=rewards,
        args=args,
        train_dataset=datasets.Dataset.from_dict({"prompt": list(prompts)}),
        processing_class=load_tokenizer(str(reference), trust_remote_code=False),
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
