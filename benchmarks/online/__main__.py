"""python -m benchmarks.online: trains the same student from a cache and with live models; two tables and a picture.

Without flags it makes its own small trio. Writes results.json, results.md and online.svg into --out.
"""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.command import parse, quiet
from benchmarks.online.experiment import Bench, Recipe, compare, summary
from benchmarks.online.options import OnlineOptions
from benchmarks.online.report import section
from benchmarks.online.trio import Trio, make_trio
from benchmarks.plots import require_matplotlib
from precompute.build.build import build
from precompute.build.options import BuildOptions
from precompute.tokens.corpus import load_corpus
from precompute.tokens.tokenized import TokenizedResponse
from shards import ShardCache, TeacherSpec
from shards.cli.command import run_command
from shards.errors import DataError

RESULTS_FILE, REPORT_FILE, PLOT_FILE = "results.json", "results.md", "online.svg"


def run(options: OnlineOptions) -> dict[str, Any]:
    """Models, cache, and three runs for every teacher; results.json is written after each, and its content returned.

    Raises AlignDistilError.
    """
    out = Path(options.out)
    trio = options.trio or _fresh_trio(out)
    build(build_options(trio, options))
    bench = load_bench(trio, options)
    recipe = Recipe(
        **{name: getattr(options, name) for name in ("steps", "batch_size", "learning_rate", "measure_every")},
        seed=0,
        other_seed=1,
    )
    presets: dict[str, Any] = {}
    results = {"settings": settings(bench, options), "presets": presets}
    for preset in options.presets:
        started = time.perf_counter()
        presets[preset] = summary(compare(bench, TeacherSpec.preset(preset), recipe))
        (out / RESULTS_FILE).write_text(json.dumps(results, indent=1) + "\n")
        print(f"{preset}: three runs in {time.perf_counter() - started:.0f} s", flush=True)
    return results


def build_options(trio: Trio, options: OnlineOptions) -> BuildOptions:
    """The build's defaults: chosen responses, both pairs of the presets, an adaptive support."""
    return BuildOptions(
        models=[f"{role}={folder}" for role, folder in trio.models.items()],
        data=str(trio.data),
        out=str(Path(options.out) / "cache"),
        limit=options.rows,
        max_length=options.max_length,
        top_k=options.top_k,
        dtype="float32",
    )


def load_bench(trio: Trio, options: OnlineOptions) -> Bench:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {
        role: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False).to(device)
        for role, folder in trio.models.items()
    }
    return Bench(
        models=models,
        student=trio.models["reference"],
        cache=Path(options.out) / "cache",
        held_out=held_out_responses(trio, options),
        scratch=Path(options.out) / "scratch",
    )


def held_out_responses(trio: Trio, options: OnlineOptions) -> list[TokenizedResponse]:
    """Chosen responses of rows that no student is trained on. Raises DataError if the file has none."""
    first = options.first_held_out_row
    corpus = load_corpus(
        str(trio.held_out),
        tokenizer=AutoTokenizer.from_pretrained(trio.models["reference"]),
        max_length=options.max_length,
        limit=first + options.held_out_rows,
    )
    rows = [response for response in corpus.responses if response.pair_id >= first]
    if not rows:
        raise DataError(f"{trio.held_out}: expected a row after the first {first} to measure on, found none")
    return rows


def settings(bench: Bench, options: OnlineOptions) -> dict[str, Any]:
    """The settings of the experiment, for the report."""
    cache = ShardCache(bench.cache)
    reference = bench.models["reference"]
    entries = sum(response.scores.num_entries for response in cache.read(range(len(cache))))
    cuda = reference.device.type == "cuda"
    return {
        "parameters": reference.num_parameters(),
        "vocabulary_size": cache.plan.vocabulary_size,
        "support_mean": entries / cache.plan.positions,
        "responses": len(cache),
        "positions": cache.plan.positions,
        "held_out_responses": len(bench.held_out),
        "held_out_positions": sum(int(response.loss_mask.sum()) for response in bench.held_out),
        **{name: getattr(options, name) for name in ("steps", "batch_size", "learning_rate", "max_length")},
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
    }


def write_report(results: dict[str, Any], out: Path) -> None:
    """Write results.md and the picture."""
    from benchmarks.online.plot import draw

    (out / REPORT_FILE).write_text(section(results, PLOT_FILE))
    draw(results, out / PLOT_FILE)


def _fresh_trio(out: Path) -> Trio:
    """A small trio that replaces an earlier one, and the cache built from that."""
    for folder in ("trio", "cache"):
        shutil.rmtree(out / folder, ignore_errors=True)
    return make_trio(out / "trio")


def main(arguments: Sequence[str] | None = None) -> None:
    options, _ = parse(OnlineOptions, "benchmarks.online", __doc__, arguments)
    require_matplotlib()
    quiet()
    results = run(options)
    write_report(results, Path(options.out))
    print(f"\n{section(results)}\n{Path(options.out) / RESULTS_FILE}, {REPORT_FILE}, {PLOT_FILE}: written")


if __name__ == "__main__":
    run_command(main)
