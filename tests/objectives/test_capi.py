"""CAPI: assignments that use all clusters alike, blocks that go around the border, and what its loss is made of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mrp.build import build_step
from mrp.config import ConfigError
from mrp.objectives.capi import _shapes, balanced
from mrp.run import Run
from tests.objectives.test_every_objective import VARIANTS, make_batch, make_run


def make(data: dict[str, Any] | None = None, **options: Any) -> Run:
    return make_run("capi", data, objective=VARIANTS["capi"] | options)


def test_assignments_use_all_clusters_alike_at_every_place() -> None:
    scores = 5 * torch.randn(12, 3, 4, generator=torch.Generator().manual_seed(0))  # B N C
    shares = balanced(scores, 200)
    assert torch.allclose(shares.sum(2), torch.ones(12, 3), atol=1e-5)
    assert torch.allclose(shares.sum(0), torch.full((3, 4), 3.0), atol=1e-2)
    alone = balanced(scores[:, :1], 200)
    assert torch.allclose(alone, shares[:, :1], atol=1e-6)  # every place by itself


def test_what_is_seen_is_one_block_that_goes_around_the_border() -> None:
    objective: Any = build_step(make({"size": 48})).objective  # 12 x 12 patches
    keys = torch.arange(300)
    seen = ~objective.draw_mask(keys, torch.zeros_like(keys)).view(300, 12, 12)
    assert (seen.sum((1, 2)) == 72).all()
    for image in seen[:30]:
        rows, columns = image.any(1).sum(), image.any(0).sum()
        assert 0 <= rows * columns - 72 < columns  # a rectangle but for a part of its last row
    often = seen.float().mean(0)
    assert often.min() > 0.35
    assert often.max() < 0.65  # every place is seen about as often


def test_long_blocks_are_as_rare_as_an_even_draw_of_the_logarithm_makes_them() -> None:
    # 90 of 16 x 16 patches, a height being the square root of 90 times the aspect, rounded up.
    heights = torch.tensor(_shapes((16, 16), 90, 0.5))[:, 0]
    for height, bounds in ((7, (45, 49)), (8, (49, 64)), (14, (169, 180))):  # the squares between which it is drawn
        share = math.log(bounds[1] / bounds[0]) / math.log(4)
        assert (heights == height).float().mean().item() == pytest.approx(share, abs=2e-3)


def test_the_loss_is_that_of_the_predicted_clusters_and_of_the_clustering() -> None:
    run = make(masks=1)
    step, batch = build_step(run), make_batch(run)
    batch = batch.with_images(step.prepare(batch.images))
    output = step.objective(batch)
    parts = output.metrics
    assert run.couples_samples
    assert torch.allclose(output.loss, parts["reconstruction"] + parts["clustering"])
    assert parts["target_variance"] <= torch.tensor(8.0).log() + 1e-5


def test_a_predictor_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"objective.predictor.depth: 0"):
        build_step(make(predictor={"width": 32, "depth": 0, "heads": 4}))


def test_as_many_are_predicted_as_are_hidden_at_most() -> None:
    with pytest.raises(ConfigError, match=r"objective.predicted: 0.6 of 16 patches is 9; .* no more than the 8"):
        build_step(make(predicted=0.6))
