"""The few figures of each benchmark that its goals are about. Pure functions of its results.json."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.alignment.frontier import Interval
from benchmarks.alignment.summary import difference, methods_of
from benchmarks.building import report as building
from benchmarks.codec.codecs import OURS
from benchmarks.gpu import report as gpu
from benchmarks.loading import scale_report as scaling
from benchmarks.online import report as online
from benchmarks.step import report as step
from benchmarks.tokenizing import report as tokenizing
from benchmarks.weights.curves import known_gaps
from benchmarks.weights.report import text as interval_text

Results = Mapping[str, Any]


class Headline(NamedTuple):
    """what: the measured quantity; asked: the goal, empty if there is none."""

    what: str
    figure: str
    asked: str = ""


def of_loading(results: Results) -> list[Headline]:
    found = []
    for order in ("shuffled", "sequential"):
        rows = next(iter(results["caches"]))
        rate = results["whole"][f"{order}, {rows}"]["positions_per_cpu_second"]
        found.append(Headline(f"positions a second and core, {order}", f"{rate:,.0f}", "1,000,000 or more"))
    size = results["caches"][rows]["bytes_per_position"]
    found.append(Headline("bytes a position, synthetic cache", f"{size:.0f}"))
    return found + [
        Headline(what, f"{figure:.3g}", asked) for what, figure, asked, _ in scaling.figures(results["scale"])
    ]


def of_tokenizing(results: Results) -> list[Headline]:
    most = max(row["rows"] for row in results["rates"])
    found = [
        Headline(
            f"rate of tokenising {row['layout']} over encode_batch's, {most:,} rows",
            f"{tokenizing.ratio(row):.2f}",
            f"{tokenizing.GOAL:g} or more",
        )
        for row in results["rates"]
        if row["rows"] == most
    ]
    last = results["found"][-1]
    hashing = sum(last[part] for part in ("rows_sha256", "models"))
    what = f"seconds to see that {last['rows']:,} rows are built, hashing the inputs"
    return [*found, Headline(what, f"{last['build']:.2f}, {hashing:.2f}")]


def of_codec(results: Results) -> list[Headline]:
    found = []
    for name, trio in results["trios"].items():
        row = next(row for row in trio["codecs"] if row["name"] == OURS)
        worse = f"trio {name}, compact values: angle worse than exact values by"
        found.append(Headline(worse, f"{row['excess']:.2f}°", "0.1° or less"))
    large = results["synthetic"]
    what = f"bytes a position, a mean of {large['mean']:.0f} tokens, V = {large['vocabulary_size']:,}"
    return [*found, Headline(what, f"{sum(large['groups'].values()):.0f}", "160 or less")]


def of_building(results: Results) -> list[Headline]:
    ratio = building.whole(results["seconds"]) / results["seconds"]["floor"]
    goal = building.GOAL[results["settings"]["device_type"]]
    return [Headline("a build over three bare forward passes", f"{ratio:.2f}", f"{goal:g} or less")]


def of_step(results: Results) -> list[Headline]:
    found = step.figures(results)
    return [Headline(what, f"{found[name]:.3g}", f"{goal:g} or less") for name, (what, goal) in step.GOALS.items()]


def of_fidelity(results: Results) -> list[Headline]:
    found = []
    for name, trio in results["trios"].items():
        for row in trio["teachers"]:
            found.append(Headline(f"trio {name}, {row['name']}: worst angle", f"{max(row['angle']):.2f}°"))
    return found


def of_online(results: Results) -> list[Headline]:
    differences = [metric["difference"] for p in results["presets"].values() for metric in p["metrics"].values()]
    return [
        Headline(
            "largest difference of a final metric, cache against live", f"{max(differences):.2%}", f"{online.GOAL:.0%}"
        )
    ]


def of_alignment(results: Results) -> list[Headline]:
    def text(gap: Interval) -> str:
        return f"{gap.mean:+.2f}" + ("" if gap.half_width is None else f" ± {gap.half_width:.2f}")

    asked = "above 0 with its interval"
    return [
        Headline(f"true reward at 1 nat, {name} less dpo", text(difference(results, name, "dpo", [1])), asked)
        for name in methods_of(results)
        if name.startswith("aligndistil") and "itself" not in name
    ]


def of_gpu(results: Results) -> list[Headline]:
    """Every goal; a figure that was not measured says why."""
    dry, there = results["settings"]["dry_run"], results["settings"]["gpu"]
    empty = gpu.DRY if dry else (gpu.NO_GPU if there is None else "not measured")
    return [
        Headline(f"on a GPU: {gpu.GOALS[name][0]}", empty if dry or value is None else f"{value:.3g}", gpu.asked(name))
        for name, value in gpu.figures(results).items()
    ]


def of_weights(results: Results) -> list[Headline]:
    return [
        Headline(f"true reward, mean of KLs, {dtype} bodies, {rule}: less", interval_text(gap, sign=True))
        for dtype, rule, gap in known_gaps(results["known"])
    ]


def of_cluster(results: Results) -> list[Headline]:
    different = sum(row["different"] for row in results["rows"])
    return [Headline("files with other bytes, by torchrun, Ray, kills and stops", str(different), "0")]


def of_stores(results: Results) -> list[Headline]:
    floor, ours = results["results"]["http.client (floor)"], results["results"]["obstore"]
    return [Headline(f"{what}, obstore over http.client", f"{ours[what] / floor[what]:.2f}") for what in floor]


def of_scaling(results: Results) -> list[Headline]:
    settings = results["settings"]
    hours = {name: text for name, text, _ in results["paper"]["The build"]}["hours"]
    what = f"{settings['responses']:,} responses, {settings['gpus']} GPUs: computed hours of the build"
    return [Headline(what, hours)]


HEADLINES: dict[str, Callable[[Results], Sequence[Headline]]] = {
    "gpu": of_gpu,
    "loading": of_loading,
    "tokenizing": of_tokenizing,
    "codec": of_codec,
    "building": of_building,
    "cluster": of_cluster,
    "stores": of_stores,
    "scaling": of_scaling,
    "step": of_step,
    "fidelity": of_fidelity,
    "online": of_online,
    "alignment": of_alignment,
    "weights": of_weights,
}
"""Name of the benchmark -> its headlines, in the order in which they are run."""


def table(headlines: Mapping[str, Sequence[Headline]]) -> str:
    """All of them, as Markdown."""
    lines = ["| benchmark | | measured | asked for |", "|---|---|--:|--:|"]
    for name, found in headlines.items():
        lines += [f"| {name} | {line.what} | {line.figure} | {line.asked} |" for line in found]
    return "\n".join(lines)
