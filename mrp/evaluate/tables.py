"""The feature tables that evaluators share: each is made in one pass over the data and kept in a folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from mrp.batch import Batch
from mrp.config import writing
from mrp.evaluate.gathering import Columns, evaluating, gathered
from mrp.evaluate.readout import Readout, backbone_of, features_of, objective_of
from mrp.evaluate.table import UNFINISHED, Table, Writer, here, open_table
from mrp.files import lock
from mrp.models.vit import num_heads
from mrp.processes.join import Accelerator

VERSION = 4  # raise it whenever the same description could stand for other numbers
_WHILE_TRAINING = "while-training"  # the folder of the tables that are removed after the evaluation

_LONG_AGO = 7 * 86400.0  # seconds after which no other machine is still writing a table

T = TypeVar("T")


class Tables:
    """A folder of tables, each under the hash of what it was made from; any of them may be removed at any time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._weights: str | None = None
        self._opened: list[tuple[str, Table]] = []
        self._shared: dict[Any, Any] = {}
        self._wrote = False  # whether this process has written tables in this block

    @contextmanager
    def of(self, weights: str | None) -> Iterator[None]:
        """Names the weights that the model has in this block.

        Without a name the tables serve this block alone: those that are there are not used, and at its end the process
        that wrote them removes them. The other processes get there earlier, while it may still be writing.
        """
        self._weights, self._wrote = weights, False
        try:
            yield
        finally:
            self._opened, self._shared = [], {}
            if weights is None and self._wrote:
                shutil.rmtree(self._folder / _WHILE_TRAINING, ignore_errors=True)

    def shared(self, key: Any, make: Callable[[], T]) -> T:
        """Returns what several evaluators need of the same features; it is computed for the first one that asks."""
        if key not in self._shared:
            self._shared[key] = make()
        value: T = self._shared[key]
        return value

    def get(
        self,
        made_from: Mapping[str, Any],
        model: nn.Module,
        readout: Readout,
        batches: Iterable[Batch],
        count: int,
        processes: Accelerator,
        pause: Callable[[], None],
    ) -> Table | None:
        """Returns a table with the columns of the readout; of several processes only the first one gets it.

        It is taken from disk if a table of the same data and weights has all of these columns, and is made otherwise.
        """
        source = {"version": VERSION, "count": count, "weights": self._weights, **made_from}
        name = _digest(source)
        table = self._find(name, readout.blocks) if processes.is_main_process else None
        # The first process looks and all do as it says: the folder may be on its disk alone.
        is_there = torch.tensor([int(table is not None)], device=processes.device)
        if int(processes.reduce(is_there, "sum")):
            return table
        described = {"columns": readout.widths, **source}
        gib = 2 * count * sum(readout.widths.values()) / 2**30
        remedy = f"make room for {gib:.1f} GiB of features, or name another folder with --cache"
        with writing(self.folder, remedy), ExitStack() as stack:
            writer = self._writer(name, described) if processes.is_main_process else None
            if writer is not None:
                stack.callback(writer.discard)  # also where an interrupt comes between two lines
            rows, here = partial(_rows, model, readout), writer is not None
            with evaluating(model):
                for start, columns in gathered(batches, count, processes, pause, "batches of features", rows, here):
                    assert writer is not None
                    writer.put(start, *columns)
            if writer is not None:
                self._opened.append((name, writer.finish()))
        return self._opened[-1][1] if processes.is_main_process else None

    @property
    def folder(self) -> Path:
        """Returns the folder that holds the tables of the present weights."""
        return self._folder if self._weights else self._folder / _WHILE_TRAINING

    def _find(self, name: str, blocks: tuple[str, ...]) -> Table | None:
        for opened, table in self._opened:
            if opened == name and set(blocks) <= table.columns.keys():
                return table
        for folder in sorted(self.folder.glob(f"{name}-*")) if self._weights else ():
            held = open_table(folder) if all((folder / f"{block}.f16").exists() for block in blocks) else None
            if held is not None:
                self._opened.append((name, held))
                return held
        return None

    def _writer(self, name: str, described: Mapping[str, Any]) -> Writer:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._wrote = True
        for leftover in self.folder.glob(f"{UNFINISHED}*"):
            with suppress(FileNotFoundError):  # it has got its name meanwhile
                is_ours = leftover.name.rstrip("0123456789").endswith(here())  # before the number of the process
                if is_ours or time.time() - leftover.stat().st_mtime > _LONG_AGO:
                    _remove_if_abandoned(leftover)
        return Writer(self.folder / f"{name}-{_digest(described['columns'])}", described)


def weights_digest(step: nn.Module) -> str:
    """Returns what decides the features: a hash of the weights and of what prepares images, and the number of heads.

    The features that a method defines itself may use all of its weights. Heads divide weights of the same shapes.
    """
    own = objective_of(step).has_own_features
    digest = model_digest(step, ("prepare.", "objective." if own else "objective.backbone."))
    return f"{digest}, {num_heads(backbone_of(step))} heads"


def model_digest(step: nn.Module, parts: tuple[str, ...] = ("",), shown: str = "") -> str:
    """Returns a hash of a model's weights, or of those whose names begin in these ways, and of how images are shown."""
    digest = hashlib.sha256(shown.encode())
    for name, tensor in step.state_dict().items():
        if name.startswith(parts):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _rows(model: nn.Module, readout: Readout, batch: Batch) -> Columns:
    labels = batch.labels
    if labels is None or labels.ndim > 1:  # tags are read from the source
        labels = torch.full_like(batch.keys, -1)
    return features_of(model, batch, readout), labels, batch.keys


def _remove_if_abandoned(folder: Path) -> None:
    """Removes what a killed process has left; a process that lives holds a lock, which other machines do not see."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):  # without locks nobody knows whether it is abandoned
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
