"""Curves of certified runs, as a picture, and what all our pictures look like."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mrp.certify import Gap

FAINT = "#a9c7db"
STYLES = ("-", "--", "-.", ":")


def gap_curves(gaps: Sequence[Gap], size: int, out_path: str | Path) -> None:
    """Draws how far each way of computing lies from the reference, as a share of what its seeds differ by, as a PNG."""
    steps = size * (np.arange(len(gaps[0].spread)) + 0.5)
    outside = [gap.way for gap in gaps if not gap.within]
    figure = Figure(figsize=(8, 4), dpi=120, layout="constrained")
    panel = figure.subplots()
    panel.axhspan(-1, 1, color=FAINT, alpha=0.35, linewidth=0, label="the seeds' spread")
    for gap, style in zip(gaps, cycle(STYLES), strict=False):
        share = np.array(gap.gaps) / np.array(gap.spread)
        panel.plot(steps, share, style, linewidth=1.8, marker=".", label=gap.way)
    verdict = (
        f"{', '.join(outside)}: outside the seeds' spread" if outside else "every way stays within the seeds' spread"
    )
    panel.set_title(verdict[0].upper() + verdict[1:], loc="left", fontsize=11)
    panel.set(xlabel="step", ylabel="gap to eager fp32 / spread of its seeds")
    panel.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    tidy(panel)
    panel.margins(x=0.01)
    figure.savefig(out_path, format="png")


def tidy(panel: Axes) -> None:
    """Draws a light grid behind the data, and removes the frame."""
    panel.grid(color="#e6e6e6", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
