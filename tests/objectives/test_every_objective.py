"""What every training method must do; a new file in mrp/objectives is picked up by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from mrp.batch import Batch, Output
from mrp.build import build_optimizer, build_step, measure_cost
from mrp.checkpoint import checkpoints
from mrp.checkpoint.saver import save_now
from mrp.config import Tree, build
from mrp.objectives import OBJECTIVES
from mrp.optim.groups import set_lr
from mrp.optimizers import adamw
from mrp.run import Run
from mrp.step import Step

# The smallest sensible options of each method and of its variants; one that is not here is tried with its defaults.
DECODER = {"width": 32, "depth": 1, "heads": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "mae": {"decoder": DECODER},
    "u-mae": {"name": "mae", "masks": 2, "decoder": DECODER, "uniformity": {"weight": 0.1, "feature": "mean"}},
    "simmim": {"mask_unit": 8},
    "u-simmim": {"name": "simmim", "mask_unit": 8, "uniformity": {"weight": 0.1, "feature": "mean"}},
    "data2vec": {"smallest_block": 4, "layers": 1},
    "u-data2vec": {
        "name": "data2vec", "smallest_block": 4, "layers": 2, "masks": 2,
        "uniformity": {"weight": 0.1, "feature": "mean"},
    },
    "data2vec2": {"masks": 3, "layers": 1, "decoder": {"width": 32, "depth": 2, "groups": 4}},
    "classify": {"classes": 4, "smoothing": 0.1},
    "probe": {"name": "classify", "classes": 4, "frozen": True, "head_std": 0.01},
}  # fmt: skip
NAMES = list(VARIANTS) + [name for name in OBJECTIVES.names() if name not in VARIANTS]

SHAPES = [
    pytest.param({"size": 16, "channels": 3}, {}, id="square"),
    pytest.param({"size": [16, 24], "channels": 3}, {"registers": 2}, id="rectangular-registers"),
    pytest.param({"size": 16, "channels": 1}, {"positions": "learned"}, id="grey-learned"),
    pytest.param({"size": 16, "channels": 5}, {"class_token": False}, id="five-channels-no-class-token"),
    pytest.param(
        {"size": [16, 24]},
        {"layer_scale": 0.1, "relative_bias": "shared", "positions": "none", "qkv_bias": "query_value"},
        id="beit",
    ),
    pytest.param(
        {"size": 16},
        {"norm": "post", "relative_bias": "per_block", "drop_path": 0.3, "attention_dropout": 0.1, "registers": 1},
        id="post-norm-bias-drop",
    ),
]


def make_run(name: str, data: dict[str, Any] | None = None, backbone: dict[str, Any] | None = None, **more: Any) -> Run:
    values = {
        "objective": {"name": name} | VARIANTS.get(name, {}),
        "backbone": {"width": 32, "depth": 2, "heads": 4, "patch": 4} | (backbone or {}),
        "data": {"train": "digits"} | (data or {"size": 16}),
        "batch": 8,
        "length": "10 steps",
        "optim": {"lr": 1e-3},
        "precision": "fp32",
    }
    return build(Run, Tree(values | more, {}))


def make_batch(run: Run, count: int = 8, first: int = 0, step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(first)
    images = torch.randint(0, 256, (count, run.data.channels, *run.data.shape), dtype=torch.uint8, generator=generator)
    keys = torch.arange(first, first + count) * 7919
    return Batch(images, keys, labels=torch.arange(count) % 4, step=torch.tensor(step))


def gradients(step: Step) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in step.named_parameters() if parameter.grad is not None}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("data", "backbone"), SHAPES)
def test_loss_is_finite_and_every_trained_parameter_gets_a_gradient(
    name: str, data: dict[str, Any], backbone: dict[str, Any]
) -> None:
    run = make_run(name, data, backbone)
    step = build_step(run)
    output: Output = step(make_batch(run))
    output.loss.backward()
    assert output.loss.shape == ()
    assert output.loss.isfinite()
    trained = {key for key, parameter in step.named_parameters() if parameter.requires_grad}
    found = gradients(step)
    assert found.keys() == trained
    assert all(gradient.isfinite().all() for gradient in found.values())
    silent = [key for key, gradient in found.items() if not gradient.any()]
    assert not silent
    assert all(not value.requires_grad for value in output.metrics.values())
    assert all(value.shape == (8,) and not value.requires_grad for value in output.per_sample.values())


def test_masks_and_losses_follow_the_sample_not_its_place(name: str) -> None:
    run = make_run(name)
    step = build_step(run)
    batch = make_batch(run)
    turned = Batch(batch.images.flip(0), batch.keys.flip(0), batch.labels.flip(0), step=batch.step)
    ours, theirs = step(batch), step(turned)
    for key, value in ours.per_sample.items():
        assert torch.allclose(value, theirs.per_sample[key].flip(0), atol=1e-6)


def test_the_backbone_is_exported_under_timms_names(name: str) -> None:
    run = make_run(
        name, backbone={"name": "vit_tiny_patch16_224", "width": None, "depth": None, "heads": None, "patch": 4}
    )
    backbone = build_step(run).objective.backbone
    pool = "avg" if isinstance(backbone.fc_norm, torch.nn.LayerNorm) else "token"
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=16, patch_size=4, global_pool=pool)
    theirs.load_state_dict(backbone.state_dict(), strict=True)


def test_it_overfits_eight_images(name: str) -> None:
    run = make_run(name)
    step = build_step(run)
    optimizer = build_optimizer(adamw.Config(lr=3e-3, weight_decay=0.0), step)
    batch = make_batch(run)
    losses = []
    for number in range(150):
        set_lr(optimizer, lambda scale: 3e-3 * scale)
        output = step(batch)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step.after_step(number, torch.tensor(True))
        losses.append(float(output.loss.detach()))
    assert losses[-1] < 0.5 * losses[0], losses[::30]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_one_graph_over_three_steps(name: str, precision: str) -> None:
    run = make_run(name, precision=precision)
    step = build_step(run)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    for number in range(3):
        batch = make_batch(run, first=10 * number, step=number)
        output = compiled(batch)
        output.loss.backward()
        assert torch.allclose(output.loss, step(batch).loss, rtol=1e-4 if precision == "fp32" else 2e-2)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_four_micro_batches_give_the_gradient_of_one_batch(name: str) -> None:
    run = make_run(name)
    if run.couples_samples:
        pytest.skip("its samples act on each other within a micro-step: see test_uniformity.py and test_classify.py")
    step = build_step(run)
    batch = make_batch(run)
    step(batch).loss.backward()
    whole = {key: gradient.clone() for key, gradient in gradients(step).items()}
    step.zero_grad()
    for part in range(4):
        rows = slice(2 * part, 2 * part + 2)
        piece = Batch(batch.images[rows], batch.keys[rows], batch.labels[rows], step=batch.step)
        (step(piece).loss / 4).backward()
    for key, gradient in gradients(step).items():
        assert torch.allclose(gradient, whole[key], rtol=1e-4, atol=1e-6), key


def test_features_are_of_the_whole_image_and_need_no_mask(name: str) -> None:
    run = make_run(name)
    step = build_step(run).eval()
    batch = make_batch(run)
    other = Batch(batch.images, batch.keys + 1, batch.labels, step=batch.step)
    with torch.no_grad():
        first, second = step(batch, features=True).features, step(other, features=True).features
    assert first.shape == (8, 32)
    assert torch.equal(first, second)


def train(step: Step, optimizer: torch.optim.Optimizer, run: Run, steps: range) -> None:
    for number in steps:
        torch.manual_seed(number)
        step(make_batch(run, first=8 * number, step=number)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step.after_step(number, torch.tensor(True))


def test_a_resumed_run_ends_bit_equal(name: str, tmp_path: Path) -> None:
    run = make_run(name, backbone={"drop_path": 0.2, "attention_dropout": 0.1})
    straight, before, after = (build_step(run) for _ in range(3))
    straight_optimizer, before_optimizer, after_optimizer = (
        build_optimizer(run.optim, s) for s in (straight, before, after)
    )
    train(straight, straight_optimizer, run, range(5))
    train(before, before_optimizer, run, range(3))
    save_now(tmp_path, 3, before, before_optimizer, {}, keep=1)
    found = checkpoints.newest(tmp_path)
    assert found is not None
    with torch.no_grad():
        for parameter in after.parameters():
            parameter.fill_(torch.nan)
    checkpoints.restore(found, after, after_optimizer)
    train(after, after_optimizer, run, range(3, 5))
    ours, theirs = after.state_dict(), straight.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_nothing_moves_while_the_optimizer_is_held_back(name: str) -> None:
    run = make_run(name)
    step = build_step(run)
    train(step, build_optimizer(run.optim, step), run, range(1))
    before = {key: tensor.clone() for key, tensor in step.state_dict().items()}
    step(make_batch(run)).loss.backward()
    step.after_step(1, torch.tensor(False))
    assert all(torch.equal(tensor, before[key]) for key, tensor in step.state_dict().items())


def test_stochastic_depth_reaches_the_method(name: str) -> None:
    run = make_run(name, backbone={"drop_path": 0.5})
    step = build_step(run)
    batch = make_batch(run)
    training, again, evaluating = step(batch), step(batch), step.eval()(batch)
    assert torch.equal(training.loss, again.loss)  # from the samples' keys, not from a generator
    if not getattr(run.objective, "frozen", False):
        assert not torch.equal(training.per_sample["loss"], evaluating.per_sample["loss"])


def test_its_cost_can_be_counted(name: str) -> None:
    cost = measure_cost(make_run(name))
    assert cost.forward_flops > 0
    assert 0 < cost.trainable <= cost.parameters
