"""Raw pixels in, normalised pixels to the objective, under one precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.config import ConfigError
from mrp.methodkit import Objective
from mrp.step import Prepare, Step


class Probe(Objective):
    """An objective that only looks."""

    def __init__(self) -> None:
        nn.Module.__init__(self)  # without a backbone
        self.linear = nn.Linear(4, 2)
        self.seen: Tensor | None = None
        self.told: list[tuple[int, bool]] = []

    def forward(self, batch: Batch) -> Output:
        self.seen = batch.images
        return Output(
            loss=self.linear(batch.images.flatten(1)).float().mean(), features=self.linear(batch.images.flatten(1))
        )

    def features(self, batch: Batch) -> Tensor:
        return self.linear(batch.images.flatten(1))

    def after_step(self, step: int, updated: Tensor) -> None:
        self.told.append((step, bool(updated)))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.ones(()), r"a Tensor, where mrp.Output\(loss=...\) is expected"),
        (Output(torch.ones(3)), r"a tensor of shape \(3,\) and torch.float32 as Output.loss; give a mean"),
        (Output(torch.ones(()), {"loss": 1.0}), r"a float as Output.metrics\['loss'\]; give a mean"),  # type: ignore[dict-item]
        (Output(torch.ones(()), {"n": torch.tensor(1)}), r"torch.int64 as Output.metrics\['n'\]"),
        (Output(torch.ones(()), per_sample={"loss": torch.ones(())}), r"shape \(\) .* as Output.per_sample\['loss'\]"),
        (Output(torch.ones(()), features=torch.ones(2, 5)), r"shape \(2, 5\) .* as Output.features; give one vector"),
    ],
    ids=["no output", "a vector", "a number", "whole", "of no sample", "of other images"],
)
def test_what_no_method_may_return_is_named(returned: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe()
    monkeypatch.setattr(probe, "forward", lambda batch: returned)
    step = Step(Prepare((0.5,), (0.25,)), probe, "fp32")
    with pytest.raises(ConfigError, match=f"objective method: forward returns .*{message}"):
        step(Batch(torch.zeros(3, 1, 2, 2), torch.arange(3)))


@pytest.mark.parametrize(
    ("images", "scale"),
    [
        (torch.randint(0, 256, (3, 1, 2, 2), dtype=torch.uint8), 255),
        (torch.randint(0, 65536, (3, 1, 2, 2), dtype=torch.int32).to(torch.uint16), 65535),
        (torch.rand(3, 1, 2, 2), 1),
    ],
    ids=["uint8", "uint16", "float"],
)
def test_every_kind_of_pixel_is_normalised_once_in_float32(images: Tensor, scale: int) -> None:
    step = Step(Prepare((0.25,), (0.5,)), Probe(), "fp32")
    step(Batch(images, torch.arange(3)))
    assert step.objective.seen.dtype == torch.float32
    expected = (images.to(torch.float64) / scale - 0.25) / 0.5
    assert torch.allclose(step.objective.seen.double(), expected, atol=1e-6)
    assert torch.allclose(step.prepare.undo(step.objective.seen), images.float() / scale, atol=1e-6)


def test_mean_and_std_travel_with_the_weights() -> None:
    step = Step(Prepare((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), Probe(), "fp32")
    assert step.state_dict()["prepare.mean"].flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert step.state_dict()["prepare.std"].flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])


def test_weights_bring_no_other_mean_and_std() -> None:
    step, other = (Step(Prepare((mean,), (0.5,)), Probe(), "fp32") for mean in (0.1, 0.7))
    step.load_state_dict(other.state_dict())
    assert step.prepare.mean.item() == pytest.approx(0.1)  # as the configuration says, which a run may change


def test_bf16_is_the_matrix_products_and_not_the_images() -> None:
    step = Step(Prepare((0.5,), (0.5,)), Probe(), "bf16")
    output = step(Batch(torch.rand(3, 1, 2, 2), torch.arange(3)))
    assert step.objective.seen.dtype == torch.float32
    assert output.features.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    assert step(Batch(torch.rand(3, 1, 2, 2), torch.arange(3)), features=True).features.dtype == torch.float32


def test_the_objective_hears_of_the_optimizer() -> None:
    step = Step(Prepare((0.5,), (0.5,)), Probe(), "fp32")
    step.after_step(7, torch.tensor(False))
    assert step.objective.told == [(7, False)]
