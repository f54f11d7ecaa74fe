"""The worker processes of a loader: how they start, how they end, and what is said when one dies."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from multiprocessing import current_process, get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mrp.config import ConfigError
from mrp.data.start import START
from mrp.data.worker_signals import ignore_requests, requests_blocked, start_fork_server

_AHEAD = 2  # batches that each worker prepares before they are asked for
_SETTLES = 0.2  # seconds in which the exit code of a worker that is silent may still come
_UNGUARDED = 86  # the exit code of a worker whose import of the user's script starts the work anew


class WorkerError(NamedTuple):
    """What a worker sends in place of a batch that it cannot make: one line, where an exception would be forty."""

    message: str


class Numbers(Sampler[int]):
    """The numbers of the batches to make next; workers that live on get new ones when it is changed."""

    def __init__(self, numbers: range) -> None:
        self.range = numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self.range)

    def __len__(self) -> int:
        return len(self.range)


def prepare_workers() -> None:
    """Starts the fork server, unless it runs: it imports torch once for all workers, while its caller goes on."""
    if getattr(current_process(), "_inheriting", False):  # set while a worker imports the script that was started
        os._exit(_UNGUARDED)  # the training process says why
    start_fork_server(["mrp.data.batches"])


class _Loader(DataLoader[Any]):
    """torch's loader, without its warning of more workers than cores, which the start of a run says in our words."""

    def check_worker_number_rationality(self) -> None:
        """Says nothing."""


class _Flag:
    """Stands for an `Event`, whose lock a worker that is killed while it looks at it never gives back.

    The training process would wait for that lock for ever, in place of saying that a worker died.
    """

    def __init__(self) -> None:
        self._raised = get_context(START).RawValue(ctypes.c_bool, False)

    def set(self) -> None:
        """Raises it."""
        self._raised.value = True

    def is_set(self) -> bool:
        """Returns whether it was raised."""
        return bool(self._raised.value)


def _context() -> Any:
    """Returns how workers start; by its event torch tells them to end."""
    context: Any = type(get_context(START))()
    context.Event = _Flag
    return context


def torch_loader(
    dataset: Dataset[Any], numbers: Numbers, workers: int, pin_memory: bool, *, persistent: bool
) -> DataLoader[Any]:
    """Returns torch's loader with one batch per item; its own generator leaves the global one alone.

    Workers come from a fork server, which is started without CUDA or threads, and on macOS each is a new interpreter;
    torch gives each of them one thread.
    """
    options: dict[str, Any] = {}
    if workers:
        prepare_workers()
        options = {"multiprocessing_context": _context(), "persistent_workers": persistent, "prefetch_factor": _AHEAD}
    return _Loader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),
        worker_init_fn=_end_with_parent,
        **options,
    )


def _end_with_parent(_: int) -> None:
    """Makes a worker end with a training process that is killed: torch only watches the fork server, which lives on.

    A signal that asks the run to end is left to the training process, which still needs batches for its current step.
    """
    ignore_requests()

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def received(batches: DataLoader[Any]) -> Iterator[Any]:
    """Yields the batches; what went wrong in a worker becomes an error of one line."""
    iterator: Any = None
    try:
        with requests_blocked() if START == "spawn" else nullcontext():  # a fork server has seen to it already
            iterator = iter(batches)
        for batch in iterator:
            if isinstance(batch, WorkerError):
                raise ConfigError(batch.message)
            yield batch
    except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
        if not _from_a_dead_worker(error, batches.num_workers):
            raise
        raise ConfigError(_cause(getattr(iterator, "_workers", []))) from None
    finally:
        del batches, iterator  # or the traceback keeps the workers, and collecting them as a cycle takes five seconds


def _cause(workers: Sequence[Any]) -> str:
    """Returns why a worker is likely to have died, and what to do."""
    for worker in workers:
        worker.join(_SETTLES)
    if any(worker.exitcode == _UNGUARDED for worker in workers) or _has_no_guard():
        return (
            f"{_script() or 'the script'}: starts its work whenever it is imported, and worker processes import it; "
            'put the work under if __name__ == "__main__":'
        )
    return (
        "machine.workers: a worker process of the loader died, most often for lack of memory (or of /dev/shm, in a "
        "container); take fewer workers or a smaller micro-batch"
    )


def _script() -> str | None:
    """Returns the script that was started, which workers import first; None for a module (`python -m`)."""
    main = sys.modules["__main__"]
    return getattr(main, "__file__", None) if getattr(main, "__spec__", None) is None else None


def _has_no_guard() -> bool:
    """Returns whether the script never asks how it was started; a worker of it may end before it has a number."""
    script = _script()
    return script is not None and Path(script).is_file() and b"__name__" not in Path(script).read_bytes()


def _from_a_dead_worker(error: Exception, workers: int) -> bool:
    """Returns whether the error comes from a worker that died while it handed over a batch, not from its work."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    named = isinstance(error, FileNotFoundError) and error.filename is not None  # a socket that is gone has no name
    return workers > 0 and not named and not str(error).startswith("Caught ")  # torch's word for what a worker raised
