"""The loss curve: what it reads, and that a picture comes out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrp.report.plots import loss_curve, smoothed


def write(path: Path, losses: list[float | str]) -> Path:
    lines = [
        {"step": 10 * i, "loss": loss, "lr": 1e-4, "epoch": i / 2, "images_per_second": 7.0, "grad_norm": 1.0}
        for i, loss in enumerate(losses)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("losses", [[2.0], [2.0, "nan", 1.0, "inf"], [1 / (1 + i) for i in range(500)]])
def test_a_picture_comes_out(tmp_path: Path, losses: list[float | str]) -> None:
    loss_curve(write(tmp_path / "metrics.jsonl", losses), tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        assert image.format == "PNG"
        assert image.size == (960, 600)
        assert len(image.convert("L").getcolors()) > 10


def test_nothing_to_draw_yet(tmp_path: Path) -> None:
    for losses in ([], ["nan"]):
        with pytest.raises(ValueError, match="no loss has been written yet"):
            loss_curve(write(tmp_path / "metrics.jsonl", losses), tmp_path / "loss.png")


@pytest.mark.parametrize("count", [1, 2, 39, 41, 200])
def test_smoothing_is_a_centred_mean(count: int) -> None:
    values = np.random.default_rng(0).normal(size=count)
    reach = -(-count // 40)
    expected = [values[max(0, i - reach) : i + reach + 1].mean() for i in range(count)]
    np.testing.assert_allclose(smoothed(values), expected)
