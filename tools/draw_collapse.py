"""Draws the figure of the README from the two runs of docs/tutorial.md: what the loss shows, and what features show.

.venv/bin/python tools/draw_collapse.py runs/mae runs/umae
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from mrp.monitor.metrics import METRICS, read_lines

OUT = Path(__file__).resolve().parent.parent / "docs" / "images"
CURVES = {
    "reconstruction loss": ("reconstruction", "falls alike", (0.0, 1.05)),
    "rank (RankMe)": ("features/rank_me", "directions in use", (0.0, None)),
    "uniformity": ("features/uniformity", "1: all point one way", (0.0, 1.05)),
}
STYLES = {"MAE": {"marker": "o", "linestyle": "-"}, "U-MAE": {"marker": "s", "linestyle": "--"}}
SCHEMES = {
    "collapse.png": ("#1f2328", "#ffffff", ("#b35900", "#0969da")),
    "collapse-dark.png": ("#e6edf3", "#0d1117", ("#f0883e", "#58a6ff")),
}


def draw(runs: list[Path], name: str) -> None:
    """Writes the figure in one scheme."""
    ink, paper, colours = SCHEMES[name]
    with plt.rc_context({"text.color": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink}):
        figure, axes = plt.subplots(1, len(CURVES), figsize=(9.6, 2.7), facecolor=paper, layout="constrained")
        for axis, (title, (key, finding, limits)) in zip(axes, CURVES.items(), strict=True):
            for run, colour, (label, style) in zip(runs, colours, STYLES.items(), strict=True):
                lines = [line for line in read_lines(run / METRICS) if key in line]
                epochs, values = [line["epoch"] for line in lines], [line[key] for line in lines]
                axis.plot(epochs, values, color=colour, markersize=3, label=label, **style)
            axis.set(facecolor=paper, xlabel="epoch", ylim=limits)
            axis.set_title(f"{title}: {finding}", fontsize=9, color=ink)
            axis.spines[["top", "right"]].set_visible(False)
            axis.spines[["left", "bottom"]].set_color(ink)
        axes[0].legend(frameon=False, labelcolor=ink)
        figure.savefig(OUT / name, dpi=140)
        plt.close(figure)


if __name__ == "__main__":
    for scheme in SCHEMES:
        draw([Path(word) for word in sys.argv[1:]], scheme)
        print(f"written to {OUT / scheme}")
