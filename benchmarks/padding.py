"""python -m benchmarks.padding: tokens a second of a student's steps, padded and without padding.

Micro-batches of a cache's own rows in the order of a training, each run both ways in turn: forward, loss and backward.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.command import parse, quiet
from benchmarks.machine import processor, versions
from shards import Divergence, ShardCache, TeacherSpec
from shards.cli.command import flag, require_at_least, run_command
from shards.modelfiles.find import resolve
from shards.spread import spread
from student.data.collate import Collator
from student.data.order import GlobalBatchSampler
from student.data.responses import CachedResponses
from student.load import load_model
from student.loss.forward import DistillForward
from student.loss.sparse import SparseTargets
from student.train.reference import reference_of

VERSIONS = ("torch", "transformers")


@dataclass(kw_only=True)
class Options:
    """Flags of the benchmark. Raises OptionError."""

    shards: str = flag("shards", "cache to take rows from")
    model: str | None = flag(None, "student; default: the cache's reference")
    attention: list[str] = flag(["sdpa", "eager"], "as in --attn_implementation")
    micro_batch_sizes: list[int] = flag([4, 8], "rows of a micro-batch")
    global_batch_size: int = flag(128, "rows that are sorted by length together")
    micro_batches: int = flag(6, "how many of an epoch to run")
    out: str = flag("runs/padding", "folder for the results")

    def __post_init__(self) -> None:
        require_at_least(self, 1, ["global_batch_size", "micro_batches"])


def rows_of(options: Options, data: CachedResponses, size: int) -> list:
    """Micro-batches of an epoch, spread over it."""
    accumulation = max(1, options.global_batch_size // size)
    sampler = GlobalBatchSampler(
        data.lengths, seed=0, micro_batch_size=size, accumulation_steps=accumulation, world_size=1, rank=0
    )
    batches = list(sampler)
    return [batches[number] for number in spread(len(batches), options.micro_batches)]


def step(model: torch.nn.Module, forward: DistillForward, inputs: dict) -> tuple[float, float]:
    """Seconds of the processor, and the loss."""
    model.zero_grad()
    began = time.process_time()
    loss = forward(
        input_ids=inputs["input_ids"],
        attention_mask=inputs.get("attention_mask"),
        position=inputs["position"],
        packed=inputs.get("packed"),
        targets=SparseTargets(inputs),
    )["loss_sum"]
    loss.backward()
    return time.process_time() - began, float(loss.detach())


def measure(options: Options, attention: str, size: int) -> dict[str, float]:
    spec = TeacherSpec()
    data = CachedResponses([options.shards]).for_teacher(spec)
    source = resolve(options.model) if options.model else reference_of(ShardCache(options.shards))
    model = load_model(source, dtype="float32", attn_implementation=attention).train()
    vocabulary_size = data.caches[0].plan.vocabulary_size
    forward = DistillForward(model, vocabulary_size=vocabulary_size, divergence=Divergence(), chunk_positions=256)
    seconds = {False: 0.0, True: 0.0}
    tokens, slots, ratios, off = 0, 0, [], 0.0
    for number, items in enumerate(rows_of(options, data, size)):
        batch = data.__getitems__(items)
        found = {}
        for free in (False, True) if number % 2 else (True, False):  # each first as often as the other
            given = {"spec": spec, "nodes": data.nodes, "reduction": "sequence", "pad_token_id": 0}
            inputs = Collator(**given, padding_free=free)(batch)
            if number == 0:
                step(model, forward, inputs)
            found[free] = step(model, forward, inputs)
            seconds[free] += found[free][0]
            if not free:
                slots += inputs["input_ids"].numel()
        tokens += sum(len(row.input_ids) for row in batch.tokens)
        ratios.append(found[False][0] / found[True][0])
        off = max(off, abs(found[True][1] - found[False][1]) / abs(found[False][1]))
    return {
        "padding": 1 - tokens / slots,
        "padded": tokens / seconds[False],
        "free": tokens / seconds[True],
        "ratio": median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "loss_off": off,
        "mean_length": float(np.mean(data.lengths)),
    }


def text_of(options: Options, found: dict[str, dict[str, float]], command: str) -> str:
    rows = [
        f"| {name} | {run['padding']:.1%} | {run['padded']:.0f} | {run['free']:.0f} | {run['ratio']:.2f} "
        f"({run['lowest']:.2f} to {run['highest']:.2f}) | {run['loss_off']:.1e} |"
        for name, run in found.items()
    ]
    length = next(iter(found.values()))["mean_length"]
    return "\n".join([
        f"`{command}`", "",
        f"{processor()}, {torch.get_num_threads()} thread(s); {versions(VERSIONS)}. {options.micro_batches} "
        f"micro-batches in the order of a training, rows of {length:.0f} tokens on average; tokens without padding, "
        "a second of the processor.", "",
        "| attention, rows | padding | padded, tokens/s | without, tokens/s | speed without to padded, median (range) "
        "| largest difference of a loss |",
        "|---|--:|--:|--:|--:|--:|",
        *rows,
    ])  # fmt: skip


def run(options: Options, command: str) -> str:
    """Measure all and write results.json and results.md; the text. Raises AlignDistilError."""
    found = {}
    for attention in options.attention:
        for size in options.micro_batch_sizes:
            found[f"{attention}, {size}"] = measure(options, attention, size)
            print(f"{attention}, {size}: {found[f'{attention}, {size}']}", flush=True)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(found, indent=1))
    text = text_of(options, found, command)
    (out / "results.md").write_text(text + "\n")
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(Options, "benchmarks.padding", __doc__, arguments)
    quiet()
    print(run(options, command))


if __name__ == "__main__":
    run_command(main)
