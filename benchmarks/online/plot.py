"""The picture: a column for every teacher, rows for loss, reward and KL to the reference, two lines in each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.online.report import NAMES
from benchmarks.plots import save_svg

UNITS = {"loss": "loss, nats", "expected_reward": "reward, nats", "kl_reference": "KL to the reference, nats"}
STYLES = {"online": ("-", 3.0, "tab:orange"), "offline": ("--", 1.2, "black")}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write the picture as SVG, the same bytes for the same results."""
    presets = results["presets"]
    figure = Figure(figsize=(2.6 * len(presets) + 0.6, 6.2), layout="constrained")
    axes = figure.subplots(len(NAMES), len(presets), sharex=True, squeeze=False)
    for column, (preset, entry) in enumerate(presets.items()):
        axes[0][column].set_title(preset, fontsize=10)
        axes[-1][column].set_xlabel("step")
        for row, name in enumerate(NAMES):
            axis = axes[row][column]
            axis.tick_params(labelsize=8)
            for side, (line, width, colour) in STYLES.items():
                values = entry["metrics"][name][side]
                axis.plot(entry["steps"], values, line, linewidth=width, color=colour, label=side)
    for row, name in enumerate(NAMES):
        axes[row][0].set_ylabel(UNITS[name], fontsize=9)
    axes[0][0].legend(fontsize=8, frameon=False)
    save_svg(figure, path, salt="online")
