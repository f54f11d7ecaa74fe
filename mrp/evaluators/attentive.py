"""Attentive pooling: one head that learns where to look among the patch tokens before it classifies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mrp import progress
from mrp.batch import Batch
from mrp.data.augment import View
from mrp.data.loader import Loader
from mrp.data.mixtures import order
from mrp.data.order import keys
from mrp.data.order import share as division
from mrp.data.source import Source
from mrp.data.subset import Subset
from mrp.evaluate.answers import best_class
from mrp.evaluate.batches import minibatches
from mrp.evaluate.config import Section
from mrp.evaluate.contract import Pause, Result
from mrp.evaluate.gathering import Columns, evaluating, gathered, in_order
from mrp.evaluate.heads import Schedule, warmup_cosine
from mrp.evaluate.probe import Probe
from mrp.evaluate.readout import Readout, features_of
from mrp.evaluate.sealed import Decision, Sealed
from mrp.evaluate.split import split
from mrp.evaluate.table import Table

LRS = (1e-3, 3e-3, 1e-2)
GIB = 8  # of patch tokens on disk
_DECAY, _SCHEDULE = 0.05, Schedule(batches=(128, 128), most=500)
_AT_ONCE = 128  # images whose classes are told together
_HEAD_WIDTH = 32
_COST_AFTER = 20  # steps after which it is said what computing tokens will take


class Config(Section):
    """Options of attentive pooling."""

    # Where patch tokens come from. kept: from the disk, at most 8 GiB of each split; of more images, evenly spaced ones
    # are taken. computed: from the backbone, anew in each epoch, for all images. auto: kept where all fit or where a
    # run trains, else computed.
    tokens: Literal["auto", "kept", "computed"] = "auto"


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
    computed: dict[str, float] = field(default_factory=dict)  # what it took where tokens were computed


class Evaluator(Probe[Learned]):
    """Chooses the rate on a held-out part of the training images, then trains on all of them."""

    def readout(self, model: nn.Module) -> Readout:
        """Returns the patch tokens of the last block."""
        return Readout.tokens(model)

    def most(self, readout: Readout) -> int:
        """Returns how many images have no more patch tokens than the disk should hold."""
        return max(1, GIB * 2**30 // (2 * sum(readout.widths.values())))

    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Measures with tokens from the disk, or with tokens that the backbone computes as they are needed."""
        most = self.most(self.readout(model))
        images = max(len(self.setting.train), len(self.setting.labelled()))
        fits = images <= most or self.setting.training is not None
        if self.config.tokens == "kept" or (self.config.tokens == "auto" and fits):
            return super().measure(model, step, pause)
        return self._measure_computed(model, pause)

    def learn(self, train: Table, readout: Readout, lrs: tuple[float, ...] = LRS) -> Learned:
        """Trains one head for each rate, then one with the best rate."""
        parts = split(train.labels, train.groups)
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
        about: dict[str, Any] = {"lr": learned.lr, "held_out": learned.held_out, "num_train": len(train)}
        return Result.of_answers(right, groups=test.group_numbers, **about)

    def _train(self, table: Table, readout: Readout, rows: NDArray[np.int64], lr: float) -> Attend:
        head = self._head(readout, int(table.labels.max()) + 1)
        batch, per_epoch, epochs = _SCHEDULE.of(len(rows))
        steps, batches = per_epoch * epochs, minibatches(rows, batch, per_epoch, epochs, seed=0)
        optimizer = torch.optim.AdamW(head.parameters(), lr, weight_decay=_DECAY)
        for number, chosen in enumerate(progress.over(batches, "steps of an attentive head", steps)):
            optimizer.param_groups[0]["lr"] = lr * warmup_cosine(number, steps, _SCHEDULE.warmup)
            labels = table.labels[torch.from_numpy(chosen)].to(self.device)
            loss = functional.cross_entropy(head(table.rows(readout.blocks, chosen).to(self.device)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return head.eval()

    def _measure_computed(self, model: nn.Module, pause: Pause) -> Result:
        """Learns from all images and counts on all test images; all processes take part, each with its share."""
        setting, readout = self.setting, self.readout(model)
        key = (Evaluator, self.config.model_dump_json(), readout, setting.train.content)
        learned = setting.tables.shared(key, lambda: self._learn_computed(model, readout, pause))
        test = setting.labelled()
        labels = setting.class_numbers[torch.from_numpy(np.asarray(test.labels, np.int64))]

        def count() -> Tensor:
            answers = self._answers([learned.head], test, model, readout, pause, "test images", setting.possible)
            return answers[:, 0] == labels

        right = Sealed(count).open(learned)
        return Result.of_answers(
            right, groups=setting.groups(test), lr=learned.lr, held_out=learned.held_out, computed=learned.computed,
            num_train=len(setting.train),
        )  # fmt: skip

    def _learn_computed(self, model: nn.Module, readout: Readout, pause: Pause) -> Learned:
        """Trains two heads for each rate in one pass over the epochs: one leaves out what is held out, the other not.

        The first one's held-out accuracy chooses the rate, and the second is the head that is counted.
        """
        source, processes, began = self.setting.train, self.setting.processes, time.perf_counter()
        labels = torch.from_numpy(np.asarray(source.labels, np.int64))
        parts = split(labels, self._apart(source))
        fits = torch.ones(len(source))
        fits[parts.held_out] = 0
        heads = [self._head(readout, int(labels.max()) + 1) for _ in range(2 * len(LRS))]
        optimizers = [
            torch.optim.AdamW(head.parameters(), lr, weight_decay=_DECAY)
            for head, lr in zip(heads, (*LRS, *LRS), strict=True)
        ]
        world = processes.num_processes
        share = max(1, min(len(source) // world, -(-_SCHEDULE.batches[0] // world)))  # of a batch, per process
        batch, tail = share * world, "drop" if world <= len(source) else "continuous"
        steps = max(_SCHEDULE.epochs * (len(source) // batch), _SCHEDULE.steps)
        in_order = order(source, self.setting.data.model_copy(update={"lanes": 1, "tail": tail}), batch, seed=0)
        places = division(batch, batch, processes.process_index, processes.num_processes)
        loader = Loader(
            source, in_order, View(self.setting.data, train=False), group=batch, micro_batch=share,
            rank=processes.process_index, world=processes.num_processes, workers=self.setting.workers,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        batches = progress.over(loader.steps(0, steps), "steps of attentive heads", steps)
        with closing(loader), evaluating(model):
            for number, (images,) in enumerate(batches):
                pause()
                tokens = self._tokens(model, readout, images)
                assert images.labels is not None
                answers = images.labels.to(self.device)
                weights = fits[in_order.slots(number, places).samples].to(self.device)
                pace = warmup_cosine(number, steps, _SCHEDULE.warmup)
                with torch.enable_grad():
                    for head, optimizer, lr, weight in zip(
                        heads, optimizers, (*LRS, *LRS), [weights / fits.mean()] * len(LRS) + [1.0] * len(LRS),
                        strict=True,
                    ):  # fmt: skip
                        optimizer.param_groups[0]["lr"] = lr * pace
                        losses = functional.cross_entropy(head(tokens), answers, reduction="none")
                        optimizer.zero_grad()
                        (losses * weight).mean().backward()
                        self._average(head)
                        optimizer.step()
                if number == _COST_AFTER and processes.is_main_process:
                    hours = (time.perf_counter() - began) / (number + 1) * steps / 3600
                    progress.say(
                        f"attentive: patch tokens of {len(source):,} images are computed in each of "
                        f"{steps * batch / len(source):.0f} epochs; about {hours:.2g} h"
                    )
        chosen = Subset(source, parts.held_out)
        found = self._answers([head.eval() for head in heads[: len(LRS)]], chosen, model, readout, pause, "held out")
        shares = (found == labels[parts.held_out][:, None]).double().mean(0).tolist()
        best = max(range(len(LRS)), key=lambda number: shares[number])
        computed = {"images": float(steps * batch), "seconds": time.perf_counter() - began}
        held_out = {f"{lr:g}": accuracy for lr, accuracy in zip(LRS, shares, strict=True)}
        return Learned(heads[len(LRS) + best].eval(), LRS[best], held_out, computed)

    def _apart(self, source: Source) -> Tensor:
        """Returns by what images are held out: their groups, or their keys."""
        groups = self.setting.groups(source)
        return torch.from_numpy(keys(0, 0, np.arange(len(source))) if groups is None else groups)

    def _average(self, head: Attend) -> None:
        """Gives all processes the mean of their gradients, in one exchange."""
        if self.setting.processes.num_processes > 1:
            gradients = [parameter.grad for parameter in head.parameters() if parameter.grad is not None]
            mean = self.setting.processes.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
            for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def _answers(
        self, heads: Sequence[Attend], source: Source, model: nn.Module, readout: Readout, pause: Pause, what: str,
        among: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Returns the class that each head answers with for each image of a source (images, heads), everywhere."""

        def of_batch(images: Batch) -> Columns:
            tokens = self._tokens(model, readout, images)
            return (torch.stack([best_class(head(tokens), among) for head in heads], dim=1),)

        loader, processes = self.setting.loader(source, _AT_ONCE), self.setting.processes
        with evaluating(model):
            (found,) = in_order(gathered(loader, len(source), processes, pause, f"batches of {what}", of_batch))
        return found

    def _tokens(self, model: nn.Module, readout: Readout, images: Batch) -> Tensor:
        return features_of(model, images.to(self.device, non_blocking=True), readout).float()

    def _head(self, readout: Readout, classes: int) -> Attend:
        """Returns a new head, the same one every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Attend(readout.width, classes).to(self.device)

    @torch.no_grad()
    def _right(
        self, head: Attend, table: Table, readout: Readout, rows: NDArray[np.int64], among: Tensor | None = None
    ) -> Tensor:
        right = []
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            found = best_class(head(table.rows(readout.blocks, part).to(self.device)), among).cpu()
            right.append(found == table.labels[torch.from_numpy(part)])
        return torch.cat(right)
