"""Parameters that the loss does not depend on are named before training starts."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from einops import rearrange
from torch import nn

from mrp.batch import Batch, Output
from mrp.build import build_step, check_best, measure_cost
from mrp.config import ConfigError
from mrp.objectives import mae
from mrp.processes.cost import measure
from mrp.processes.unused import refuse_unused_parameters, unused_parameters
from mrp.run import load
from mrp.step import Step
from tests.objectives.test_every_objective import NAMES, make_run


@pytest.mark.parametrize("name", NAMES)
def test_every_method_trains_all_that_it_says_and_is_left_as_it_was(name: str) -> None:
    step = build_step(make_run(name, mix={"mixup": 0.8} if name == "classify" else {}))
    before = {key: tensor.clone() for key, tensor in (*step.named_parameters(), *step.named_buffers())}
    assert unused_parameters(step, 3, (16, 16)) == []
    after = dict((*step.named_parameters(), *step.named_buffers()))
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert all(parameter.grad is None for parameter in step.parameters())


def test_a_relative_position_bias_is_left_as_it_was_until_the_backward_pass() -> None:
    backbone = {"positions": "none", "relative_bias": "shared", "layer_scale": 0.1, "qkv_bias": "query_value"}
    assert unused_parameters(build_step(make_run("simmim", backbone=backbone)), 3, (16, 16)) == []


def test_a_buffer_that_the_forward_pass_replaces_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    step = build_step(make_run("mae"))
    step.objective.register_buffer("centre", torch.ones(3))
    buffer, forward = step.objective.centre, step.objective.forward

    def follow(batch: Batch) -> Output:
        step.objective.centre = 0.9 * step.objective.centre
        return forward(batch)

    monkeypatch.setattr(step.objective, "forward", follow)
    assert unused_parameters(step, 3, (16, 16)) == []
    assert step.objective.centre is buffer
    assert buffer.tolist() == [1, 1, 1]


def test_the_views_of_a_sample_are_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method may compare the views of a sample, so that no other number of images makes a batch."""
    forward = mae.Objective.forward

    def compare(objective: mae.Objective, batch: Batch) -> Output:
        assert rearrange(batch.images, "(samples views) c h w -> samples views c h w", views=3).shape[1] == 3
        return forward(objective, batch)

    single = measure_cost(load("demo"))
    monkeypatch.setattr(mae.Objective, "forward", compare)
    run = load("demo", ["data.views=3", "batch=96", "checkpoint.best=loss"])
    refuse_unused_parameters(build_step(run), 1, (8, 8), run.data.views)
    assert measure_cost(run) == single
    check_best(run)


def step_with_spare_layers(count: int) -> Step:
    step = build_step(make_run("mae"))
    step.objective.spare = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(count))
    return step


def test_what_is_not_used_is_named() -> None:
    step = step_with_spare_layers(1)
    assert unused_parameters(step, 3, (16, 16)) == ["objective.spare.0.weight"]
    with pytest.raises(ConfigError, match=r"the loss does not depend on objective.spare.0.weight, so they would never"):
        refuse_unused_parameters(step, 3, (16, 16))
    with pytest.raises(ConfigError, match=r"objective.spare.2.weight \(and 2 others\), so"):
        refuse_unused_parameters(step_with_spare_layers(5), 3, (16, 16))
    step.objective.spare.requires_grad_(False)
    refuse_unused_parameters(step, 3, (16, 16))


def test_a_loss_without_gradient_uses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    step = build_step(make_run("simmim"))

    def forward(batch: Batch) -> Output:
        return Output(loss=batch.images.mean())

    monkeypatch.setattr(step.objective, "forward", forward)
    trained = [name for name, parameter in step.named_parameters() if parameter.requires_grad]
    assert unused_parameters(step, 3, (16, 16)) == trained


def test_weights_that_no_checkpoint_would_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of modules in place of an `nn.ModuleList`: it would never be trained."""
    step, layers = build_step(make_run("mae")), [nn.Linear(2, 2)]
    forward = step.objective.forward

    def with_layers(batch: Batch) -> Output:
        output = forward(batch)
        output.loss = output.loss + layers[0](torch.ones(2)).sum()
        return output

    monkeypatch.setattr(step.objective, "forward", with_layers)
    with pytest.raises(
        ConfigError, match=r"a weight of shape \(2, 2\) that is no parameter of the method.*nn.ModuleList"
    ):
        unused_parameters(step, 3, (16, 16))
    monkeypatch.setattr(mae.Objective, "forward", lambda objective, batch: with_layers(batch))
    with pytest.raises(ConfigError, match=r"uses a tensor that is neither a parameter nor a buffer of the method"):
        measure(build_step(make_run("mae")).to("meta"), 3, (16, 16))


@pytest.mark.parametrize("how", ["another", "in place"])
def test_a_state_that_no_checkpoint_would_hold_is_refused(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = build_step(make_run("mae"))
    method, forward = step.objective, step.objective.forward
    method.centre = torch.zeros(1)

    def follow(batch: Batch) -> Output:
        output = forward(batch)
        if how == "in place":
            method.centre.add_(output.loss.detach())
        else:
            method.centre = method.centre + output.loss.detach()
        return output

    monkeypatch.setattr(method, "forward", follow)
    with pytest.raises(
        ConfigError, match=r"objective.centre changes in forward .* self.register_buffer\('centre', ...\)"
    ):
        unused_parameters(step, 3, (16, 16))


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_are_computed_from_parameters_are_no_state(
    norm: Callable[[nn.Module], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = build_step(make_run("mae"))
    forward = step.objective.forward
    with warnings.catch_warnings(action="ignore"):  # weight_norm tells of its successor
        step.objective.head = norm(nn.Linear(2, 2, bias=False))

    def with_head(batch: Batch) -> Output:
        output = forward(batch)
        output.loss = output.loss + step.objective.head(torch.ones(2)).sum()
        return output

    monkeypatch.setattr(step.objective, "forward", with_head)
    assert unused_parameters(step, 3, (16, 16)) == []


def test_a_gradient_of_images_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    step = build_step(make_run("mae"))
    forward = step.objective.forward

    def penalised(batch: Batch) -> Output:
        output, images = forward(batch), batch.images.detach().requires_grad_()
        scored = (step.objective.decoder.mask_token.mean() * images.square()).sum()
        (slope,) = torch.autograd.grad(scored, images, create_graph=True)
        output.loss = output.loss + slope.square().mean()
        return output

    monkeypatch.setattr(step.objective, "forward", penalised)
    assert unused_parameters(step, 3, (16, 16)) == []


@pytest.mark.parametrize("name", ["before_step", "after_step"])
def test_a_method_that_cannot_be_told_of_a_step_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mae.Objective, name, lambda objective, step: None)
    with pytest.raises(ConfigError, match=r"objective.name: mae: .*too many positional arguments; see mrp.Objective"):
        build_step(make_run("mae"))
