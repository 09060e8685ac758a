"""python -m benchmarks.fidelity: compares sparse, cached teachers with live ones; tables and pictures.

Without flags it makes its own small trio. Writes results.json, fidelity.md and pictures into --out; with --page
docs/fidelity.md it also writes the page and its pictures there.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.command import parse, quiet
from benchmarks.fidelity import measure
from benchmarks.fidelity.dense import Dense, load_roles, read_rows, score
from benchmarks.fidelity.learned import judged
from benchmarks.fidelity.options import FidelityOptions, trios_or_toy
from benchmarks.fidelity.report import page
from benchmarks.fidelity.student import student_angles
from benchmarks.fidelity.supports import SUPPORTS
from benchmarks.online.__main__ import run as run_online
from benchmarks.online.options import OnlineOptions
from benchmarks.plots import require_matplotlib
from precompute.tokens.tokenized import TokenizedResponse
from shards import TeacherSpec
from shards.cli.command import run_command
from shards.format.schema import Role


def run(options: FidelityOptions, command: str) -> dict[str, Any]:
    """All measurements of all trios; results.json is written after each. Raises AlignDistilError."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    trios, data = trios_or_toy(options.folders, options.data, out)
    results: dict[str, Any] = {"settings": {"command": command}, "trios": {}}
    for name, folders in trios.items():
        results["trios"][name] = measure_trio(name, folders, data, options)
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return results


def measure_trio(name: str, folders: Mapping[Role, Path], data: str, options: FidelityOptions) -> dict[str, Any]:
    rows = read_rows(folders, data, rows=options.rows, max_length=options.max_length)
    models = load_roles(folders, "float32")
    dense = score(models, rows, options.positions)
    top_k = min(options.top_k, dense.vocabulary_size // 4)
    scores = measure.default_scores(dense, top_k)
    few = dense.take(torch.linspace(0, len(dense) - 1, min(options.frontier_positions, len(dense))).round().long())
    narrow = score(load_roles(folders, "bfloat16"), rows, options.positions)
    steps = {
        "teachers": lambda: measure.cases(dense, scores, measure.GOAL_CASES),
        "presets": lambda: measure.cases(dense, scores, measure.PRESET_CASES),
        "frontier": lambda: list(measure.frontier(few, measure.SIZES, list(SUPPORTS))),
        "between": lambda: measure.between_nodes(dense, scores),
        "divergences": lambda: measure.divergences(dense, scores),
        "entropy": lambda: measure.by_entropy(dense, scores),
        "bf16": lambda: [
            measure.row(
                "bf16 bodies against float32 ones",
                measure.compare_case(dense, measure.default_scores(narrow, top_k), TeacherSpec()),
            )
        ],
        "parameters": lambda: measure.parameter_angles(models, rows[: options.parameter_rows], top_k),
        "student": lambda: student(folders, rows[: options.student_rows], top_k),
        "learned": lambda: learned(name, folders, data, options, top_k),
        "online": lambda: online(name, folders, data, options),
    }
    found: dict[str, Any] = {"facts": facts(dense, models, top_k)}
    with tqdm(steps.items(), desc=f"trio {name}", unit="table") as bar:
        for step, work in bar:
            bar.set_postfix_str(step)
            started = time.perf_counter()
            found[step] = work()
            found["facts"]["seconds"][step] = round(time.perf_counter() - started, 1)
    return found


def student(folders: Mapping[Role, Path], rows: Sequence[TokenizedResponse], top_k: int) -> list[measure.Row]:
    """Angles of a student's gradient in half precision; empty without rows."""
    if not rows:
        return []
    dense = score(load_roles(folders, "float32"), rows, sum(int(row.loss_mask.sum()) for row in rows))
    alone = load_roles({"reference": folders["reference"]}, "float32")["reference"].model  # without adapters of others
    return student_angles(alone.requires_grad_(True), rows, measure.default_scores(dense, top_k), dense.vocabulary_size)


def learned(
    name: str, folders: Mapping[Role, Path], data: str, options: FidelityOptions, top_k: int
) -> dict[str, Any] | None:
    if not options.pairs:
        return None
    cache = Path(options.out) / f"pairs-{name}"
    return judged(folders, data, cache, pairs=options.pairs, max_length=options.max_length, top_k=top_k)


def online(name: str, folders: Mapping[Role, Path], data: str, options: FidelityOptions) -> dict[str, Any] | None:
    """`python -m benchmarks.online` on the same trio and data, with its defaults but for steps and learning rate."""
    if not options.online_steps:
        return None
    return run_online(
        OnlineOptions(
            models=[f"{role}={folder}" for role, folder in folders.items()],
            data=data,
            steps=options.online_steps,
            learning_rate=options.online_learning_rate,
            out=str(Path(options.out) / f"online-{name}"),
        )
    )


def facts(dense: Dense, models: Mapping[Role, Any], top_k: int) -> dict[str, Any]:
    distance_N = (dense.logprobs["dpo"].exp() - dense.logprobs["reverse"].exp()).abs().sum(-1)
    return {
        "parameters": models["reference"].model.num_parameters(),
        "vocabulary_size": dense.vocabulary_size,
        "positions": len(dense),
        "top_k": top_k,
        "entropy": float(dense.entropy().mean()),
        "l1_distance": distance_N.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist(),
        "seconds": {},
    }


def write(results: dict[str, Any], report: Path) -> None:
    """Write the page, and the pictures of every trio into a folder of the same name beside it."""
    from benchmarks.fidelity.plot import draw
    from benchmarks.online.plot import draw as draw_online

    pictures: dict[str, dict[str, str]] = {}
    report.parent.mkdir(parents=True, exist_ok=True)
    for name, trio in results["trios"].items():
        picture = report.with_suffix("") / f"frontier-{name}.svg"
        picture.parent.mkdir(exist_ok=True)
        draw(trio["frontier"], picture, title=f"trio {name}: worst of gains 2, 10 and 20 and of all stages")
        pictures[name] = {"frontier": f"{picture.parent.name}/{picture.name}"}
        if trio["online"]:
            draw_online(trio["online"], picture.with_name(f"online-{name}.svg"))
            pictures[name]["online"] = f"{picture.parent.name}/online-{name}.svg"
    report.write_text(page(results, pictures))


def main(arguments: Sequence[str] | None = None) -> None:
    options, command = parse(FidelityOptions, "benchmarks.fidelity", __doc__, arguments)
    require_matplotlib()
    quiet()
    results = run(options, command)
    write(results, Path(options.out) / "fidelity.md")
    if options.page is not None:
        write(results, Path(options.page))
    print(f"{options.out}: results.json, fidelity.md and pictures are written")


if __name__ == "__main__":
    run_command(main)
