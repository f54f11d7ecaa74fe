"""Classification: labels as numbers or shares, what is counted, and the frozen probe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from mrp.batch import Batch
from mrp.build import build_step
from mrp.config import ConfigError
from mrp.methodkit import Standardise
from tests.objectives.test_every_objective import gradients, make_batch, make_run


def run(**options: Any) -> Any:
    return make_run("classify", objective={"name": "classify", "classes": 8, "head_std": 0.5} | options)


def test_shares_of_classes_generalise_labels() -> None:
    chosen = run(smoothing=0.1)
    step = build_step(chosen)
    batch = make_batch(chosen)
    shares = functional.one_hot(batch.labels, 8).float()
    first, second = step(batch), step(Batch(batch.images, batch.keys, shares))
    assert torch.allclose(first.loss, second.loss)
    for name in ("loss", "correct", "correct5"):
        assert torch.allclose(first.per_sample[name], second.per_sample[name])


def test_labels_are_smoothed_in_training_alone() -> None:
    chosen = run(smoothing=0.3)
    step, batch = build_step(chosen), make_batch(chosen)
    logits = step.objective.predict(step.prepare(batch.images), batch.keys)[1]
    training, evaluating = step(batch).loss, step.eval()(batch).loss
    assert torch.allclose(training, functional.cross_entropy(logits, batch.labels, label_smoothing=0.3))
    assert torch.allclose(evaluating, functional.cross_entropy(logits, batch.labels))


def test_the_first_answer_and_the_first_five_are_counted() -> None:
    chosen = run()
    step, batch = build_step(chosen), make_batch(chosen, 32)
    output = step(batch)
    logits = step.objective.predict(step.prepare(batch.images), batch.keys)[1]
    better = (logits > logits.gather(1, batch.labels[:, None])).sum(1)
    assert torch.equal(output.per_sample["correct"], (better == 0).float())
    assert torch.equal(output.per_sample["correct5"], (better < 5).float())
    assert 0 < output.per_sample["correct5"].mean() < 1
    assert torch.equal(output.metrics["accuracy"], output.per_sample["correct"].mean())


def test_two_classes_have_no_five() -> None:
    chosen = run(classes=2)
    step, batch = build_step(chosen), make_batch(chosen)
    batch.labels %= 2
    assert step(batch).per_sample["correct5"].all()


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_features_are_what_the_head_sees(pool: str) -> None:
    chosen = run(pool=pool)
    step, batch = build_step(chosen).eval(), make_batch(chosen)
    features = step(batch, features=True).features
    assert torch.allclose(features, step(batch).features)
    tokens = step.objective.backbone.forward_features(step.prepare(batch.images))
    expected = tokens[:, 0] if pool == "cls" else nn.functional.layer_norm(tokens[:, 1:].mean(1), (32,), eps=1e-6)
    assert torch.allclose(features, expected, atol=1e-5)


def test_the_probe_trains_its_head_alone() -> None:
    chosen = run(frozen=True, pool="cls")
    step = build_step(chosen)
    before = {key: tensor.clone() for key, tensor in step.objective.backbone.state_dict().items()}
    step(make_batch(chosen)).loss.backward()
    assert gradients(step).keys() == {"objective.head.weight", "objective.head.bias"}
    assert not step.train().objective.backbone.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in step.objective.backbone.state_dict().items())


def test_standardising_is_batch_norm_that_moves_with_the_optimizer() -> None:
    ours, theirs = Standardise(5), nn.BatchNorm1d(5, eps=1e-6, affine=False)
    for number in range(3):
        features = torch.randn(16, 5) * 3 + 1
        assert torch.allclose(ours(features), theirs(features), atol=1e-5)
        assert number or torch.equal(ours.mean, torch.zeros(5))
        ours.follow(torch.tensor(True))
    assert torch.allclose(ours.mean, theirs.running_mean, atol=1e-6)
    assert torch.allclose(ours.variance, theirs.running_var, atol=1e-5)
    features = torch.randn(4, 5)
    assert torch.allclose(ours.eval()(features), theirs.eval()(features), atol=1e-5)


def test_over_micro_batches_the_running_statistics_move_once_towards_their_mean() -> None:
    ours, pieces = Standardise(5), torch.randn(4, 8, 5) + 2
    for piece in pieces:
        ours(piece)
    ours.follow(torch.tensor(True))
    assert torch.allclose(ours.mean, 0.1 * pieces.mean((0, 1)), atol=1e-6)
    assert torch.allclose(ours.variance, 0.9 + 0.1 * pieces.var(1).mean(0), atol=1e-6)


def test_a_batch_that_is_not_finite_leaves_no_trace() -> None:
    ours = Standardise(5)
    ours(torch.full((4, 5), torch.nan))
    ours.follow(torch.tensor(False))
    assert torch.equal(ours.mean, torch.zeros(5))
    assert not ours.noted.any()


@pytest.mark.parametrize(
    ("options", "backbone", "labelled", "message"),
    [
        ({}, {}, False, "classify needs labels"),
        ({"pool": "cls"}, {"class_token": False}, True, "objective.pool: cls needs backbone.class_token"),
    ],
)
def test_what_cannot_be_is_said(options: Any, backbone: Any, labelled: bool, message: str) -> None:
    chosen = make_run("classify", backbone=backbone, objective={"name": "classify", "classes": 4} | options)
    batch = make_batch(chosen)
    with pytest.raises(ConfigError, match=message):
        build_step(chosen)(batch if labelled else Batch(batch.images, batch.keys))


def test_binary_asks_of_each_class_by_itself() -> None:
    chosen = run(loss="binary", smoothing=0.2)
    step, batch = build_step(chosen), make_batch(chosen)
    logits = step.objective.predict(step.prepare(batch.images), batch.keys)[1]
    sharp = functional.one_hot(batch.labels, 8).float()
    smooth = torch.where(sharp > 0, 0.825, 0.025)
    assert torch.allclose(step(batch).loss, functional.binary_cross_entropy_with_logits(logits, smooth))
    assert torch.allclose(step.eval()(batch).loss, functional.binary_cross_entropy_with_logits(logits, sharp))
    shares = Batch(batch.images, batch.keys, sharp)
    assert torch.equal(step(batch).per_sample["loss"], step(shares).per_sample["loss"])


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_frozen_prefix_gets_no_gradient_and_stays_as_in_evaluation(count: int) -> None:
    backbone = {"drop_path": 0.5, "positions": "learned", "relative_bias": "shared", "attention_dropout": 0.5}
    chosen = make_run(
        "classify", backbone=backbone, objective={"name": "classify", "classes": 8, "frozen_blocks": count}
    )
    step = build_step(chosen).train()
    step(make_batch(chosen)).loss.backward()
    trained = {name.removeprefix("objective.") for name in gradients(step)}
    assert {name.split(".")[2] for name in trained if name.startswith("backbone.blocks.")} == {
        str(layer) for layer in range(count, 2)
    }
    assert {name.rpartition(".")[0] for name in trained if not name.startswith("backbone.blocks.")} == {
        "head", "backbone.fc_norm",
    }  # fmt: skip
    blocks = step.objective.backbone.blocks
    assert [block.attn.attn_drop.training for block in blocks] == [layer >= count for layer in range(2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen_blocks": 3}, "objective.frozen_blocks: 3 of 2 blocks"),
        ({"frozen_blocks": 1, "frozen": True}, "leave one of the two out"),
    ],
)
def test_a_prefix_that_cannot_be_frozen(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_step(run(**options))


HAS = [[1.0, 0.0, torch.nan], [torch.nan, 1.0, 1.0], [torch.nan] * 3, [0.0, 0.0, 0.0]]  # images, tags


def tags(**options: Any) -> tuple[Any, Batch, torch.Tensor]:
    """A classifier of three tags, images, and what it says of them."""
    chosen = run(classes=3, loss="tags", **options)
    step, batch = build_step(chosen), make_batch(chosen, 4)
    batch.labels = torch.tensor(HAS)
    return step, batch, step.objective.predict(step.prepare(batch.images), batch.keys)[1]


def test_tags_are_asked_one_by_one_and_those_that_nobody_knows_do_not_count() -> None:
    step, batch, logits = tags()
    yes, no = -functional.logsigmoid(logits), -functional.logsigmoid(-logits)
    expected = [(yes[0, 0] + no[0, 1]) / 2, (yes[1, 1] + yes[1, 2]) / 2, torch.zeros(()), no[3].mean()]
    output = step(batch)
    assert torch.allclose(output.per_sample["loss"], torch.stack(expected), atol=1e-6)
    assert torch.allclose(output.loss, torch.stack(expected).mean(), atol=1e-6)
    assert output.per_sample["known"].tolist() == [2, 2, 0, 3]
    assert output.metrics.keys() == {"loss"}
    assert output.scores is not None
    assert torch.equal(output.scores, logits)


def test_a_tag_that_nobody_knows_moves_nothing() -> None:
    step, batch, _ = tags()
    batch.labels[:, 2] = torch.nan
    step(batch).loss.backward()
    gradient = step.objective.head.weight.grad
    assert gradient[2].eq(0).all()
    assert gradient.isfinite().all()
    assert gradient[:2].ne(0).any(1).all()


def test_smoothing_of_tags_is_spread_over_yes_and_no() -> None:
    step, batch, logits = tags(smoothing=0.2)
    of_last = functional.binary_cross_entropy_with_logits(logits[3], torch.full((3,), 0.1))
    assert torch.allclose(step(batch).per_sample["loss"][3], of_last)
    assert torch.allclose(step.eval()(batch).per_sample["loss"][3], -functional.logsigmoid(-logits[3]).mean())


def test_shares_of_tags_are_answers_in_between() -> None:
    step, batch, logits = tags()
    batch.labels = torch.tensor([[0.25, torch.nan, 0.0]] * 4)
    asked = functional.binary_cross_entropy_with_logits(logits[:, [0, 2]], batch.labels[:, [0, 2]], reduction="none")
    assert torch.allclose(step(batch).per_sample["loss"], asked.mean(1))


def test_one_tag_is_enough_and_one_class_is_not() -> None:
    assert build_step(run(classes=1, loss="tags")).objective.head.out_features == 1
    with pytest.raises(ConfigError, match="classes: 1 leaves nothing to tell apart; give 2 or more"):
        run(classes=1)
