"""python -m benchmarks.fidelity: compares sparse, cached teachers with live ones; tables and pictures.

Without flags it makes its own small trio. Writes results.json, fidelity.md and pictures into --out; with --page
docs/fidelity.md it also writes the page and its pictures there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.command import parse, quiet
from benchmarks.fidelity import dtypes, measure
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
from shards.cli.command import run_command
from shards.format.schema import Role


def run(options: FidelityOptions, command: str) -> dict[str, Any]:
    """All tables of all trios, with those of --join; results.json is written after each. Raises AlignDistilError."""
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    trios, data = trios_or_toy(options.folders, options.data, out)
    results = joined([json.loads(Path(file).read_text()) for file in options.join])
    for name, folders in trios.items():
        trio = results["trios"].setdefault(name, {"commands": {}})
        trio["left_out"] = trio.get("left_out", {}) | options.reasons
        for table, found in measure_trio(name, folders, data, options):
            trio[table] = found
            trio["commands"][table] = command
            (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return results


def joined(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The tables of several runs; those of a later one replace those of an earlier one."""
    trios: dict[str, Any] = {}
    for run in results:
        for name, trio in run["trios"].items():
            mine = trios.setdefault(name, {"commands": {}, "left_out": {}})
            nested = {key: mine[key] | trio[key] for key in ("commands", "left_out")}
            mine |= trio | nested
    return {"trios": trios}


def measure_trio(
    name: str, folders: Mapping[Role, Path], data: str, options: FidelityOptions
) -> Iterator[tuple[str, Any]]:
    """("facts", what the trio is), then every wanted table with its name."""
    rows = read_rows(folders, data, rows=options.rows, max_length=options.max_length)
    models = load_roles(folders, "float32")
    dense = score(models, rows, options.positions)
    top_k = min(options.top_k, dense.vocabulary_size // 4)
    scores = measure.default_scores(dense, top_k)
    few = dense.take(torch.linspace(0, len(dense) - 1, min(options.frontier_positions, len(dense))).round().long())
    steps = {
        "teachers": lambda: measure.cases(dense, scores, measure.GOAL_CASES),
        "presets": lambda: measure.cases(dense, scores, measure.PRESET_CASES),
        "frontier": lambda: list(measure.frontier(few, measure.SIZES, list(SUPPORTS))),
        "between": lambda: measure.between_nodes(dense, scores),
        "divergences": lambda: measure.divergences(dense, scores),
        "entropy": lambda: measure.by_entropy(dense, scores),
        "dtypes": lambda: dtypes.table(dense, folders, rows, options.positions, top_k),
        "parameters": lambda: measure.parameter_angles(folders, models, rows[: options.parameter_rows], top_k),
        "student": lambda: student(folders, rows[: options.student_rows], top_k),
        "learned": lambda: learned(name, folders, data, options, top_k),
        "online": lambda: online(name, folders, data, options),
    }
    yield "facts", facts(dense, models, top_k)
    with tqdm(options.tables, desc=f"trio {name}", unit="table") as bar:
        for step in bar:
            bar.set_postfix_str(step)
            yield step, steps[step]()


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
    """`python -m benchmarks.online` on the same trio and data."""
    if not options.online_steps:
        return None
    return run_online(
        OnlineOptions(
            models=[f"{role}={folder}" for role, folder in folders.items()],
            data=data,
            steps=options.online_steps,
            learning_rate=options.online_learning_rate,
            batch_size=options.online_batch_size,
            presets=options.online_presets,
            max_length=options.online_length,
            rows=options.online_batch_size * options.online_steps,
            held_out_rows=options.online_held_out_rows,
            out=str(Path(options.out) / f"online-{name}"),
        )
    )


def facts(dense: Dense, models: Mapping[Role, Any], top_k: int) -> dict[str, Any]:
    named = models["reference"].model.named_parameters()  # of a base that roles share, with their adapters
    distance_N = (dense.logprobs["dpo"].exp() - dense.logprobs["reverse"].exp()).abs().sum(-1)
    return {
        "parameters": sum(p.numel() for name, p in named if ".lora_" not in name),
        "vocabulary_size": dense.vocabulary_size,
        "positions": len(dense),
        "top_k": top_k,
        "entropy": float(dense.entropy().mean()),
        "l1_distance": distance_N.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist(),
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
        pictures[name] = {}
        if "frontier" in trio:
            draw(trio["frontier"], picture, title=f"trio {name}: worst of gains 2, 10 and 20 and of all stages")
            pictures[name]["frontier"] = f"{picture.parent.name}/{picture.name}"
        if trio.get("online"):
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
