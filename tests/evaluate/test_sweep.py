"""The sweep: heads as good as a solver's, a choice that knows no test set, a test set that opens once."""

from __future__ import annotations

import inspect
import typing

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from mrp.evaluate import heads, sweep
from mrp.evaluate.config import Heads as Options
from mrp.evaluate.readout import Readout
from mrp.evaluate.sealed import NothingToChoose, Sealed
from mrp.evaluate.split import split
from mrp.evaluate.table import Table, under_views

CPU = torch.device("cpu")
SHORT = heads.Schedule(epochs=2, steps=40)


def digits() -> tuple[Table, Table]:
    """Two layers of two poolings, one of which is far better than the rest: the others see a part, through noise."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, targets = images[order].astype(np.float32), torch.from_numpy(labels[order])
    noise = np.random.default_rng(1).normal(0, 4, images.shape).astype(np.float32)
    columns = {"1.class": images[:, :16], "1.mean": images[:, :16] + noise[:, :16], "2.class": images[:, 16:32]}
    columns |= {"2.mean": images[:, 24:40] + noise[:, 24:40]}
    columns["2.mean"] = images[:, 20:36]
    tables = []
    for rows in (slice(0, 1400), slice(1400, None)):
        tables.append(
            Table(
                {name: values[rows].astype(np.float16) for name, values in columns.items()},
                targets[rows],
                torch.arange(len(targets))[rows],
            )
        )
    return tables[0], tables[1]


TRAIN, TEST = digits()
PARTS = split(TRAIN.labels, TRAIN.keys)
EVERY = sweep.inputs([1, 2], ["class", "mean"])


def accuracy(head: sweep.Head, table: Table) -> float:
    return float((head.predict(table) == table.labels).double().mean())


def choose(table: Table = TRAIN) -> sweep.Choice:
    return sweep.choose(table, PARTS, EVERY, CPU, schedule=SHORT)


def test_inputs_are_every_layer_and_pooling_and_the_last_four_together() -> None:
    found = sweep.inputs([9, 10, 11, 12], ["class", "mean"])
    assert len(found) == 4 * 3 + 2
    assert found[2].blocks == ("9.class", "9.mean")
    assert found[-1].blocks == ("9.mean", "10.mean", "11.mean", "12.mean")
    assert found[-1].layer == "9-12"
    assert [one.pooling for one in sweep.inputs([1], ["mean"])] == ["mean"]
    assert len(found) * len(sweep.LRS) * len(sweep.DECAYS) >= 50


def test_heads_trained_together_are_each_as_if_alone() -> None:
    choice = choose()
    assert len(choice.trials) == 8 * len(sweep.LRS) * len(sweep.DECAYS)
    for trial in (choice.trials[17], choice.trials[-1]):
        (one,) = [c for c in EVERY if (c.layer, c.pooling) == (trial.layer, trial.pooling)]
        alone = sweep.choose(TRAIN, PARTS, [one], CPU, [trial.lr], [trial.decay], SHORT)
        assert alone.best.accuracy == pytest.approx(trial.accuracy, abs=2 / len(PARTS.held_out))
        assert alone.best.loss == pytest.approx(trial.loss, rel=1e-3)


def test_a_step_is_that_of_torchs_adamw() -> None:
    random = torch.Generator().manual_seed(0)
    columns, labels = torch.randn(32, 6, generator=random), torch.randint(3, (32,), generator=random)
    ours = heads.Heads([("a",)], torch.eye(6)[None], 3, torch.tensor([0.01]), torch.tensor([0.5]))
    weight, bias = torch.zeros(6, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    theirs = torch.optim.AdamW([{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}], 0.01, weight_decay=0.5)
    for _ in range(5):
        ours.step({"a": columns}, labels, 1.0)
        theirs.zero_grad()
        functional.cross_entropy(columns @ weight + bias, labels).backward()
        theirs.step()
    torch.testing.assert_close(ours.weight[0], weight.detach())
    torch.testing.assert_close(ours.bias[0, 0], bias.detach())


def test_the_best_is_chosen_and_refitted_comes_near_a_solver() -> None:
    choice = choose()
    assert choice.best.accuracy == max(trial.accuracy for trial in choice.trials)
    head = sweep.fit(choice, TRAIN, CPU)
    blocks = choice.input.blocks
    scaler = StandardScaler().fit(TRAIN.rows(blocks, slice(None)).numpy())
    theirs = LogisticRegression(C=0.1, max_iter=10000)
    theirs.fit(scaler.transform(TRAIN.rows(blocks, slice(None)).numpy()), TRAIN.labels.numpy())
    solver = theirs.score(scaler.transform(TEST.rows(blocks, slice(None)).numpy()), TEST.labels.numpy())
    assert accuracy(head, TEST) == pytest.approx(solver, abs=0.02)


def test_moves_and_grid_hold_the_best_of_each_value() -> None:
    choice = choose()
    moves, grid = choice.moves(), choice.grid()
    assert set(moves) == {"layer", "pooling", "lr", "decay"}
    assert all(max(values.values()) == choice.best.accuracy for values in moves.values())
    assert grid[choice.best.layer][choice.best.pooling] == choice.best.accuracy
    assert list(grid) == ["1", "2", "1-2"]


def test_the_choice_depends_on_the_training_set_alone() -> None:
    """No function that chooses or trains takes a test set, and the test set opens only for a choice that was made."""
    for function in (sweep.choose, sweep.fit, heads.train, heads.evaluate):
        tables = [name for name, kind in typing.get_type_hints(function).items() if kind is Table]
        assert tables == ["table"], function
    assert list(inspect.signature(sweep.choose).parameters)[:2] == ["table", "parts"]
    opened = []

    def unseal() -> Table:
        opened.append(True)
        return TEST

    sealed = Sealed(unseal)
    with pytest.raises(AssertionError, match="opens after the choice"):
        sealed.open(None)  # type: ignore[arg-type]
    assert not opened
    assert sealed.open(sweep.fit(choose(), TRAIN, CPU, SHORT)) is TEST
    with pytest.raises(AssertionError, match="whatever is chosen now has seen it"):
        sealed.open(NothingToChoose("again"))


def test_features_that_never_change_vanish() -> None:
    flat = Table({"1.mean": np.full((40, 5), 0.7, np.float16)}, torch.arange(40) % 4 // 3, torch.arange(40))
    parts = split(flat.labels, flat.keys)
    choice = sweep.choose(flat, parts, sweep.inputs([1], ["mean"]), CPU, schedule=SHORT)
    assert accuracy(sweep.fit(choice, flat, CPU, SHORT), flat) == pytest.approx(0.75)


def test_one_class_is_too_few() -> None:
    one = Table(TRAIN.columns, torch.zeros_like(TRAIN.labels), TRAIN.keys)
    with pytest.raises(ValueError, match="at least two classes"):
        choose(one)


@pytest.mark.parametrize(("count", "batch", "per_epoch"), [(10, 10, 1), (9000, 256, 35), (1_150_000, 1024, 1123)])
def test_the_schedule_of_few_and_many_samples(count: int, batch: int, per_epoch: int) -> None:
    found = heads.Schedule().of(count)
    assert found[:2] == (batch, per_epoch)
    assert 10 <= found[2] <= 100


def test_inputs_of_dinov2_are_class_tokens_with_and_without_the_last_mean() -> None:
    readout = Readout((3, 4, 5, 6, 7), ("class", "mean"), width=8, num_patches=4)
    found = {(one.layer, one.pooling): one.blocks for one in sweep.inputs_of(readout, "dinov2")}
    assert found == {
        ("7", "class"): ("7.class",),
        ("7", "both"): ("7.class", "7.mean"),
        ("4-7", "class"): ("4.class", "5.class", "6.class", "7.class"),
        ("4-7", "class + last mean"): ("4.class", "5.class", "6.class", "7.class", "7.mean"),
    }
    usual, every = sweep.inputs_of(readout, "sweep"), sweep.inputs_of(readout, "all")
    assert every[: len(usual)] == usual
    assert len(every) == len(usual) + 1
    without = Readout((1, 2), ("mean",), width=8, num_patches=4)
    with pytest.raises(ValueError, match="inputs: dinov2 reads class tokens, and the backbone has none"):
        sweep.inputs_of(without, "dinov2")


def test_products_in_half_precision_choose_heads_that_are_as_good() -> None:
    exact, half = (
        sweep.choose(TRAIN, PARTS, EVERY, CPU, schedule=SHORT, products=products)
        for products in sweep.PRODUCTS.values()
    )
    assert half.best.loss != exact.best.loss
    for one, other in zip(exact.trials, half.trials, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=0.02)
    assert sweep.fit(half, TRAIN, CPU, SHORT, products=torch.bfloat16).weight.dtype == torch.float32


def test_products_are_in_half_precision_where_the_options_say_so() -> None:
    found = [sweep.products_of(Options(products=name), CPU) for name in ("auto", "fp32", "bf16")]
    assert found == [torch.float32, torch.float32, torch.bfloat16]


def test_held_out_images_are_seen_once_and_under_no_other_view() -> None:
    seen = under_views([TRAIN, TRAIN, TRAIN], TRAIN.columns)
    assert (len(seen), seen.images, seen.views) == (3 * len(TRAIN), len(TRAIN), 3)
    parts = sweep.parts_of(seen)
    assert parts.held_out.tolist() == PARTS.held_out.tolist()
    assert parts.fitting.tolist() == [row + view * len(TRAIN) for view in range(3) for row in PARTS.fitting.tolist()]
    assert not set((parts.fitting % len(TRAIN)).tolist()) & set(parts.held_out.tolist())
    assert torch.equal(seen.rows(["1.class"], parts.fitting), TRAIN.rows(["1.class"], parts.fitting % len(TRAIN)))


def test_scores_are_computed_some_heads_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = choose()
    monkeypatch.setattr(heads, "_AT_ONCE", 1)
    parts = choose()
    for one, other in zip(whole.trials, parts.trials, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-4)
