"""Methods that hide patches: several masks an image, their losses against plain formulas, and sizes that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from mrp.batch import Batch
from mrp.build import build_step
from mrp.config import ConfigError
from mrp.methodkit import patchify
from mrp.run import Run
from tests.objectives.test_every_objective import VARIANTS, make_batch, make_run

METHODS = ["mae", "simmim", "data2vec", "data2vec2"]


def make(name: str, backbone: dict[str, Any] | None = None, data: Any = None, **options: Any) -> Run:
    return make_run(name, data, backbone, objective=VARIANTS[name] | options)


def prepared(run: Run) -> tuple[Any, Batch]:
    step, batch = build_step(run), make_batch(run)
    return step.objective, batch.with_images(step.prepare(batch.images))


@pytest.mark.parametrize("name", METHODS)
def test_several_masks_give_the_mean_of_one_at_a_time(name: str) -> None:
    several, batch = prepared(make(name, masks=3))
    single, _ = prepared(make(name, masks=1))
    if name == "data2vec2":  # its noise follows the number of the draw, and here there is but one
        several.noise.zero_()
        single.noise.zero_()
    masks = several.mask(batch.keys)
    assert masks.shape == (24, 16)
    assert torch.equal(masks[::3], single.mask(batch.keys))
    assert torch.equal(masks[::3], several.first_mask(batch.keys))
    assert not torch.equal(masks[::3], masks[1::3])
    one_by_one = [single(batch, masks[number::3]) for number in range(3)]
    together = several(batch)
    assert torch.allclose(together.loss, torch.stack([output.loss for output in one_by_one]).mean(), rtol=1e-5)
    each = torch.stack([output.per_sample["loss"] for output in one_by_one]).mean(0)
    assert torch.allclose(together.per_sample["loss"], each, rtol=1e-4)
    assert torch.allclose(together.features, one_by_one[0].features, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_views_are_dropped_along_the_depth_apart(name: str) -> None:
    objective, batch = prepared(make(name, masks=2))
    keys = objective.view_keys(batch.keys)
    assert len(keys.unique()) == 16
    alone = objective.view_keys(batch.keys[3:4])
    assert torch.equal(keys[6:8], alone)


@pytest.mark.parametrize("name", METHODS)
def test_the_collapse_line_is_the_cost_of_the_mean(name: str) -> None:
    objective, batch = prepared(make(name, masks=1))
    mask = objective.mask(batch.keys)
    if name in ("mae", "simmim"):
        patches = batch.images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(8, 16, -1)
        if name == "mae":
            patches = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
        hidden = patches[mask]
        # A constant has one value a channel of the target, whose order within a patch does not matter here.
        expected = hidden.var(0, correction=0).mean() if name == "mae" else (hidden - hidden.mean(0)).abs().mean()
    else:
        hidden = objective.target(batch.images)[mask]
        mean = hidden.mean(0).expand_as(hidden)
        if name == "data2vec":
            expected = functional.smooth_l1_loss(mean, hidden, beta=2.0)
        else:
            expected = functional.mse_loss(mean, hidden) * 32**0.5
    assert torch.allclose(objective(batch).metrics["target_variance"], expected, rtol=1e-4)


def test_simmim_paints_what_it_predicts() -> None:
    objective, batch = prepared(make("simmim"))
    painted = objective.reconstruct(batch)
    assert torch.equal(painted.mask, objective.mask(batch.keys))
    error = (painted.images - batch.images).abs()
    hidden = patchify(error, (4, 4), channels_first=True)[painted.mask]
    assert torch.allclose(hidden.mean(), objective(batch).loss, rtol=1e-5)
    assert torch.equal(objective.unpatchify(patchify(batch.images, (4, 4), channels_first=True)), batch.images)


@pytest.mark.parametrize(("name", "hidden"), [("simmim", 4), ("mae", 5), ("crossmae", 5)])
def test_squares_of_so_many_pixels_are_hidden(name: str, hidden: int) -> None:
    objective, batch = prepared(make(name, data={"size": [16, 24]}, mask_unit=8))
    squares = objective.mask(batch.keys).view(8, 2, 2, 3, 2).transpose(2, 3).flatten(3)
    assert (squares.all(-1) == squares.any(-1)).all()
    assert (
        squares.all(-1).sum((1, 2)) == hidden
    ).all()  # of six: SimMIM rounds what is hidden up, MAE what is seen down
    assert objective(batch).loss.isfinite()


def test_data2vec_2_weighs_its_class_token_by_a_multiple_of_the_mean() -> None:
    objective, batch = prepared(make("data2vec2", class_weight=0.5, noise=0.0))
    output = objective(batch)
    mask = objective.mask(batch.keys)
    latent, prediction = objective.predict(batch.images, mask, objective.view_keys(batch.keys))
    target = objective.target(batch.images).repeat_interleave(3, dim=0)
    regression = (prediction - target)[mask].square().sum(-1).mean() / 32**0.5
    of_class = (latent[:, 0] - target.mean(1)).square().sum(-1).mean() / 32**0.5
    assert torch.allclose(output.loss, regression + 0.5 * of_class, rtol=1e-5)
    assert torch.allclose(output.metrics["class"], 0.5 * of_class, rtol=1e-5)
    assert torch.allclose(output.metrics["reconstruction"], regression, rtol=1e-5)


def test_data2vec_2_puts_noise_of_the_sample_at_hidden_places() -> None:
    losses = []
    for noise in (0.0, 0.5):
        objective, batch = prepared(make("data2vec2", noise=noise))
        losses.append(objective(batch).loss)
        turned = Batch(batch.images.flip(0), batch.keys.flip(0), step=batch.step)
        assert torch.allclose(objective(turned).per_sample["loss"].flip(0), objective(batch).per_sample["loss"])
    assert not torch.allclose(*losses)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mae", {"mask_ratio": 0.99}, "objective.mask_ratio: 0.99 of 16 patches leaves 0 visible"),
        ("mae", {"mask_unit": 6}, r"objective.mask_unit: 6 pixels must be a multiple of the patch \(4x4\)"),
        ("mae", {"mask_unit": 8, "mask_ratio": 0.9}, "objective.mask_ratio: 0.9 of 4 units leaves 0 visible"),
        ("simmim", {"mask_unit": 6}, r"objective.mask_unit: 6 pixels must be a multiple of the patch \(4x4\)"),
        ("simmim", {"mask_unit": 12}, r"objective.mask_unit: 12 pixels must .* divide the image \(16x16\)"),
        ("simmim", {"mask_ratio": 0.9}, "objective.mask_ratio: 0.9 of 4 units leaves 0 visible"),
        ("data2vec", {"smallest_block": 16}, "one block of objective.smallest_block 16 fit in"),
        ("data2vec", {"mask_ratio": 0.99}, "hides 16 of 16 patches"),
        ("data2vec", {"layers": 3}, "objective.layers: 3 of the backbone's 2 blocks"),
        ("data2vec2", {"mask_ratio": 0.99}, "objective.mask_ratio: 0.99 of 16 patches leaves 0 visible"),
        ("data2vec2", {"decoder": {"width": 30, "groups": 4}}, "objective.decoder: width 30 is not a multiple of"),
        ("data2vec2", {"decoder": {"width": 40, "groups": 5}}, "the backbone's width 32 is not a multiple of"),
        (
            "data2vec2",
            {"decoder": {"kernel": 2, "groups": 4, "width": 32}},
            "objective.decoder.kernel: 2 has no middle",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_step(make(name, **options))


def test_data2vec_2_needs_blocks_that_say_what_they_add() -> None:
    backbone = {"name": "vit_small_patch16_18x2_224", "width": None, "depth": None, "heads": None}
    with torch.device("meta"), pytest.raises(ConfigError, match=r"backbone.name: its blocks do not say"):
        build_step(make("data2vec2", backbone, {"size": 64}))
