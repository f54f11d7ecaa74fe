"""What the evaluators of frozen features have in common: they learn from training images, then count on test images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mrp.config import ConfigError, reading
from mrp.data.source import Source
from mrp.evaluate import copies, sweep
from mrp.evaluate.config import Heads, Labelled
from mrp.evaluate.contract import Evaluator, Pause, Result, Setting
from mrp.evaluate.readout import Readout
from mrp.evaluate.sealed import Decision, NothingToChoose
from mrp.evaluate.split import by_class, first_of_each
from mrp.evaluate.table import Table, under_views
from mrp.evaluate.views import Changed

D = TypeVar("D", bound=Decision)
_DRAW = 0x6C61626C  # of the hashes that a fraction goes by, apart from those of held-out images and of few-shot


class Probe(Evaluator, Generic[D]):
    """Reads the features of a frozen backbone from tables, which the probes of one measurement share.

    The first process learns and counts; the others help to read the features.
    """

    def __init__(self, config: Any, setting: Setting) -> None:
        self.config = config
        self.setting = setting
        self.device = setting.processes.device
        self.asked()

    def asked(self) -> Source:
        """Returns the test data, after a check that training and test data have what is learned and counted."""
        return self.setting.labelled()

    def readout(self, model: nn.Module) -> Readout:
        """Returns which features are read: those of the last blocks for linear heads, else the method's own."""
        return Readout.last(model, self.config.layers) if isinstance(self.config, Heads) else Readout.own(model)

    @abstractmethod
    def learn(self, train: Table, readout: Readout) -> D:
        """Returns all that is chosen and learned from the training images."""

    @abstractmethod
    def count(self, learned: D, train: Table, test: Table, readout: Readout) -> Result:
        """Returns what was counted on the test images."""

    def most(self, readout: Readout) -> int | None:
        """Returns how many images of each split are read at most; None for all of them."""
        return None

    def views(self) -> Sequence[Changed]:
        """Returns under which views training images are read besides the usual one."""
        return ()

    def labelled(self, train: Table) -> Table:
        """Returns the training images whose labels are used: those that the options ask for, or all."""
        return chosen_images(self.config, train, self.setting.train)

    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Learns, then opens the test set and counts."""
        readout = self.readout(model)
        most = self.most(readout)
        tables = [
            self.setting.features(self.setting.train, model, readout, pause, most, view)
            for view in (None, *self.views())
        ]
        train = self._joined(tables, readout)
        learned = self.setting.alone(train, lambda table: self._learned(table, readout), pause)
        sealed = self.setting.test_features(model, readout, pause, most)
        test = sealed.open(learned or NothingToChoose("the first process has chosen"))
        if learned is None or train is None or test is None:
            return Result()
        result = self.count(learned, train, test, readout)
        if most is None and (count := self._copies(tables[0], test, readout)):
            result.details[copies.COPIES] = count
        return result

    def _joined(self, tables: Sequence[Table | None], readout: Readout) -> Table | None:
        """Returns the training images as they are learned from, on the first process."""
        here = [table for table in tables if table is not None]
        if not here:
            return None
        return self.labelled(here[0] if len(here) == 1 else under_views(here, readout.blocks))

    def _copies(self, train: Table | None, test: Table, readout: Readout) -> int:
        """Returns how many test images are training images too, looked for once for all evaluators of both."""
        source, asked = self.setting.train, self.asked()

        def look() -> int:
            assert train is not None
            return copies.told(copies.find(train, test, readout.blocks[0]), source, asked)

        return self.setting.tables.shared((copies.find, source.content, asked.content), look)

    def _learned(self, train: Table, readout: Readout) -> D:
        """Learns once for all test sets that are counted in one block of tables."""
        key = (type(self), self.config.model_dump_json(), readout, self.setting.train.content)
        return self.setting.tables.shared(key, lambda: self.learn(train, readout))


def linear_head(setting: Setting, train: Table, readout: Readout, config: Heads) -> sweep.Head:
    """Returns the linear head that is chosen among all, trained on all training images."""
    device = setting.processes.device
    choice = sweep.choose_once(setting.tables, train, readout, device, config, setting.train.content)
    return sweep.fit(choice, train, device, products=sweep.products_of(config, device))


def chosen_images(config: Any, train: Table, source: Source) -> Table:
    """Returns the table of the images that a section asks for; the table itself where it asks for all."""
    if not isinstance(config, Labelled) or (config.fraction is None and config.list is None):
        return train
    if config.list is not None:
        return train.only(listed(Path(config.list).expanduser(), source))
    count = train.images
    return train.only(_fraction(train.labels[:count], train.keys[:count], config.fraction or 1.0))


def _fraction(labels: torch.Tensor, keys: torch.Tensor, fraction: float) -> NDArray[np.int64]:
    """Returns the same share of each class, at least one image; those of a smaller fraction are in every larger one."""
    counts = torch.bincount(labels).numpy()
    quota = np.minimum(counts, np.maximum(1, np.round(fraction * counts))).astype(np.int64)
    return np.sort(first_of_each(by_class(labels, keys, _DRAW), labels, quota))


def listed(path: Path, source: Source) -> NDArray[np.int64]:
    """Returns the numbers of the images whose names a file gives, with or without their folders, one per line."""
    with reading(f"list: {path}", "give a file with one name per line"):
        lines = [line for text in path.read_text(encoding="utf-8").splitlines() if (line := text.strip())]
    wanted = dict[str, list[str]]()
    for line in dict.fromkeys(lines):
        wanted.setdefault(line.rpartition("/")[2], []).append(line)
    found = dict[str, int]()
    for number in range(len(source)):
        where = source.where(number)
        for line in wanted.get(where.rpartition("/")[2], ()):
            if not f"/{where}".endswith(f"/{line}"):
                continue
            if line in found:
                raise ConfigError(
                    f"list: {path}: '{line}' is the name of several images, such as {source.where(found[line])} and "
                    f"{where}; write their folders before the names"
                )
            found[line] = number
    missing = [line for line in dict.fromkeys(lines) if line not in found]
    if not lines:
        raise ConfigError(f"list: {path}: holds no names; give a file with one name of an image per line")
    if missing:
        raise ConfigError(
            f"list: {path}: {len(missing):,} of its {len(lines):,} names, such as '{missing[0]}', are of none of the "
            f"{len(source):,} images of data.train; give names of files (shards keep none: give fraction then)"
        )
    return np.array(sorted(set(found.values())), np.int64)
