"""The student's step beside plain fine-tuning, Liger's and the online one, in the same dtype; and the loader's feed.

Weights are float32 and products in half precision (autocast), for every step alike; the live models of the online step
are in half precision. A step is a forward pass, the loss and a backward pass; the optimizer is a row of its own.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.build import mfu
from benchmarks.gpu.models import (
    DTYPES,
    Load,
    device_of,
    free,
    load_of,
    make_model,
    moved,
    peak_since,
    sizes_of,
    vocabulary_of,
)
from benchmarks.gpu.options import GpuOptions
from benchmarks.gpu.parts import Cells
from benchmarks.gpu.shapes import SHAPES, Shape
from benchmarks.loading.options import LoadingOptions
from benchmarks.loading.synthetic import make_scores, power_laws, write_cache
from benchmarks.step.bench import Bench
from benchmarks.step.measure import interleaved, loader_wait, measured_bytes, medians, timed
from benchmarks.step.steps import DENSE, DENSE_RESPONSES, LIGER, ONLINE, SPARSE, Steps, Work, why_no_liger
from shards.format.scores import Response
from student.data.responses import CachedResponses
from student.options import DistillArguments
from student.trainer import DistillTrainer

STEP_DTYPES = ("bfloat16", "float16")
STEPS = (SPARSE, LIGER, DENSE, DENSE_RESPONSES, ONLINE)
"""In the order of the table."""
OPTIMIZER = "AdamW, fused"
STEP_SECONDS = 25.0
"""About what the steps of one dtype take."""
WORKERS = (0, 1, 4)
PASSES = 3
"""Forward passes that a step's products are worth: a backward pass has twice as many."""


def planned(options: GpuOptions) -> list[str]:
    size = sizes_of(options)[0]
    return [*(_row(size, dtype, name) for dtype in STEP_DTYPES for name in STEPS), _row(size, "float32", OPTIMIZER)]


def measure(cells: Cells, options: GpuOptions) -> None:
    """Every step's seconds and memory, in each dtype; Liger's row says why where it cannot run."""
    size, device = sizes_of(options)[0], device_of(options)
    trainer = make_trainer(SHAPES[size], options)
    for dtype in STEP_DTYPES:
        head = _row(size, dtype, SPARSE)
        with cells.row(head, seconds=0.0 if options.dry_run else STEP_SECONDS):
            live = make_model(SHAPES[size], DTYPES[dtype], device).requires_grad_(False)
            bench: Any = Bench(
                trainer=trainer,
                live={role: moved(live, seed) for seed, role in enumerate(("dpo", "reverse"), 1)},
                scorer=None,  # type: ignore[arg-type]
                rule=None,  # type: ignore[arg-type]
                build_seconds={},
            )
            del live
            free(device)
            _measure_steps(cells, options, Steps(bench), dtype)
            del bench
            free(device)
    with cells.row(_row(size, "float32", OPTIMIZER), seconds=0.0 if options.dry_run else 5.0):
        _measure_optimizer(cells, options, trainer)


def _measure_steps(cells: Cells, options: GpuOptions, steps: Steps, dtype: str) -> None:
    size, device, load = sizes_of(options)[0], device_of(options), load_of(options)
    whole, losses = _cast(steps.whole(), dtype, device), _cast(steps.losses(), dtype, device)
    whole = {name: whole[name] for name in STEPS if name in whole}
    seconds = medians(interleaved(whole, steps.clear, repeats=options.repeats, device=device), device)
    alone = {name: losses[name] for name in STEPS if name in losses}
    loss_seconds = medians(interleaved(alone, steps.clear, repeats=options.repeats, device=device), device)
    tokens = steps.batch["input_ids"].numel()
    positions = len(steps.batch["position"])
    cells.fact(tokens=tokens, positions=positions, rows=load.step_rows)
    for name in STEPS:
        row = _row(size, dtype, name)
        if name not in whole:
            cells.empty(row, why_no_liger(device) or "not measured")
            continue
        heads = tokens if name in (DENSE, LIGER) else positions
        flop = PASSES * _forward_flop(SHAPES[size], load, tokens, heads, vocabulary_of(options))
        found = {"step_ms": 1e3 * seconds[name], "tokens_per_second": tokens / seconds[name]}
        cells.put(row, found | mfu(flop / seconds[name], device) if name != ONLINE else found)
        peak_since(device)
        cells.put(row, {"step_bytes": measured_bytes(steps, whole[name])["peak"], "peak_bytes": peak_since(device)})
        if name in alone:
            memory = measured_bytes(steps, alone[name])
            less = memory["peak"] - memory["gradients"]
            cells.put(
                row, {"loss_ms": 1e3 * loss_seconds[name], "loss_bytes": memory["peak"], "loss_less_gradients": less}
            )


