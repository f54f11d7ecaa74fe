"""What a backbone's features are good for, measured on a run's data: one pass over it, many ways to read it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mrp.build import open_source
from mrp.config import ConfigError, Tree, build, parse
from mrp.data.augment import View
from mrp.data.config import Config as Data
from mrp.data.loader import EvalLoader
from mrp.data.source import Source
from mrp.data.subset import evenly_spaced
from mrp.evaluate import attentive, fewshot, knn, logistic, sweep
from mrp.evaluate.attentive import Attention
from mrp.evaluate.logistic import Logistic
from mrp.evaluate.readout import LAST, TOKENS, Readout
from mrp.evaluate.readout import name as block_name
from mrp.evaluate.split import split
from mrp.evaluate.sweep import Choice, Head, Sealed, Settled
from mrp.evaluate.table import Store, Table
from mrp.methodkit import Objective
from mrp.processes.join import Accelerator
from mrp.run import Run
from mrp.step import Step

CACHE = "features"  # the folder of a run that keeps them
Protocol = Literal["sweep", "knn"]
CHECKED = 20_000  # training images that the logistic regression is fitted on, at most
_BATCH = 256  # images at once
_OVERRIDES = ("train", "test", "classes", "fraction")


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure beside the sweep's linear classifier and the neighbours."""

    protocol: Protocol = "sweep"
    layers: int | None = None  # of the last blocks; by default four, or all of fewer
    attentive: bool = False
    check: bool = False
    few_shot: bool = True


def with_data(run: Run, words: Iterable[str]) -> Run:
    """The same run on other data: `data.train=`, `data.test=`, `data.classes=` or `data.fraction=`."""
    values = run.data.model_dump(mode="json")
    for word in words:
        key, equals, text = word.partition("=")
        name = key.removeprefix("data.")
        if not equals or name == key or name not in _OVERRIDES:
            allowed = ", ".join(f"data.{one}=" for one in _OVERRIDES)
            raise ConfigError(f"{word}: only the data can be changed here; allowed: {allowed}")
        values[name] = parse(text, "the command line")
    return run.model_copy(update={"data": build(Data, Tree(values, {}))})


@dataclass(frozen=True, slots=True)
class Probed:
    """What was found, for the trained backbone and perhaps the untrained one, and the file that holds it too.

    Empty in all processes but the first.
    """

    path: Path
    results: dict[str, dict[str, Any]]


def write(path: Path, results: dict[str, dict[str, Any]]) -> Probed:
    """Keep what was found, whole or not at all."""
    if results:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(results, indent=1), encoding="utf-8")
        os.replace(unfinished, path)
    return Probed(path, results)


@dataclass(frozen=True)
class Images:
    """A run's data, and the features of it that a backbone gives."""

    run: Run
    store: Store
    processes: Accelerator

    @cached_property
    def train(self) -> Source:
        """The training images."""
        return open_source(self.run, "train")

    @cached_property
    def test(self) -> Source:
        """The test images."""
        return open_source(self.run, "test")

    def source(self, split: Literal["train", "test"]) -> Source:
        """The one or the other."""
        if split == "test" and self.run.data.test is None:
            raise ConfigError("data.test is not set; give data.test=PLACE, or --split train")
        return self.train if split == "train" else self.test

    def check(self, folder: Path) -> None:
        """Both splits have to be there, with labels."""
        if self.run.data.test is None:
            raise ConfigError(f"{folder}: data.test is not set, so there is nothing to judge the features on")
        for name, source in (("train", self.train), ("test", self.test)):
            if not source.classes:
                raise ConfigError(f"{folder}: data.{name} has no labels, so features cannot be judged by accuracy")

    def table(self, readout: Readout, split: Literal["train", "test"], most: int | None = None) -> Table | None:
        """The features of a split, of at most so many of its images; of several processes the first one gets them."""
        whole = self.source(split)
        chosen = whole if most is None or most >= len(whole) else evenly_spaced(whole, most)
        made_from = {
            "weights": _digest(readout.step),
            "data": whole.content,
            "view": [type(self.run.data.augment).__name__, *self.run.data.shape],
            "precision": self.run.precision,
        }
        loader = EvalLoader(
            chosen, View(self.run.data, train=False), batch=_BATCH, rank=self.processes.process_index,
            world=self.processes.num_processes, workers=self.run.machine.workers,
            pin_memory=self.processes.device.type == "cuda",
        )  # fmt: skip
        return self.store.get(made_from, readout, loader, len(chosen), self.processes)

    def test_table(self, readout: Readout, most: int | None = None) -> Table | None:
        """The test set, its labels by the numbers that their names have in training; other classes come after those."""
        found = self.table(readout, "test", most)
        numbers = {name: number for number, name in enumerate(self.train.classes)}
        known = [numbers.setdefault(name, len(numbers)) for name in self.test.classes]
        return found and replace(found, labels=torch.tensor(known)[found.labels])


