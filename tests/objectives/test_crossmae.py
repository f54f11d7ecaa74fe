"""CrossMAE: which patches are predicted, against plain formulas, and what it reads from other people's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mrp.build import build_step
from mrp.config import ConfigError
from mrp.interop import reading
from mrp.methodkit import Reconstruction, patchify
from mrp.model import Model, run_of, step_of
from mrp.models.masking import some_hidden
from tests.objectives.test_every_objective import DECODER, make_batch, make_run

CASES = Path(__file__).parent.parent / "reference" / "cases"


def prepared(**options: Any) -> tuple[Any, Any]:
    run = make_run("crossmae", objective={"name": "crossmae", "decoder": DECODER} | options)
    step, batch = build_step(run), make_batch(run)
    return step.objective, batch.with_images(step.prepare(batch.images))


def test_some_of_the_hidden_patches_are_predicted_each_as_often() -> None:
    objective, _ = prepared()
    keys = torch.arange(4000)
    mask = objective.mask(keys)
    predicted = some_hidden(mask, keys, 4)
    assert (predicted.sum(1) == 4).all()
    assert not (predicted & ~mask).any()
    share = predicted.sum(0) / mask.sum(0)
    assert torch.allclose(share, torch.tensor(4 / 12), atol=0.05)


def test_the_loss_is_that_of_the_predicted_patches_alone() -> None:
    objective, batch = prepared(target="pixels", masks=2)
    painted: Reconstruction = objective.reconstruct(batch)
    mask = objective.mask(batch.keys)
    predicted = some_hidden(mask, objective.view_keys(batch.keys), objective.num_predicted)
    error = (patchify(painted.images, (4, 4)) - patchify(batch.images, (4, 4))).square().mean(-1)
    first = error[predicted[::2]].view(len(error), -1).mean(1)
    both = objective(batch).per_sample["loss"]
    assert torch.equal(painted.mask, mask[::2])
    single, _ = prepared(target="pixels")
    single.load_state_dict(objective.state_dict())
    assert torch.allclose(single(batch, mask[::2], predicted[::2]).per_sample["loss"], first, rtol=1e-4)
    second = single(batch, mask[1::2], predicted[1::2]).per_sample["loss"]
    assert torch.allclose(both, (first + second) / 2, rtol=1e-4)


def test_a_patch_is_predicted_alone_unless_they_look_at_each_other() -> None:
    for self_attention in (False, True):
        objective, batch = prepared(decoder=DECODER | {"self_attention": self_attention})
        mask = objective.mask(batch.keys)
        places = torch.arange(16).expand(8, -1)
        few = objective.predict(batch.images, mask, places[:, 3:5])[1]
        same = torch.allclose(objective.predict(batch.images, mask, places)[1][:, 3:5], few, atol=1e-5)
        assert same is not self_attention


def test_the_last_norm_stays_as_it_was_drawn() -> None:
    objective, _ = prepared()
    assert not any(weight.requires_grad for weight in objective.backbone.norm.parameters())
    assert torch.equal(objective.backbone.norm.weight, torch.ones(32))


def test_more_than_is_hidden_cannot_be_predicted() -> None:
    with pytest.raises(ConfigError, match=r"objective.predicted: 0.8 of the patches, of which mask_ratio hides 0.75"):
        build_step(make_run("crossmae", objective={"name": "crossmae", "decoder": DECODER, "predicted": 0.8}))


@pytest.mark.parametrize("case", ["crossmae", "crossmae_selfattn"])
def test_an_official_checkpoint_becomes_the_whole_method(case: str) -> None:
    heads = {"backbone": {"heads": 4}, "objective": {"decoder": {"heads": 4}}}
    weights = reading.read(CASES / case / "checkpoint.pth", values=heads)
    run = run_of(weights)
    model = Model(run, CASES / case, 0, step_of(weights, run), "student", {})
    assert run.objective.name == "crossmae"
    assert model.missing_part is None
    mask, images = model.reconstruct(torch.rand(2, 3, 32, 32))
    assert mask.sum() == 24
    assert images.shape == (2, 3, 32, 32)
