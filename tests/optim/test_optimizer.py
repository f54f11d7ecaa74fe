"""Groups, learning rates, and which of them a recipe means."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mrp.build import build_optimizer, build_step
from mrp.config import ConfigError, Duration
from mrp.optim.groups import drop_foreign_state, get_lr, groups, layer_of, set_lr
from mrp.optimizers import adamw, lars, sgd
from mrp.run import load
from mrp.schedules import Length

LENGTH = Length(100, 10, 64)


def test_one_dimensional_parameters_do_not_decay_and_frozen_ones_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    module[2].weight.requires_grad_(False)
    decayed, plain = groups(module, 0.05)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(4, 3)]
    assert [tuple(parameter.shape) for parameter in plain["params"]] == [(4,), (4,), (4,)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)


@pytest.mark.parametrize(
    ("recipe", "spared"),
    [
        ("simmim_tiny_digits", {"backbone.cls_token"}),
        ("data2vec_tiny_digits", {"backbone.cls_token"}),
        ("maskfeat_tiny_digits", {"mask_token"}),
        ("demo", set()),
    ],
)
def test_tokens_decay_but_for_those_that_the_released_code_spares(recipe: str, spared: set[str]) -> None:
    objective = build_step(load(recipe)).objective
    plain = groups(objective, 0.05)[1]
    assert {name for name in plain["param_names"] if objective.get_parameter(name).ndim > 1} == spared


def test_the_learning_rate_scales_with_the_batch_only_when_the_recipe_says_so() -> None:
    assert adamw.Config(lr=1.5e-4, per=256).peak_lr(4096) == pytest.approx(2.4e-3)
    assert adamw.Config(lr=1.5e-4).peak_lr(4096) == 1.5e-4


def test_lr_at_warms_up_from_zero_and_ends_at_the_floor() -> None:
    config = adamw.Config(lr=1.0, min_lr=0.1, warmup=Duration(10, "steps"))
    assert config.lr_at(0, LENGTH, 10) == 0
    assert config.lr_at(10, LENGTH, 10) == 1.0
    assert config.lr_at(100, LENGTH, 10) == pytest.approx(0.1)


def test_lr_can_fall_to_a_tenth_instead() -> None:
    config = adamw.Config(lr=1.0, warmup=Duration(10, "steps"), drops=(Duration(80, "steps"), Duration(90, "steps")))
    found = [config.lr_at(step, LENGTH, 10, (80, 90)) for step in (0, 5, 10, 79, 80, 90, 99)]
    assert found == pytest.approx([0, 0.5, 1, 1, 0.1, 0.01, 0.01])


def test_set_lr_respects_a_groups_own_scale() -> None:
    module = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [module.weight], "lr_scale": 0.5}, {"params": [module.bias]}], lr=1.0)
    set_lr(optimizer, lambda scale: 0.2 * scale)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_the_update_is_adamws() -> None:
    ours, theirs = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
    theirs.load_state_dict(ours.state_dict())
    config = adamw.Config(lr=0.1, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6)
    pair = (
        build_optimizer(config, ours),
        torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-6, foreach=False),
    )
    for _ in range(5):
        inputs = torch.randn(8, 3)
        for module, optimizer in zip((ours, theirs), pair, strict=True):
            module(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)


def test_layers_learn_the_slower_the_earlier_they_stand() -> None:
    run = load("finetune_tiny_digits", ["backbone.norm=post", "backbone.registers=1", "optim.layer_decay=0.5"])
    step = build_step(run)
    names = {parameter: name.removeprefix("objective.") for name, parameter in step.named_parameters()}
    found = {
        names[parameter]: (group["lr_scale"], group["weight_decay"])
        for group in groups(step, 0.05, 0.5)
        for parameter in group["params"]
    }
    assert found.keys() == {names[p] for p in step.parameters() if p.requires_grad}
    assert found["head.weight"] == (1.0, 0.05)
    assert found["head.bias"] == found["backbone.fc_norm.weight"] == (1.0, 0.0)
    assert found["backbone.blocks.5.mlp.fc1.weight"] == (0.5, 0.05)
    assert found["backbone.blocks.0.norm1.weight"] == (0.5**6, 0.0)
    for before in ("cls_token", "reg_token", "norm_pre.weight", "patch_embed.proj.bias"):
        assert found[f"backbone.{before}"] == (0.5**7, 0.0)
    assert found["backbone.patch_embed.proj.weight"] == (0.5**7, 0.05)
    optimizer = build_optimizer(run.optim, step)
    set_lr(optimizer, lambda scale: 0.2 * scale)
    assert get_lr(optimizer) == 0.2
    assert min(group["lr"] for group in optimizer.param_groups) == pytest.approx(0.2 * 0.5**7)


@pytest.mark.parametrize(("name", "layer"), [("backbone.rel_pos_bias.table", 13), ("decoder.blocks.3.norm.bias", 13)])
def test_what_is_in_no_block_learns_at_full_rate(name: str, layer: int) -> None:
    assert layer_of(f"objective.{name}", 12) == layer


def built_lars(module: nn.Module, **options: float) -> lars.Optimizer:
    built = build_optimizer(lars.Config(lr=1.0, weight_decay=0.0, **options), module)
    assert isinstance(built, lars.Optimizer)
    return built


def test_lars_moves_a_matrix_by_a_share_of_its_norm_and_a_vector_by_its_gradient() -> None:
    module = nn.Linear(4, 3)
    before = module.weight.detach().clone()
    bias = module.bias.detach().clone()
    optimizer = built_lars(module, trust=0.01)
    module.weight.grad, module.bias.grad = torch.randn(3, 4) * 1000, torch.ones(3)
    optimizer.step()
    assert float((module.weight.detach() - before).norm()) == pytest.approx(0.01 * float(before.norm()), rel=1e-5)
    assert torch.allclose(module.bias, bias - 1)


def test_lars_leaves_everything_as_it_is_while_the_flag_is_up() -> None:
    module = nn.Linear(4, 3)
    optimizer = built_lars(module)
    for gradient in (torch.ones(3, 4), torch.full((3, 4), torch.nan)):
        module.weight.grad, module.bias.grad = gradient, gradient[:, 0].clone()
        before = [tensor.detach().clone() for tensor in module.parameters()]
        state = [optimizer.state[p]["momentum"].clone() for p in module.parameters() if p in optimizer.state]
        optimizer.found_inf = torch.tensor(float(gradient.isnan().any()))
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))
    assert all(torch.equal(optimizer.state[p]["momentum"], s) for p, s in zip(module.parameters(), state, strict=True))


def test_sgd_is_torchs_and_a_skipped_first_step_leaves_nothing_behind() -> None:
    ours, theirs = nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(sgd.Config(lr=0.1, weight_decay=0.3, momentum=0.8), ours)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, weight_decay=0.3, momentum=0.8)
    ours.weight.grad = torch.full((1, 3), torch.nan)
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    (state,) = optimizer.state.values()
    assert torch.equal(state["momentum_buffer"], torch.zeros(1, 3)), "whatever was in the memory before"
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    for _ in range(5):
        ours.weight.grad = torch.randn(1, 3)
        theirs.weight.grad = ours.weight.grad.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_lars_takes_a_zero_matrix_and_a_zero_gradient() -> None:
    module = nn.Linear(4, 3)
    nn.init.zeros_(module.weight)
    optimizer = built_lars(module, momentum=0.0)
    module.weight.grad, module.bias.grad = torch.ones(3, 4), torch.zeros(3)
    optimizer.step()
    assert torch.equal(module.weight, -torch.ones(3, 4))
    module.weight.grad = torch.zeros(3, 4)
    optimizer.step()
    assert torch.equal(module.weight, -torch.ones(3, 4))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim={name: lion, lr: 1}"], "optim: unknown optimizer 'lion'.*known: adamw, lars, muon, sgd, or a file"),
        (["optim={name: lars, lr: 1}", "optim.betas=[0.9, 0.9]"], "optim.betas: unknown key"),
        (["optim.trust=1"], "optim.trust: unknown key"),
        (["optim.layer_decay=1.5"], "optim.layer_decay: 1.5 was given"),
    ],
)
def test_an_option_of_the_other_optimizer_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("demo", words)


@pytest.mark.parametrize("other", [adamw.Config(lr=0.1), lars.Config(lr=0.1)], ids=["to adamw", "to lars"])
def test_the_memory_of_another_optimizer_is_forgotten(other: adamw.Config | lars.Config) -> None:
    module = nn.Linear(3, 2)
    before = build_optimizer(lars.Config(lr=0.1) if isinstance(other, adamw.Config) else adamw.Config(lr=0.1), module)
    module(torch.ones(1, 3)).sum().backward()
    before.step()
    after = build_optimizer(other, module)
    assert not drop_foreign_state(after)
    after.state.update(before.state)
    assert drop_foreign_state(after)
    after.step()
    assert not drop_foreign_state(after), "its own it keeps"
    assert all(after.state[parameter] for parameter in module.parameters())
