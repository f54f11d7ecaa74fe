"""What an evaluator is: it measures a model, in the same way inside training and after it.

One file of `mrp/evaluators/` is one evaluator: `Config`, its section, and `Evaluator`, the class. A file anywhere else
serves as well, by its path.
"""

from __future__ import annotations

import hashlib
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mrp import progress
from mrp.config import ConfigError, Duration
from mrp.data.augment import View
from mrp.data.config import Config as Data
from mrp.data.groups import groups_among
from mrp.data.loader import EvalLoader
from mrp.data.order import Ints
from mrp.data.source import Named, Source
from mrp.data.subset import evenly_spaced
from mrp.evaluate.classes import BY_NAME, class_numbers, content
from mrp.evaluate.interval import share_of
from mrp.evaluate.labels import check_classes, check_tags
from mrp.evaluate.readout import Readout
from mrp.evaluate.sealed import Sealed
from mrp.evaluate.table import Table
from mrp.evaluate.tables import Tables
from mrp.evaluate.views import Changed
from mrp.processes.join import Accelerator
from mrp.processes.signals import Interrupted

T = TypeVar("T")
_BEAT = 1.0  # seconds
Pause = Callable[[], None]  # called by all processes between batches; raises where the evaluation is to be left


@dataclass(frozen=True)
class Result:
    """What was measured; of several processes only the first one's values and details are used."""

    values: dict[str, float] = field(default_factory=dict)  # for the metrics of a run
    details: dict[str, Any] = field(default_factory=dict)  # plain data, for a file
    alarm: str | None = None  # what is wrong with the model, in one sentence; the same on all processes
    stop: bool = False  # whether an alarm ends the run
    right: torch.Tensor | None = None  # per test image, in the order of the source: whether the answer was right
    counted: torch.Tensor | None = None  # per test image: whether it counts; None: all of them do
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)  # rows, columns, three colours

    @classmethod
    def of_answers(
        cls, right: torch.Tensor, values: dict[str, float] | None = None, groups: Ints | None = None, **details: Any
    ) -> Result:
        """Returns the share of test images whose answer was right, with its interval, and what else is told."""
        share = share_of(right.cpu(), groups)
        details = share.of_accuracy() | details | {"num_test": len(right)}
        return cls({"accuracy": share.value} | (values or {}), details, right=right)


def checked(result: Any, name: str) -> Result:
    """Returns a result whose values are numbers, which an evaluator of one's own may forget."""
    if not isinstance(result, Result):
        what = type(result).__name__
        raise ConfigError(f"evaluator {name}: measure returns a {what}; return contract.Result(values=...)")
    try:
        numbers = {key: one if isinstance(one, int | float) else float(one) for key, one in result.values.items()}
        return replace(result, values=numbers)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"evaluator {name}: its values are no numbers by name: {error}; mend them") from None


@dataclass(frozen=True)
class Training:
    """The run inside which an evaluator measures."""

    steps: int
    warmup: int
    steps_per_epoch: float
    batch: int

    def in_steps(self, duration: Duration) -> int:
        """Returns a length of training in optimizer steps."""
        return duration.steps(self.steps_per_epoch, self.batch)


