"""Figures of `search_quality.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito; random is grey, what the curves show has colours, the table has the rest.
COLOURS = {
    "random": "#777777", "TPE": "#0072B2", "random + ASHA": "#E69F00", "TPE + ASHA": "#009E73",
    "TPE + median": "#CC79A7", "CMA-ES": "#D55E00", "QMC": "#56B4E9", "NSGA-II": "#C9B400",
    "GP": "#882255", "GP + ASHA": "#332288",
}  # fmt: skip
DRAWN = ("random", "TPE", "GP", "TPE + ASHA", "GP + ASHA")


def draw(record: Mapping[str, Any], folder: Path) -> None:
    """`search-quality-curves.png` and `search-quality-compute.png`."""
    curves(record, folder / "search-quality-curves.png")
    compute(record, folder / "search-quality-compute.png")


def _panels(count: int) -> tuple[Any, list[Any]]:
    """One a scene, side by side."""
    figure, panels = plt.subplots(1, count, figsize=(5 + 3 * count, 4.5), sharex=True, sharey=True, squeeze=False,
                                  constrained_layout=True)  # fmt: skip
    return figure, list(panels.flat)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def curves(record: Mapping[str, Any], path: Path) -> None:
    """Best so far against compute: mean over seeds and its 95 % interval."""
    scenes = record["scenes"]
    figure, panels = _panels(len(scenes))
    for axes, scene in zip(panels, scenes.values(), strict=True):
        for method in [method for method in DRAWN if method in scene["methods"]]:
            curve, colour = scene["methods"][method]["curve"], COLOURS[method]
            axes.plot(scene["compute"], [100 * v for v in curve["mean"]], color=colour, label=method)
            low, high = ([100 * v for v in curve[end]] for end in ("low", "high"))
            axes.fill_between(scene["compute"], low, high, color=colour, alpha=0.2, linewidth=0)
        axes.axhline(100 * record["grid"]["best"], color="black", linestyle=":", linewidth=1)
        axes.set(title=scene["title"], xlim=(0, None))
        axes.title.set_fontsize(10)
        _plain(axes)
    start = min(scene["methods"][m]["curve"]["mean"][6] for scene in scenes.values() for m in scene["methods"])
    figure.supxlabel("compute, in full-length trials", fontsize=10)
    figure.supylabel("robust accuracy of the best trial so far, %", fontsize=10)
    panels[0].set(ylim=(100 * start - 1, None))
    panels[0].annotate("best of the grid", (1, 100 * record["grid"]["best"]), xytext=(2, -4), va="top", fontsize=8,
                     textcoords="offset points")  # fmt: skip
    panels[0].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def compute(record: Mapping[str, Any], path: Path) -> None:
    """Bars: compute until half of the searches have what random search has at the end."""
    scenes = record["scenes"]
    methods = list(next(iter(scenes.values()))["methods"])
    figure, panels = _panels(len(scenes))
    for axes, scene in zip(panels, scenes.values(), strict=True):
        most = scene["budgets"][-1]
        for place, method in enumerate(reversed(methods)):
            found = scene["methods"][method]["reach"]
            median, low, high = (most if found[key] is None else found[key] for key in ("median", "low", "high"))
            open_ended = found["median"] is None
            axes.barh(place, median, color="white" if open_ended else COLOURS[method], edgecolor=COLOURS[method],
                      hatch="//" if open_ended else None, height=0.65)  # fmt: skip
            axes.plot([low, high], [place, place], color="black", linewidth=1.2)
            label = f"> {most}" if open_ended else f"{median:.0f}"
            axes.annotate(label, (max(median, high), place), xytext=(4, 0), textcoords="offset points", va="center")
        axes.set(title=scene["title"], xlim=(0, most * 1.15))
        axes.title.set_fontsize(10)
        axes.set_yticks(range(len(methods)), list(reversed(methods)))
        _plain(axes)
    figure.supxlabel("compute, in full-length trials", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)
