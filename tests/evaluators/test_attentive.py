"""Attentive pooling: it finds what a mean of all tokens drowns."""

from __future__ import annotations

import numpy as np
import torch

from mrp.data.open import open_source
from mrp.evaluate.readout import TOKENS, Readout
from mrp.evaluate.table import Table
from mrp.evaluators import attentive
from mrp.run import load
from tests.evaluators.settings import setting

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
