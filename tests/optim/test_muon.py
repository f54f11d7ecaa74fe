"""Muon: torch's on one matrix, the polynomial of the singular values, and what is left to AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mrp.build import build_optimizer, build_step
from mrp.check.tiny import tiny_batch
from mrp.config import ConfigError
from mrp.doctor.case import Case
from mrp.doctor.recipe import checkpoint_bytes
from mrp.optim.groups import drop_foreign_state, set_lr, set_weight_decay
from mrp.optimizers import adamw, muon
from mrp.run import Run, load
from mrp.step import Step

QUINTIC = (3.4445, -4.7750, 2.0315)


class Tower(nn.Module):
    """Two blocks of a tall and a wide matrix, which is all that torch's Muon takes."""

    def __init__(self, **shapes: tuple[int, int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for shape in ((24, 8), (8, 24)):
            self.blocks.append(nn.ModuleDict({"fc": nn.Linear(shape[1], shape[0], bias=False)}))
        for name, shape in shapes.items():
            self.blocks.append(nn.ModuleDict({name: nn.Linear(shape[1], shape[0], bias=False)}))


def built(module: nn.Module, **options: object) -> muon.Optimizer:
    optimizer = build_optimizer(muon.Config.model_validate({"lr": 0.1} | options), module)
    assert isinstance(optimizer, muon.Optimizer)
    return optimizer


def copied(module: Tower) -> Tower:
    other = Tower()
    other.load_state_dict(module.state_dict())
    return other


def give_gradients(*modules: nn.Module) -> None:
    """The same noise for all of them."""
    for parameters in zip(*(module.parameters() for module in modules), strict=True):
        gradient = torch.randn_like(parameters[0])
        for parameter in parameters:
            parameter.grad = gradient.clone()


def tiny_step() -> tuple[Run, Step]:
    run = load("demo", ["optim={name: muon, lr: 1e-3}", "backbone.depth=2", "batch=8", "objective.decoder.depth=1"])
    return run, build_step(run)


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_matrix_moves_as_with_torchs_muon(nesterov: bool) -> None:
    ours = Tower()
    theirs = copied(ours)
    first = [parameter.detach().clone() for parameter in ours.parameters()]
    pair = (
        built(ours, weight_decay=0.3, momentum=0.8, nesterov=nesterov),
        torch.optim.Muon(
            theirs.parameters(), lr=0.1, weight_decay=0.3, momentum=0.8, nesterov=nesterov,
            adjust_lr_fn="match_rms_adamw",
        ),
    )  # fmt: skip
    for _ in range(5):
        give_gradients(ours, theirs)
        for optimizer in pair:
            optimizer.step()
    for one, other, start in zip(ours.parameters(), theirs.parameters(), first, strict=True):
        assert float((one - other).detach().norm()) < 0.02 * float((other - start).detach().norm())  # bf16 rounds


def test_the_direction_has_the_gradients_singular_vectors_and_the_polynomials_values() -> None:
    module = Tower(qkv=(36, 12), key_value=(10, 20))
    before = [parameter.detach().clone() for parameter in module.parameters()]
    optimizer = built(module, lr=1.0, weight_decay=0.0, nesterov=False, arithmetic="fp32", rms=0.5)
    give_gradients(module)
    gradients = [parameter.grad.double() for parameter in module.parameters() if parameter.grad is not None]
    optimizer.step()
    for pieces, parameter, start, gradient in zip((1, 1, 3, 2), module.parameters(), before, gradients, strict=True):
        moved = (start - parameter.detach()).double()
        for ours, whole in zip(moved.chunk(pieces), gradient.chunk(pieces), strict=True):
            left, values, right = torch.linalg.svd(whole, full_matrices=False)
            values = values / values.norm()
            for _ in range(5):
                values = QUINTIC[0] * values + QUINTIC[1] * values**3 + QUINTIC[2] * values**5
            expected = left @ values.diag() @ right * 0.5 * max(whole.shape) ** 0.5
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
            assert 0.35 < float(ours.square().mean().sqrt()) < 0.65, "about `rms`"


def test_only_the_matrices_of_blocks_are_muons_and_the_rest_moves_as_with_adamw() -> None:
    run, ours = tiny_step()
    theirs = build_step(run)
    optimizer, other = build_optimizer(run.optim, ours), build_optimizer(adamw.Config(lr=1e-3), theirs)
    for each in (optimizer, other):
        set_lr(each, lambda scale: 1e-3 * scale)
    give_gradients(ours, theirs)
    moved = {name for name, parameter in ours.named_parameters() if parameter.grad is not None}
    optimizer.step()
    other.step()
    parameters = dict(ours.named_parameters())
    matrices = {name for name in moved if "gradient_average" in optimizer.state[parameters[name]]}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = ("backbone.blocks.0", "backbone.blocks.1", "decoder.blocks.0")
    assert matrices == {f"objective.{block}.{layer}.weight" for block in blocks for layer in layers}
    for name, parameter in theirs.named_parameters():
        assert torch.equal(parameter, parameters[name]) == (name not in matrices), name


def test_nothing_changes_while_the_flag_is_up() -> None:
    module = Tower()
    module.norm = nn.LayerNorm(3)
    optimizer = built(module)
    give_gradients(module)
    optimizer.step()

    def everything() -> list[Tensor]:
        state = [tensor for each in optimizer.state.values() for tensor in each.values()]
        return [tensor.detach().clone() for tensor in (*module.parameters(), *state)]

    before = everything()
    for gradient in (1.0, torch.nan):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.found_inf = torch.ones(())
        optimizer.step()
        assert all(map(torch.equal, everything(), before))
    optimizer.found_inf = torch.zeros(())
    give_gradients(module)
    optimizer.step()
    assert not any(map(torch.equal, everything(), before))


def test_groups_keep_their_scale_and_decay() -> None:
    decay = "{kind: linear, value: 0.1, end: 0.3}"
    optim = f"optim={{name: muon, lr: 1e-3, layer_decay: 0.5, weight_decay: {decay}}}"
    run = load("finetune_tiny_digits", [optim])
    step = build_step(run)
    optimizer = build_optimizer(run.optim, step)
    set_lr(optimizer, lambda scale: scale)
    set_weight_decay(optimizer, 0.2)
    names = {p: name.removeprefix("objective.") for name, p in step.named_parameters() if p.requires_grad}
    found = {
        names[parameter]: ("stacked" in group, group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(found) == len(names)
    assert found["backbone.blocks.5.mlp.fc1.weight"] == (True, 0.5, 0.2)
    assert found["backbone.blocks.5.mlp.fc1.bias"] == (False, 0.5, 0.0)
    assert found["head.weight"] == (False, 1.0, 0.2)


def test_a_checkpoint_of_another_optimizer_leaves_each_parameter_what_is_its_own() -> None:
    module = Tower()
    module.head = nn.Linear(3, 2)
    for section, other in ((muon.Config(lr=0.1), adamw.Config(lr=0.1)), (adamw.Config(lr=0.1), muon.Config(lr=0.1))):
        before, after = build_optimizer(section, module), build_optimizer(other, module)
        give_gradients(module)
        before.step()
        after.state.update(before.state)
        assert drop_foreign_state(after)
        kept = {name for name, parameter in module.named_parameters() if after.state[parameter]}
        assert kept == {"head.weight", "head.bias"}
        assert not drop_foreign_state(after), "its own it keeps"


def test_a_run_without_a_matrix_in_a_block_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.name: muon is for the matrices of blocks.*take adamw"):
        built(nn.Linear(3, 2))


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_the_doctor_counts_what_a_checkpoint_will_hold(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = load("demo", [f"optim={{name: {name}, lr: 1e-3}}", "backbone.depth=2"])
    step = build_step(run)
    optimizer = build_optimizer(run.optim, step)
    step(tiny_batch(run)).loss.backward()
    optimizer.step()
    tensors = [t for state in optimizer.state.values() for key, t in state.items() if key != "step"]
    tensors += step.state_dict().values()
    bytes_held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert checkpoint_bytes(Case(run, 1, tmp_path)) == pytest.approx(bytes_held, rel=0.02)
