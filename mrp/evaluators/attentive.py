"""Attentive pooling: one head that learns where to look among the patch tokens before it classifies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mrp.evaluate.answers import best_class
from mrp.evaluate.batches import minibatches
from mrp.evaluate.config import Section
from mrp.evaluate.contract import Result
from mrp.evaluate.heads import warmup_cosine
from mrp.evaluate.interval import wilson
from mrp.evaluate.probe import Probe
from mrp.evaluate.readout import Readout
from mrp.evaluate.sealed import Decision
from mrp.evaluate.split import split
from mrp.evaluate.table import Table

LRS = (1e-3, 3e-3, 1e-2)
GIB = 8  # of patch tokens on disk; where the images have more, evenly spaced ones are taken
_DECAY, _EPOCHS, _STEPS, _BATCH, _WARMUP = 0.05, 10, 500, 128, 0.05
_HEAD_WIDTH = 32


class Config(Section):
    """Options of attentive pooling: only how often."""


class Attend(nn.Module):
    """Learned queries, one for each slice of the width, pool all tokens; then comes a linear classifier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        heads = max(count for count in range(1, max(1, width // _HEAD_WIDTH) + 1) if width % count == 0)
        self.width, self.heads = width, heads
        self.queries = nn.Linear(width, heads)
        self.values = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, classes)
        nn.init.zeros_(self.queries.weight)  # at first, the mean of the tokens
        nn.init.eye_(self.values.weight)
        nn.init.zeros_(self.classify.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns scores from flat rows of patch tokens."""
        tokens = functional.layer_norm(tokens.unflatten(1, (-1, self.width)), (self.width,))
        attention = self.queries(tokens).softmax(dim=1)  # B T heads
        values = self.values(tokens).unflatten(2, (self.heads, -1))  # B T heads D/heads
        pooled = torch.einsum("bth,bthd->bhd", attention, values).flatten(1)
        scores: Tensor = self.classify(self.norm(pooled))
        return scores


@dataclass(frozen=True, slots=True)
class Learned(Decision):
    """A trained head, the rate that was chosen for it, and the held-out accuracy of each rate."""

    head: Attend
    lr: float
    held_out: dict[str, float]


class Evaluator(Probe[Learned]):
    """Chooses the rate on a held-out part of the training images, then trains on all of them."""

    def readout(self, model: nn.Module) -> Readout:
        """Returns the patch tokens of the last block."""
        return Readout.tokens(model)

    def most(self, readout: Readout) -> int:
        """Returns how many images have no more patch tokens than the disk should hold."""
        return max(1, GIB * 2**30 // (2 * sum(readout.widths.values())))

    def learn(self, train: Table, readout: Readout, lrs: tuple[float, ...] = LRS) -> Learned:
        """Trains one head for each rate, then one with the best rate."""
        parts = split(train.labels, train.keys)
        held_out = {}
        for lr in lrs:
            head = self._train(train, readout, parts.fitting, lr)
            held_out[lr] = float(self._right(head, train, readout, parts.held_out).double().mean())
        best = max(lrs, key=lambda lr: held_out[lr])
        head = self._train(train, readout, np.arange(len(train)), best)
        return Learned(head, best, {f"{lr:g}": accuracy for lr, accuracy in held_out.items()})

    def count(self, learned: Learned, train: Table, test: Table, readout: Readout) -> Result:
        """Counts the right answers."""
        right = self._right(learned.head, test, readout, np.arange(len(test)), self.setting.possible)
        interval = wilson(int(right.sum()), len(test))
        details = interval._asdict() | {
            "lr": learned.lr, "held_out": learned.held_out, "num_train": len(train), "num_test": len(test),
        }  # fmt: skip
        return Result({"accuracy": interval.accuracy}, details, right=right)

    def _train(self, table: Table, readout: Readout, rows: NDArray[np.int64], lr: float) -> Attend:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            head = Attend(readout.width, int(table.labels.max()) + 1).to(self.device)
        batch = min(len(rows), _BATCH)
        per_epoch = len(rows) // batch
        epochs = max(_EPOCHS, -(-_STEPS // per_epoch))
        optimizer = torch.optim.AdamW(head.parameters(), lr, weight_decay=_DECAY)
        for number, chosen in enumerate(minibatches(rows, batch, per_epoch, epochs, seed=0)):
            optimizer.param_groups[0]["lr"] = lr * warmup_cosine(number, per_epoch * epochs, _WARMUP)
            labels = table.labels[torch.from_numpy(chosen)].to(self.device)
            loss = functional.cross_entropy(head(table.rows(readout.blocks, chosen).to(self.device)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return head.eval()

    @torch.no_grad()
    def _right(
        self, head: Attend, table: Table, readout: Readout, rows: NDArray[np.int64], among: Tensor | None = None
    ) -> Tensor:
        right = []
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            found = best_class(head(table.rows(readout.blocks, part).to(self.device)), among).cpu()
            right.append(found == table.labels[torch.from_numpy(part)])
        return torch.cat(right)
