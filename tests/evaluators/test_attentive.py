"""Attentive pooling: it finds what a mean of all tokens drowns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mrp.data.open import open_source
from mrp.data.order import keys
from mrp.data.subset import evenly_spaced
from mrp.evaluate.contract import Setting, Training, never
from mrp.evaluate.heads import Schedule
from mrp.evaluate.probe import Probe
from mrp.evaluate.readout import TOKENS, Readout
from mrp.evaluate.split import split
from mrp.evaluate.table import Table
from mrp.evaluators import attentive
from mrp.processes.signals import Interrupted
from mrp.run import load
from mrp.step import Step
from tests.evaluators.settings import Alone, setting

READOUT = Readout((1,), (TOKENS,), width=8, num_patches=16)


def table(count: int, seed: int) -> Table:
    """Sixteen tokens of eight numbers: one, marked by the first number, says the class; the others say any class."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    said = random.integers(0, 4, (count, 16))
    place = random.integers(0, 16, count)
    said[np.arange(count), place] = labels
    tokens = 0.1 * random.normal(size=(count, 16, 8)) + 2 * np.eye(8)[4 + said]
    tokens[np.arange(count), place, 0] += 4
    columns = {"1.tokens": tokens.reshape(count, -1).astype(np.float16)}
    return Table(columns, torch.from_numpy(labels), torch.arange(count) + 10_000 * seed)


def test_it_looks_where_the_class_is() -> None:
    train, test, digits = table(800, 1), table(400, 2), open_source("digits", "test")
    evaluator = attentive.Evaluator(attentive.Config(), setting(load("demo").data, digits, digits))
    learned = evaluator.learn(train, READOUT, lrs=(3e-3, 3e-2))
    details = evaluator.count(learned, train, test, READOUT).details
    assert details["accuracy"] > 0.9  # the mean of all tokens is right in less than half of the cases
    assert details["low"] < details["accuracy"]
    assert learned.held_out[f"{learned.lr:g}"] == max(learned.held_out.values())
    assert (details["num_train"], details["num_test"]) == (800, 400)


def test_it_starts_as_the_mean_of_the_tokens() -> None:
    module = attentive.Attend(64, 3)
    tokens = torch.randn(2, 5 * 64, generator=torch.Generator().manual_seed(0))
    assert module.heads == 2
    assert torch.equal(module(tokens), torch.zeros(2, 3) + module.classify.bias)
    seen: list[torch.Tensor] = []
    module.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(tokens)
    normalised = torch.nn.functional.layer_norm(tokens.view(2, 5, 64), (64,))
    torch.testing.assert_close(seen[0], normalised.mean(1) + module.values.bias)


def computed(folder: Path, **options: object) -> tuple[attentive.Evaluator, Setting]:
    train, test = (
        evenly_spaced(open_source("digits", split), count) for split, count in (("train", 200), ("test", 70))
    )
    at = setting(load("demo").data, train, test, folder=folder)
    return attentive.Evaluator(attentive.Config.model_validate(options), at), at


def test_tokens_that_do_not_fit_are_computed_of_all_images(
    step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"GIB": 0, "_SCHEDULE": Schedule((32, 32), 3, 30), "_COST_AFTER": 2}.items():
        monkeypatch.setattr(attentive, name, value)
    evaluator, at = computed(tmp_path)
    with at.tables.of("weights"):
        result = evaluator.measure(step, 0, never)
        learned = evaluator._learn_computed(step, Readout.tokens(step), never)
        table = at.features(at.labelled(), step, Readout.tokens(step), never)
    assert "attentive: patch tokens of 200 images are computed in each of 5 epochs" in capsys.readouterr().err
    assert (result.details["num_train"], result.details["num_test"]) == (200, 70)
    assert result.details["computed"]["images"] == 30 * 32
    assert result.details["held_out"].keys() == {f"{lr:g}" for lr in attentive.LRS}
    assert result.details["held_out"][f"{result.details['lr']:g}"] == max(result.details["held_out"].values())
    assert learned.held_out == result.details["held_out"]
    assert table is not None
    kept = evaluator._right(learned.head, table, Readout.tokens(step), np.arange(70))
    assert result.right is not None
    assert (kept == result.right).double().mean() > 0.95  # in the order of the source; tokens on disk are rounded


