"""Curves of a run, drawn from the metrics it has written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mrp.certify import Gap
from mrp.config import ConfigError
from mrp.monitor.metrics import read_lines

LINE = "#1f5f8b"
FAINT = "#a9c7db"
STYLES = ("-", "--", "-.", ":")


def loss_curve(metrics_path: str | Path, out_path: str | Path) -> None:
    """Draws loss and learning rate against the step as a PNG."""
    records = [line for line in read_lines(Path(metrics_path)) if "loss" in line]  # others tell of an evaluation only
    steps = np.array([record["step"] for record in records])
    losses = np.array([float(record["loss"]) for record in records])  # a non-finite loss is written as text
    finite = np.isfinite(losses)
    if not finite.any():
        raise ConfigError(f"{metrics_path}: no loss has been written yet; plot after the first log point")
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    smooth = smoothed(losses[finite])
    marker = "." if len(smooth) < 30 else ""  # a line of few points, or of one, would not be seen
    upper.plot(steps[finite], losses[finite], color=FAINT, linewidth=1, marker=marker, label="each log point")
    upper.plot(steps[finite], smooth, color=LINE, linewidth=2, label=f"smoothed, at the end {smooth[-1]:.4g}")
    upper.set_ylabel("loss")
    upper.legend(frameon=False)
    lower.plot(steps, [record["lr"] for record in records], color=LINE, linewidth=1.5, marker=marker)
    lower.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for panel in (upper, lower):
        _plain(panel)
    figure.savefig(out_path, format="png")


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
    _plain(panel)
    figure.savefig(out_path, format="png")


def _plain(panel: Any) -> None:
    panel.grid(color="#e6e6e6", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(x=0.01)


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the mean over a centred window of about a twentieth of the curve, which is narrower at its ends."""
    reach = math.ceil(len(values) / 40)
    window = np.ones(2 * reach + 1)
    return np.convolve(values, window)[reach:-reach] / np.convolve(np.ones_like(values), window)[reach:-reach]
