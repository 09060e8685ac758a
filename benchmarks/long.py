"""python -m benchmarks.long: the memory of a training step on one response of up to 32,768 tokens.

Each size runs in a process of its own: the whole step of a small Llama, with and without gradient checkpointing, and
the output layer and loss alone. The peak is of the resident set, less what was resident before the step.

Dimensions: N response positions, K kept tokens of a position, V vocabulary, H hidden size.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.command import parse, quiet
from benchmarks.loading.opening import resident_bytes
from benchmarks.machine import processor, versions
from benchmarks.plots import require_matplotlib, save_svg
from shards import Divergence
from shards.cli.command import flag, require_at_least, require_choices, run_command
from shards.errors import AlignDistilError
from student.loss.forward import DistillForward
from student.loss.rows import padded
from student.loss.sparse import SparseTargets

VERSIONS = ("torch", "transformers")
PROMPT_TOKENS = 16
WAYS = {"step": "whole step", "checkpointed": "with --gradient_checkpointing", "loss": "output layer and loss alone"}


@dataclass(kw_only=True)
class Options:
    """Flags of the benchmark. Raises OptionError."""

    lengths: list[int] = flag([4096, 8192, 16384, 32768], "tokens of the response")
    ways: list[str] = flag(list(WAYS), f"what to run: {', '.join(WAYS)}")
    vocabulary: int = flag(32000, "V")
    hidden_size: int = flag(256, "H")
    layers: int = flag(4, "layers")
    kept: int = flag(64, "tokens kept a position")
    chunk_positions: int = flag(256, "positions with logits in memory at a time")
    one: bool = flag(False, "run the first length in the first way here, and print its figures as JSON")
    out: str = flag("runs/long", "folder for the results and the picture")
    svg: str | None = flag(None, "where to write the picture too")

    def __post_init__(self) -> None:
        require_choices(self)
        require_at_least(self, 1, ["vocabulary", "hidden_size", "layers", "kept", "chunk_positions"])


def random_targets(options: Options, positions: int) -> SparseTargets:
    """Targets with K random tokens of 0.95 of the mass at each position."""
    generator = np.random.default_rng(0)
    k, n = options.kept, positions
    first_N1 = generator.integers(0, options.vocabulary // k, (n, 1))
    ids_NK = (first_N1 + np.arange(k) * (options.vocabulary // k)).astype(np.int32)  # different ones, and rising
    shares_NK = generator.dirichlet(np.ones(k), n) * 0.95
    logprobs_M = np.log(shares_NK + 1e-9).astype(np.float32).ravel()
    tail_N = np.full(n, np.log(0.05), np.float32)
    ones_N = np.ones(n, np.float32)
    entries = {name: logprobs_M for name in ("teacher_logprobs", "reference_logprobs", "dpo_logprobs", "reward")}
    each = {name: tail_N for name in ("teacher_tail", "reference_tail", "dpo_tail")}
    each |= {name: ones_N for name in ("dpo_reward", "strength", "tail_bound", "counts")}
    arrays = entries | each | {"coefficient": ones_N / n, "support_ids": ids_NK.ravel()}
    arrays["support_count"] = np.full(n, k, np.int64)
    return SparseTargets({name: torch.from_numpy(values) for name, values in arrays.items()})


def measure_one(options: Options, way: str, length: int) -> dict[str, float]:
    """Peak bytes and seconds of one step, or of its loss alone."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden_size,
        intermediate_size=options.hidden_size * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.hidden_size // 64),
        max_position_embeddings=length + PROMPT_TOKENS,
    )
    model = LlamaForCausalLM(config).train()
    if way == "checkpointed":
        model.activation_checkpointing_enable()
    forward = DistillForward(
        model,
        vocabulary_size=options.vocabulary,
        divergence=Divergence(),
        chunk_positions=options.chunk_positions,
    )
    targets = random_targets(options, length)
    mask = np.arange(length + PROMPT_TOKENS) >= PROMPT_TOKENS
    row = SimpleNamespace(input_ids=np.random.default_rng(1).integers(0, options.vocabulary, len(mask)), loss_mask=mask)
    inputs = padded([row], 0)
    hidden_NH = torch.randn(length, options.hidden_size, requires_grad=True)
    before = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    began = time.perf_counter()
    if way == "loss":
        forward.distill(hidden_NH, targets)["loss_sum"].backward()
    else:
        forward(**inputs, targets=targets)["loss_sum"].backward()
    seconds = time.perf_counter() - began
    return {"peak_bytes": resident_bytes("VmHWM") - before, "seconds": seconds}


