"""MaskFeat: histograms of gradients counted pixel by pixel, what they do not depend on, official checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mrp.build import build_step
from mrp.config import ConfigError
from mrp.interop import official, reading
from mrp.model import run_of, step_of
from mrp.objectives.maskfeat import oriented_gradients
from tests.objectives.test_every_objective import make_batch, make_run

CASE = Path(__file__).parent.parent / "reference" / "cases" / "maskfeat"
TINY = {"name": "maskfeat", "smallest_block": 2, "cell": 2}


def prepared(data: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Any]:
    step, batch = build_step(run := make_run("maskfeat", data, objective=TINY | options)), make_batch(run)
    return step.objective, batch.with_images(step.prepare(batch.images))


def naive(image: Tensor, bins: int, cell: int) -> Tensor:
    """The histograms of one channel, each pixel by itself."""
    rows, columns = image.shape
    counts = torch.zeros(bins, rows // cell, columns // cell)
    beside = functional.pad(image[None], (1, 1, 1, 1), "reflect")[0]
    for row in range(rows):
        for column in range(columns):
            around = beside[row : row + 3, column : column + 3]
            weights = torch.tensor([1.0, 2.0, 1.0])
            across = float((weights * (around[:, 0] - around[:, 2])).sum())
            down = float((weights * (around[0] - around[2])).sum())
            number = math.floor(math.atan2(across, down) / math.pi * bins) % bins
            counts[number, row // cell, column // cell] += math.hypot(across, down)
    return functional.normalize(counts, dim=0)


def test_histograms_are_those_that_are_counted_pixel_by_pixel() -> None:
    images = torch.randn(2, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    found = oriented_gradients(images, 9, 4)
    expected = torch.stack([torch.stack([naive(channel, 9, 4) for channel in image]) for image in images])
    assert torch.allclose(found, expected, atol=1e-5)


def test_brightness_and_contrast_of_a_channel_do_not_count() -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = images * torch.tensor([2.0, 4.0, 0.5])[:, None, None] + torch.tensor([1.0, -2.0, 0.0])[:, None, None]
    assert torch.allclose(oriented_gradients(images, 9, 4), oriented_gradients(changed, 9, 4), atol=1e-4)
    assert not oriented_gradients(torch.ones(1, 1, 8, 8), 9, 4).any()


def test_the_loss_is_the_mean_over_hidden_patches_alone() -> None:
    objective, batch = prepared(masks=2)
    mask = objective.mask(batch.keys)
    _, prediction = objective.predict(batch.images, mask)
    target = objective.target(batch.images).repeat_interleave(2, 0)
    expected = (prediction - target)[mask].square().mean()
    assert torch.allclose(objective(batch).loss, expected, rtol=1e-5)
    assert target.shape[-1] == 9 * 4 * objective.backbone.patch_embed.proj.in_channels


def test_an_official_checkpoint_becomes_the_whole_method() -> None:
    weights = reading.read(
        CASE / "checkpoint.pth", values={"backbone": {"heads": 4}, "objective": {"smallest_block": 1}}
    )
    run: Any = run_of(weights)
    objective: Any = step_of(weights, run).objective
    assert run.objective.name == "maskfeat"
    assert torch.equal(objective.head.weight, official.load(CASE / "checkpoint.pth").tensors["head.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": 3}, r"objective.cell: 3 pixels do not divide the patch \(4x4\)"),
        ({"window": 5}, r"objective.window: 5 pixels do not divide the image \(16x16\)"),
        ({"mask_ratio": 0.99}, "objective.mask_ratio: 0.99 hides 16 of 16 patches"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(**options)
