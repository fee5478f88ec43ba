"""The figure of `search_quality.py`."""

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


def draw(landscapes: Mapping[str, tuple[float, Mapping[str, Any]]], path: Path) -> None:
    """Best so far against compute, one panel a landscape: mean over seeds and its 95 % interval.

    `landscapes`: name -> the best value that was measured, and what `summarise` says.
    """
    figure, panels = plt.subplots(1, len(landscapes), figsize=(2 + 4.5 * len(landscapes), 4.5), sharex=True,
                                  squeeze=False, constrained_layout=True)  # fmt: skip
    for axes, (name, (best, found)) in zip(panels.flat, landscapes.items(), strict=True):
        drawn = [method for method in DRAWN if method in found["methods"]]
        for method in drawn:
            curve, colour = found["methods"][method]["curve"], COLOURS[method]
            axes.plot(found["compute"], [100 * v for v in curve["mean"]], color=colour, label=method)
            low, high = ([100 * v for v in curve[end]] for end in ("low", "high"))
            axes.fill_between(found["compute"], low, high, color=colour, alpha=0.2, linewidth=0)
        axes.axhline(100 * best, color="black", linestyle=":", linewidth=1)
        axes.annotate("best measured setting", (1, 100 * best), xytext=(2, -4), va="top", fontsize=8,
                      textcoords="offset points")  # fmt: skip
        start = min(found["methods"][method]["curve"]["mean"][6] for method in drawn)
        axes.set(title=name, xlim=(0, None), ylim=(100 * start - 1, None))
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.supxlabel("compute, in full-length trials", fontsize=10)
    figure.supylabel("robust accuracy of the best trial so far, %", fontsize=10)
    panels.flat[0].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)