def measure(options: Options, way: str, length: int) -> dict[str, float]:
    """measure_one in a process of its own. Raises AlignDistilError."""
    given = asdict(replace(options, lengths=[length], ways=[way], one=True, svg=None))
    flags = []
    for name, value in given.items():
        if value is not None:
            flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    command = [sys.executable, "-m", "benchmarks.long", *flags]
    # glibc then gives every tensor of 1 MB or more back at once: the peak is of tensors in use, not of a torn heap
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no output"]
        raise AlignDistilError(f"{way} at {length} tokens: expected exit code 0, got {done.returncode}: {last[0]}")
    return json.loads(done.stdout.splitlines()[-1])


def text_of(options: Options, found: dict[str, dict[int, dict[str, float]]], command: str) -> str:
    def cell(way: str, length: int) -> str:
        return f"{found[way][length]['peak_bytes'] / 1e6:,.0f} MB"

    rows = [
        f"| {length:,} | {' | '.join(cell(way, length) for way in options.ways)} | "
        f"{4 * length * options.vocabulary / 1e6:,.0f} MB |"
        for length in options.lengths
    ]
    names = " | ".join(WAYS[way] for way in options.ways)
    return "\n".join([
        f"`{command}`", "",
        f"{processor()}, {torch.get_num_threads()} thread(s); {versions(VERSIONS)}. "
        f"A Llama of {options.layers} layers, hidden size {options.hidden_size}, V = {options.vocabulary:,}, float32, "
        f"sdpa attention; one response, {options.kept} tokens kept a position, "
        f"{options.chunk_positions} positions at a time; no optimizer.", "",
        f"| tokens of the response | {names} | one tensor of all logits, for comparison |",
        "|--:|" + "--:|" * (len(options.ways) + 1),
        *rows,
    ])  # fmt: skip


def draw(options: Options, found: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.5, 4))
    for way in options.ways:
        axes.plot(options.lengths, [found[way][n]["peak_bytes"] / 1e6 for n in options.lengths], "o-", label=WAYS[way])
    logits = [4 * n * options.vocabulary / 1e6 for n in options.lengths]
    axes.plot(options.lengths, logits, "k:", label="one tensor of all logits (T, V)")
    axes.set(xscale="log", yscale="log", xlabel="tokens of the response", ylabel="peak memory of a step, MB")
    axes.set_xticks(options.lengths, [f"{n:,}" for n in options.lengths])
    axes.minorticks_off()
    axes.legend()
    figure.tight_layout()
    save_svg(figure, path, salt="long")
    pyplot.close(figure)


def run(options: Options, command: str) -> str:
    """Measure all, write results.json, results.md and the picture; the text. Raises AlignDistilError."""
    require_matplotlib()
    found: dict[str, dict[int, dict[str, float]]] = {way: {} for way in options.ways}
    for way in options.ways:
        for length in options.lengths:
            found[way][length] = measure(options, way, length)
            print(f"{way}, {length:,} tokens: {found[way][length]}", flush=True)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(found, indent=1))
    for path in (out / "long.svg", *([Path(options.svg)] if options.svg else [])):
        draw(options, found, path)
    text = text_of(options, found, command)
    (out / "results.md").write_text(text + "\n")
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(Options, "benchmarks.long", __doc__, arguments)
    quiet()
    if options.one:
        print(json.dumps(measure_one(options, options.ways[0], options.lengths[0])))
    else:
        print(run(options, command))


if __name__ == "__main__":
    run_command(main)