def judge(images: Images, step: Step, options: Options) -> dict[str, Any] | None:
    """Everything that is asked for about one backbone; of several processes the first one gets it.

    All that has to be chosen is chosen before the test set is read: `Sealed` does not open without the choice.
    """
    step = step.to(images.processes.device)
    vit = cast(Objective, step.objective).backbone
    readout = Readout(step, options.layers or min(LAST, len(vit.blocks)))
    train = images.table(readout, "train")
    tokens = Readout(step, 1, tokens=True) if options.attentive else None
    looked = images.table(tokens, "train", _fitting(tokens)) if tokens else None
    learned = None if train is None else _learn(train, looked, readout, options, images.processes.device)
    sealed = Sealed(
        lambda: (images.test_table(readout), images.test_table(tokens, _fitting(tokens)) if tokens else None)
    )
    test, seen = sealed.open(learned.choice if learned else Settled("another process has chosen"))
    if train is None or test is None or learned is None:
        return None
    return _count(learned, readout, train, test, seen, options, images.processes.device)


def features(
    images: Images, step: Step, split: Literal["train", "test"], layer: int | None, pooling: str | None
) -> tuple[NDArray[Any], NDArray[np.int64]] | None:
    """One layer's features and the labels, as the source numbers them; of several processes the first one gets them."""
    step = step.to(images.processes.device)
    depth = len(cast(Objective, step.objective).backbone.blocks)
    wanted = layer or depth
    if wanted > depth:
        raise ConfigError(f"--layer: {wanted} was asked for, but the backbone has {depth}; give at most {depth}")
    readout = Readout(step, max(min(LAST, depth), depth - wanted + 1))
    chosen = block_name(wanted, pooling or readout.own.partition(".")[2])
    if chosen not in readout.widths:
        raise ConfigError("--pooling: the backbone has no class token; take mean")
    found = images.table(readout, split)
    if found is None:
        return None
    source = images.source(split)
    return found.columns[chosen], np.asarray(source.labels, np.int64)


@dataclass(frozen=True, slots=True)
class Learned:
    """All that was made of the training set; nothing of the test set is known yet."""

    choice: Choice | Settled
    head: Head | None = None
    check: Logistic | None = None
    attention: Attention | None = None


def _learn(train: Table, tokens: Table | None, readout: Readout, options: Options, device: torch.device) -> Learned:
    if options.protocol == "knn":
        return Learned(Settled("kNN takes the features as the backbone gives them, and reports every k"))
    parts = split(train.labels, train.keys)
    choice = sweep.choose(train, parts, sweep.inputs(readout.layers, readout.poolings), device)
    head = sweep.fit(choice, train, device)
    check = attention = None
    if options.check:
        rows = np.unique(np.linspace(0, len(train) - 1, min(len(train), CHECKED)).astype(np.int64))
        labels = train.labels[torch.from_numpy(rows)]
        some = split(labels, train.keys[torch.from_numpy(rows)])
        check = logistic.train(train.rows(choice.input.blocks, rows), labels, some)
    if tokens is not None:
        attention = attentive.learn(tokens, split(tokens.labels, tokens.keys), readout.backbone.embed_dim, device)
    return Learned(choice, head, check, attention)


def _count(
    learned: Learned, readout: Readout, train: Table, test: Table, tokens: Table | None, options: Options,
    device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Every verdict on the test set."""
    found: dict[str, Any] = {"protocol": options.protocol, "num_train": len(train), "num_test": len(test)}
    if learned.head and isinstance(learned.choice, Choice):
        best = asdict(learned.choice.best)
        held_out = {"accuracy": best.pop("accuracy"), "loss": best.pop("loss"), "low": learned.choice.held_out.low,
                    "high": learned.choice.held_out.high}  # fmt: skip
        found["linear"] = learned.head.measure(test)._asdict() | best | {"held_out": held_out}
        found["moves"] = learned.choice.moves()
        found["grid"] = learned.choice.grid()
        found["trials"] = [asdict(trial) for trial in learned.choice.trials]
    if learned.check:
        blocks = cast(Choice, learned.choice).input.blocks
        found["logistic"] = asdict(learned.check.measure(test.rows(blocks, slice(None)), test.labels))
    if learned.attention and tokens is not None:
        attention = learned.attention
        found["attentive"] = attention.measure(tokens)._asdict() | {
            "lr": attention.lr, "held_out": attention.held_out, "num_train": attention.num_train,
            "num_test": len(tokens),
        }  # fmt: skip
    own = readout.own
    neighbours = knn.measure(train.columns[own], train.labels, test.columns[own], test.labels, device=device)
    found["neighbours"] = [asdict(one) for one in neighbours]
    found["knn"] = next(asdict(one) for one in neighbours if one.k == 20)
    if options.few_shot:
        found["few_shot"] = [asdict(one) for one in fewshot.measure(train, test, own, device)]
    return found


def _fitting(tokens: Readout) -> int:
    """How many images have no more patch tokens than may lie on the disk."""
    return max(1, attentive.GIB * 2**30 // (2 * tokens.widths[TOKENS]))


def _digest(step: nn.Module) -> str:
    """What decides the features: the backbone's weights, and what prepares its images."""
    digest = hashlib.sha256()
    for name, tensor in step.state_dict().items():
        if name.startswith(("prepare.", "objective.backbone.")):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