def test_every_test_image_counts_where_only_the_training_images_fit(
    step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attentive, "_SCHEDULE", Schedule((32, 32), 1, 3))
    monkeypatch.setattr(attentive.Evaluator, "most", lambda self, readout: 200)
    train, test = (evenly_spaced(open_source("digits", "test"), count) for count in (100, 210))
    at = setting(load("demo").data, train, test, folder=tmp_path)
    with at.tables.of("weights"):
        result = attentive.Evaluator(attentive.Config(), at).measure(step, 0, never)
    assert result.details["num_test"] == 210


def learned_heads(step: Step, at: Setting, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the classifiers of the first head that chooses, and of the head that was taken."""
    evaluator = attentive.Evaluator(attentive.Config(tokens="computed"), at)
    seen, answers = list[torch.Tensor](), evaluator._answers

    def noted(given: list[attentive.Attend], *others: Any) -> torch.Tensor:
        seen.append(given[0].classify.weight.detach().clone())
        return answers(given, *others)

    monkeypatch.setattr(evaluator, "_answers", noted)
    with at.tables.of("weights"):
        learned = evaluator._learn_computed(step, Readout.tokens(step), never)
    return seen[0], learned.head.classify.weight.detach()


@pytest.mark.parametrize(("images", "world"), [(100, 3), (12, 16)])
def test_fewer_images_than_a_batch_of_all_processes(
    images: int, world: int, step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attentive, "_SCHEDULE", Schedule((128, 128), 1, 2))
    monkeypatch.setattr(
        attentive.Evaluator, "_answers", lambda _, heads, source, *more: torch.zeros(len(source), len(heads))
    )
    digits = evenly_spaced(open_source("digits", "train"), images)
    at = setting(load("demo").data, digits, digits, Alone(world - 1, world), folder=tmp_path)
    evaluator = attentive.Evaluator(attentive.Config(tokens="computed"), at)
    assert evaluator._learn_computed(step, Readout.tokens(step), never).computed["images"] >= images


def test_workers_end_where_it_is_interrupted(step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = list[attentive.Loader]()
    monkeypatch.setattr(attentive.Loader, "close", lambda loader: closed.append(loader))
    _, at = computed(tmp_path)

    def pause() -> None:
        raise Interrupted

    with at.tables.of("weights"), pytest.raises(Interrupted):
        attentive.Evaluator(attentive.Config(tokens="computed"), at).measure(step, 0, pause)
    assert len(closed) == 1


def test_held_out_images_do_not_touch_the_heads_that_choose_the_rate(
    step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attentive, "_SCHEDULE", Schedule((32, 32), 1, 8))
    _, at = computed(tmp_path)
    clean = learned_heads(step, at, monkeypatch)
    labels = torch.from_numpy(at.train.labels.astype(np.int64))
    held_out = set(split(labels, torch.from_numpy(keys(0, 0, np.arange(200)))).held_out.tolist())
    read = at.train.read
    spoiled = lambda number: (read(number)[0] * (number not in held_out), read(number)[1])  # noqa: E731
    monkeypatch.setattr(at.train, "read", spoiled)  # black images under the same labels
    other = learned_heads(step, at, monkeypatch)
    assert torch.equal(clean[0], other[0])
    assert not torch.equal(clean[1], other[1])


def test_a_run_that_trains_keeps_tokens_of_some_images(
    step: Step, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attentive, "GIB", 0)
    _, at = computed(tmp_path)
    inside = replace(at, training=Training(steps=10, warmup=1, steps_per_epoch=1, batch=8))
    called: list[str] = []
    monkeypatch.setattr(attentive.Evaluator, "_measure_computed", lambda *given: called.append("computed"))
    monkeypatch.setattr(Probe, "measure", lambda *given: called.append("kept"))
    for where, tokens in ((at, "auto"), (inside, "auto"), (inside, "computed"), (at, "kept")):
        config = attentive.Config.model_validate({"tokens": tokens})
        attentive.Evaluator(config, where).measure(step, 0, never)
    assert called == ["computed", "kept", "computed", "kept"]