@dataclass(frozen=True)
class Setting:
    """What an evaluator is given beside its own section."""

    data: Data  # how images are prepared
    train: Source  # Named, where a classifier is measured whose training data are not at hand
    test: Source | None  # None where the run has no test data
    processes: Accelerator
    batch: int  # images that a process takes through the model at once
    workers: int  # decoding processes for each process
    folder: Path  # the run's
    tables: Tables
    precision: str = "fp32"
    classes: str = BY_NAME  # how test classes are those of training; see mrp/evaluate/classes.py
    limited: bool = False  # whether a classifier may answer with classes of the test data alone
    training: Training | None = None  # None where the model is measured after its training
    paints: bool | None = None  # whether the method predicts pixels; None where only the model will tell
    known_groups: dict[tuple[str, str], Ints] = field(default_factory=dict, compare=False)  # by content and pattern
    # Tells that a process which works alone goes on, and raises Interrupted where it was asked to end.
    beat: Callable[[], object] = lambda: None

    @property
    def test_or_train(self) -> Source:
        """Returns the test data; the training data where there are none."""
        return self.train if self.test is None else self.test

    def loader(
        self, source: Source, batch: int, replacement: Callable[[int], int | None] | None = None,
        view: Changed | None = None,
    ) -> EvalLoader:  # fmt: skip
        """Returns this process's batches of a source, as evaluation sees its images, or under another view."""
        world = self.processes.num_processes
        batches = math.ceil(math.ceil(len(source) / world) / batch)
        return EvalLoader(
            source, view or View(self.data, train=False), batch=batch, rank=self.processes.process_index, world=world,
            workers=min(self.workers, batches), pin_memory=self.processes.device.type == "cuda",
            replacement=replacement,
        )  # fmt: skip

    def alone(self, train: Table | None, work: Callable[[Table], T], pause: Pause) -> T | None:
        """Returns what the process that has the training images makes of them; None on the others, which wait for it.

        Heads for ImageNet take many minutes, and a run that is told to end has two: the process leaves its work then.
        """
        if train is None:
            with _told_meanwhile(self.beat):
                pause()  # raises on all processes where one was asked to end
            return None
        try:
            with progress.beating(self.beat):
                found = work(train)
        except Interrupted:
            pause()  # as above, so that no other process is left waiting
            raise
        pause()
        return found

    def labelled(self) -> Source:
        """Returns the test data, after a check that there are training data and that both splits have labels."""
        self._check_training_images()
        return self.labelled_test()

    def labelled_test(self) -> Source:
        """Returns the test data, after a check that its labels mean classes of training."""
        if self.test is None:
            raise ConfigError(
                f"{self.folder}: data.test is not set, so there is nothing to measure accuracy on; "
                "give data.test=PATH, a folder with class folders (the evaluator geometry needs no labels)"
            )
        check_classes(self.folder, self.train, self.test)
        _ = self.class_numbers  # raises where they do not
        return self.test

    def tagged(self) -> Source:
        """Returns the test data, after a check that there are training data, and that tags of both mean the same."""
        self._check_training_images()
        if self.classes != BY_NAME or self.limited:
            raise ConfigError("--classes and limited are about classes, and tags are matched by name; leave them out")
        return check_tags(self.folder, self.train, self.test)

    def _check_training_images(self) -> None:
        if isinstance(self.train, Named):
            raise ConfigError("learns from training images, and none are given; give them, or leave it out")

    def test_features(
        self, model: nn.Module, readout: Readout, pause: Pause, most: int | None = None
    ) -> Sealed[Table | None]:
        """Returns the features of the test images, sealed: none of them is read before a decision has been made."""
        test = self.tagged() if self.train.tags else self.labelled()

        def read() -> Table | None:
            table = self.features(test, model, readout, pause, most)
            return replace(table, labels=self.class_numbers[table.labels]) if table and test.classes else table

        return Sealed(read)

    def features(
        self, source: Source, model: nn.Module, readout: Readout, pause: Pause, most: int | None = None,
        view: Changed | None = None,
    ) -> Table | None:  # fmt: skip
        """Returns the features of a source, or of `most` of its images; only the first process gets them.

        Images are seen as evaluation usually sees them, or under another view.
        """
        chosen = source if most is None or most >= len(source) else evenly_spaced(source, most)
        frame, shape = self.data.frame, self.data.shape
        kept = frame.kept(shape)
        made_from = {
            "data": chosen.content,
            "view": [type(frame).__name__, 1.0 if kept is None else kept, *shape, *([view.name] if view else [])],
            "precision": self.precision,
        } | ({"code": readout.own_features.code} if readout.own_features else {})
        loader = self.loader(chosen, self.batch, view=view)
        table = self.tables.get(made_from, model, readout, loader, len(chosen), self.processes, pause)
        groups = None if table is None else self.groups(chosen)
        return table if groups is None else replace(table, grouped=torch.from_numpy(groups))  # type: ignore[type-var]

    def described(self, own: bool) -> dict[str, Any]:
        """Returns what a record says of the data; `own` where they are the run's."""
        data, more = self.data, ["limited"] if self.limited else []
        names = data.model_dump(mode="json", include={"train", "test", "classes", "fraction", "size"})
        if data.labels is not None:
            names["labels"] = data.labels.model_dump(mode="json")
        if data.group is not None:
            names["groups"], more = data.group, [*more, data.group]
        contents = [None if source is None else source.content for source in (self.train, self.test)]
        what = [*contents, data.shape, content(self.classes), *more]
        return names | {"content": hashlib.sha256(repr(what).encode()).hexdigest()[:16], "own": own}

    def groups(self, source: Source) -> Ints | None:
        """Returns the group of each image of the training or test data, or of some of them.

        None where the data have no groups, and each image stands for itself; and for images of other data.
        """
        if self.data.group is None:
            return None
        say = progress.say if self.processes.is_main_process else None
        return groups_among(source, (self.train, self.test), self.data.group, self.known_groups, say)

    @cached_property
    def class_numbers(self) -> torch.Tensor:
        """The number in training of each test class."""
        assert self.test is not None
        of_classifier = isinstance(self.train, Named)
        return torch.tensor(class_numbers(self.train.classes, self.test.classes, self.classes, of_classifier))

    @property
    def possible(self) -> torch.Tensor | None:
        """The numbers of the classes that a classifier may answer with; None for all of training."""
        return self.class_numbers.unique() if self.limited else None


class Evaluator(ABC):
    """Measures a model. `measure` is called by all processes together, in training and after it."""

    label: ClassVar[str] = ""  # what stands before its values in the metrics; by default the name of its file
    file: ClassVar[str] = ""  # of the run's folder, for the last details; by default evaluations/NAME.json
    values: ClassVar[Collection[str] | None] = None  # the names of its values; None where nobody knows them yet
    of_average: ClassVar[bool] = True  # whether the average of a run's weights is measured too, where it keeps one
    # Raise it when the same options measure something else: earlier results are then kept apart.
    version: ClassVar[int] = 1

    @abstractmethod
    def __init__(self, config: Any, setting: Setting) -> None: ...

    @classmethod
    def value_names(cls, per_sample: Collection[str]) -> Collection[str] | None:
        """Returns the names of its values, where these depend on what the objective reports per sample."""
        return cls.values

    @abstractmethod
    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Measures the model as it is after a step.

        What has to be chosen (a learning rate, a layer) is chosen on training images alone.
        """


def never() -> None:
    """The pause of an evaluation that nothing interrupts."""


@contextmanager
def _told_meanwhile(beat: Callable[[], object]) -> Iterator[None]:
    """Tells every second that this process goes on: it waits for one that works alone, whose own watch says how it is.

    That one may work for longer than `machine.give_up`, which would end all that wait for it.
    """
    closed = threading.Event()

    def tell() -> None:
        while not closed.wait(_BEAT):
            with suppress(Interrupted):
                beat()

    thread = threading.Thread(target=tell, name="waits for the first", daemon=True)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join()