def _measure_optimizer(cells: Cells, options: GpuOptions, trainer: DistillTrainer) -> None:
    """One AdamW step over gradients of zeros, after a first one that makes its states."""
    device = device_of(options)
    for weight in trainer.model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-6, fused=device.type == "cuda")
    optimizer.step()
    row = _row(sizes_of(options)[0], "float32", OPTIMIZER)
    peak_since(device)
    cells.put(row, {"step_ms": 1e3 * timed(optimizer.step, device), "peak_bytes": peak_since(device)})
    trainer.model.zero_grad(set_to_none=True)


def planned_loader(options: GpuOptions) -> list[str]:
    return [_workers(count) for count in _loader_workers(options)]


def measure_loader(cells: Cells, options: GpuOptions) -> None:
    """The trainer's own loader by itself, and beside a step of the smallest student, whose batches are due soonest."""
    size, device, load = "tiny" if options.dry_run else "0.5B", device_of(options), load_of(options)
    trainer = make_trainer(SHAPES[size], options)
    cells.fact(size=size, rows=load.step_rows, batches=load.loader_batches)

    def step(batch: dict[str, Any]) -> None:
        inputs = trainer._prepare_inputs(batch)
        trainer.model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            trainer.compute_loss(trainer.model, inputs, num_items_in_batch=inputs["num_items"]).backward()

    for workers in _loader_workers(options):
        with cells.row(_workers(workers)):
            trainer.args.dataloader_num_workers = workers
            alone = sum(loader_wait(iter(trainer.get_train_dataloader()), lambda batch: None, device).values())
            cells.put(_workers(workers), {"rows_per_second": load.step_rows / alone})
            found = loader_wait(iter(trainer.get_train_dataloader()), step, device)
            wait, took = found["wait_seconds"], found["step_seconds"]
            cells.put(_workers(workers), {"wait_ms": 1e3 * wait, "step_ms": 1e3 * took, "share": wait / (wait + took)})


def make_trainer(shape: Shape, options: GpuOptions) -> DistillTrainer:
    """A student with float32 weights on the device, over a cache whose scores no model has made."""
    load, device, out = load_of(options), device_of(options), Path(options.out)
    folder = out / "cache"
    shutil.rmtree(folder, ignore_errors=True)
    make_cache(folder, load, vocabulary_of(options))
    args = DistillArguments(
        output_dir=str(out / "scratch"),
        per_device_train_batch_size=load.step_rows,
        global_batch_size=load.step_rows,
        bf16=False,  # every step is in autocast below, the same for all
        fp16=False,
        use_cpu=device.type == "cpu",
        report_to="none",
        disable_tqdm=True,
    )
    model = make_model(shape, torch.float32, device).train()
    return DistillTrainer(model, args, CachedResponses([folder]))


def make_cache(folder: Path, load: Load, vocabulary: int) -> None:
    """A cache of synthetic scores: responses of one length, as many as the loader draws."""
    size = load.length - load.prompt
    rows = load.step_rows * load.loader_batches
    asked = LoadingOptions(
        rows=rows, length=size, prompt=load.prompt, vocabulary=vocabulary, top_k=load.top_k,
        max_top_k=min(2048, vocabulary), shard_rows=rows, shards=[1],
    )  # fmt: skip
    generator, laws, responses = np.random.default_rng(0), power_laws(asked), []
    for row in range(rows):
        scores, next_ids_N = make_scores(size, asked, laws, generator)
        prompt = generator.integers(0, vocabulary, load.prompt)
        responses.append(
            Response(
                sample_id=f"{row}/chosen",
                pair_id=row,
                chosen=True,
                response_start=load.prompt,
                input_ids=np.concatenate([prompt, next_ids_N]).astype(np.int32),
                loss_mask=np.arange(load.length) >= load.prompt,
                scores=scores,
            )
        )
    write_cache(folder, asked, responses, 1)


def _cast(works: dict[str, Work], dtype: str, device: torch.device) -> dict[str, Work]:
    """The same works in autocast."""

    def within(work: Work) -> Callable[[], None]:
        def run() -> None:
            with torch.autocast(device.type, DTYPES[dtype]):
                work()

        return run

    return {name: within(work) for name, work in works.items()}


def _forward_flop(shape: Shape, load: Load, tokens: int, heads: int, vocabulary: int) -> float:
    """Of a forward pass. heads: positions at which the output layer runs."""
    return tokens * shape.body_flop(load.length) + heads * shape.head_flop(vocabulary)


def _row(size: str, dtype: str, name: str) -> str:
    return f"{size}, {dtype}, {name}"


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _loader_workers(options: GpuOptions) -> tuple[int, ...]:
    return WORKERS[:1] if options.dry_run else WORKERS
