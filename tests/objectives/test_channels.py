"""Channels that a sample lacks: they are the mean for the model, and cost nothing in the loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mrp import methodkit as kit
from mrp.batch import Batch
from mrp.build import build_step
from mrp.step import Step
from tests.objectives.test_every_objective import VARIANTS, make_batch, make_run

PAINTERS = [
    ("mae", {}),
    ("mae", {"target": "pixels", "masks": 2}),
    ("simmim", {"masks": 2}),
    ("crossmae", {}),
    ("maskfeat", {}),
]
CHANNELS = 5


def made(name: str, mix: dict[str, Any] | None = None, **options: Any) -> tuple[Step, Batch]:
    more = {"mix": mix} if mix else {}
    run = make_run(name, {"size": 16, "channels": CHANNELS}, None, objective=VARIANTS[name] | options, **more)
    return build_step(run), make_batch(run)


def present(batch: Batch) -> Tensor:
    """Each image lacks another number of channels, the first none."""
    lacking = torch.arange(len(batch.keys)) % CHANNELS
    return torch.arange(CHANNELS) >= lacking[:, None]


@pytest.mark.parametrize(("name", "options"), PAINTERS)
def test_where_nothing_is_missing_the_loss_is_what_it_was(name: str, options: dict[str, Any]) -> None:
    step, batch = made(name, **options)
    whole = step(batch)
    masked = step(replace(batch, present=torch.ones(len(batch.keys), CHANNELS, dtype=torch.bool)))
    torch.testing.assert_close(masked.per_sample["loss"], whole.per_sample["loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(masked.metrics["target_variance"], whole.metrics["target_variance"], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("name", "options"), PAINTERS)
def test_what_stands_in_a_missing_channel_does_not_matter(name: str, options: dict[str, Any]) -> None:
    step, batch = made(name, **options)
    here = present(batch)
    first = step(replace(batch, present=here))
    noise = torch.randint(0, 256, batch.images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
    other = torch.where(here[..., None, None], batch.images, noise)
    second = step(replace(batch, images=other, present=here))
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.metrics["target_variance"], second.metrics["target_variance"])
    changed = step(replace(batch, images=noise, present=here))
    assert not torch.equal(first.loss, changed.loss)
    assert not torch.equal(first.loss, step(batch).loss)
    seen = step(replace(batch, present=here), features=True).features
    assert torch.equal(seen, step(replace(batch, images=other, present=here), features=True).features)


@pytest.mark.parametrize(("name", "options"), PAINTERS)
def test_a_missing_channel_is_not_predicted(name: str, options: dict[str, Any]) -> None:
    step, batch = made(name, **options)
    objective: Any = step.objective
    predictions: list[Tensor] = []
    predict = objective.predict

    def noted(*args: Any) -> tuple[Tensor, Tensor]:
        latent, prediction = predict(*args)
        prediction.retain_grad()
        predictions.append(prediction)
        return latent, prediction

    objective.predict = noted
    here = present(batch)
    step(replace(batch, present=here)).loss.backward()
    gradient = predictions[0].grad
    assert gradient is not None
    views = len(gradient) // len(here)
    order = "channel first" if name in ("simmim", "maskfeat") else "channel last"
    shape = (CHANNELS, -1) if order == "channel first" else (-1, CHANNELS)
    channel_axis = 2 if order == "channel first" else 3
    by_channel = gradient.unflatten(2, shape).abs().amax((1, 5 - channel_axis))  # BM C
    assert torch.equal(by_channel > 0, here.repeat_interleave(views, 0))


def test_the_loss_of_mae_is_the_mean_over_what_is_there() -> None:
    step, batch = made("mae", target="pixels_norm")
    here = present(batch)
    here[:] = here[2]  # all lack the first two
    objective: Any = step.objective
    images = step.prepare(batch.images)
    filled = torch.where(here[..., None, None], images, 0.0)
    mask = objective.mask(batch.keys)
    _, prediction = objective.predict(filled, mask)
    patches = kit.patchify(images[:, 2:], objective.patch)
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    guess = prediction.unflatten(-1, (-1, CHANNELS))[..., 2:].flatten(2)
    expected = (guess - target).square()[mask].mean()
    torch.testing.assert_close(step(replace(batch, present=here)).loss, expected, rtol=1e-4, atol=1e-6)
    hidden = target[mask]
    expected = hidden.var(0, correction=0).mean()
    collapse = step(replace(batch, present=here)).metrics["target_variance"]
    torch.testing.assert_close(collapse, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), PAINTERS)
def test_it_is_one_graph(name: str, options: dict[str, Any]) -> None:
    step, batch = made(name, {"drop_channels": 0.3}, **options)
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    for count in range(2):
        given = replace(batch, keys=batch.keys + count, present=present(batch))
        torch.testing.assert_close(compiled(given).loss, step(given).loss)


def test_reconstructions_take_the_mean_of_what_is_there() -> None:
    step, batch = made("mae", target="pixels_norm")
    objective: Any = step.objective
    here = present(batch)
    prepared = step.prepare.fill(batch.with_images(step.prepare(batch.images)))
    painted = objective.reconstruct(replace(prepared, present=here))
    assert painted.images.shape == batch.images.shape
    lone = replace(prepared, images=torch.where(here[..., None, None], prepared.images, 7.0), present=here)
    # With another value in what is missing, the model sees another image, but mean and deviation are the same.
    weights = kit.pixel_weights(here, objective.patch)
    first, second = (
        kit.patch_statistics(kit.patchify(each.images, objective.patch), weights) for each in (prepared, lone)
    )
    torch.testing.assert_close(first, second)
