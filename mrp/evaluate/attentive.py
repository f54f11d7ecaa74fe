"""Attentive pooling: one head that learns where to look among the patch tokens before it classifies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mrp.evaluate.heads import factor, minibatches
from mrp.evaluate.interval import Interval, wilson
from mrp.evaluate.readout import TOKENS
from mrp.evaluate.split import Split
from mrp.evaluate.table import Table

LRS = (1e-3, 3e-3, 1e-2)
GIB = 8  # of patch tokens on disk; where the training images have more, they are thinned out
_DECAY, _EPOCHS, _STEPS, _BATCH, _WARMUP = 0.05, 10, 500, 128, 0.05
_HEAD_WIDTH = 32


@dataclass(frozen=True, slots=True)
class Attention:
    """A trained head, the rate that was chosen for it, and what each rate came to on the held-out part."""

    module: Attend
    lr: float
    held_out: dict[str, float]
    num_train: int

    def measure(self, table: Table) -> Interval:
        """Count on a test set."""
        return wilson(_correct(self.module, table, np.arange(len(table))), len(table))


class Attend(nn.Module):
    """Learned queries, one for each slice of the width, each looking at all tokens its own way; then a classifier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        heads = max(count for count in range(1, max(1, width // _HEAD_WIDTH) + 1) if width % count == 0)
        self.width, self.heads = width, heads
        self.queries = nn.Linear(width, heads)
        self.values = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, classes)
        nn.init.zeros_(self.queries.weight)  # the mean of the tokens, to begin with
        nn.init.eye_(self.values.weight)
        nn.init.zeros_(self.classify.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores from flat rows of patch tokens."""
        tokens = functional.layer_norm(tokens.unflatten(1, (-1, self.width)), (self.width,))
        where = self.queries(tokens).softmax(dim=1)  # B T heads
        values = self.values(tokens).unflatten(2, (self.heads, -1))  # B T heads D/heads
        pooled = torch.einsum("bth,bthd->bhd", where, values).flatten(1)
        scores: Tensor = self.classify(self.norm(pooled))
        return scores


def learn(table: Table, parts: Split, width: int, device: torch.device, lrs: Sequence[float] = LRS) -> Attention:
    """Choose the rate on the held-out part, then train on the whole training set."""
    classes = int(table.labels.max()) + 1
    held_out = {}
    for lr in lrs:
        module = _train(table, parts.fitting, width, classes, lr, device)
        held_out[lr] = _correct(module, table, parts.held_out) / len(parts.held_out)
    best = max(lrs, key=lambda lr: held_out[lr])
    module = _train(table, np.arange(len(table)), width, classes, best, device)
    return Attention(module, best, {f"{lr:g}": accuracy for lr, accuracy in held_out.items()}, len(table))


def _train(table: Table, rows: NDArray[np.int64], width: int, classes: int, lr: float, device: torch.device) -> Attend:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Attend(width, classes).to(device)
    batch = min(len(rows), _BATCH)
    an_epoch = len(rows) // batch
    epochs = max(_EPOCHS, -(-_STEPS // an_epoch))
    optimizer = torch.optim.AdamW(module.parameters(), lr, weight_decay=_DECAY)
    for number, chosen in enumerate(minibatches(rows, batch, an_epoch, epochs, seed=0)):
        optimizer.param_groups[0]["lr"] = lr * factor(number, an_epoch * epochs, _WARMUP)
        labels = table.labels[torch.from_numpy(chosen)].to(device)
        loss = functional.cross_entropy(module(table.rows([TOKENS], chosen).to(device)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()


@torch.no_grad()
def _correct(module: Attend, table: Table, rows: NDArray[np.int64]) -> int:
    return sum(int((module(tokens).argmax(1).cpu() == labels).sum()) for tokens, labels in _read(module, table, rows))


def _read(module: Attend, table: Table, rows: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
    device = module.classify.weight.device
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        yield table.rows([TOKENS], part).to(device), table.labels[torch.from_numpy(part)]
