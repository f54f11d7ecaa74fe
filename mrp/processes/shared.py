"""Memory that the processes of a node share, filled by the first of them."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from mrp.config import ConfigError
from mrp.processes.signals import Interrupted


def filled(size: int, fill: Callable[[Tensor], None], accelerator: Accelerator) -> Tensor:
    """Returns so many bytes, filled once per node; where a process cannot fill them, all raise the same error.

    A process that may not look into the memory of its node's first one fills memory of its own.
    """
    rank, first = accelerator.process_index, accelerator.process_index - accelerator.local_process_index
    with contextlib.ExitStack() as stack:
        path, memory, fault = "", torch.empty(size, dtype=torch.uint8), None  # it takes no room until it is filled
        if rank == first:
            if accelerator.num_processes > 1 and hasattr(os, "memfd_create"):
                file = os.memfd_create("mrp")  # without a name: nothing is left when the processes have ended
                stack.callback(os.close, file)
                os.ftruncate(file, size)
                path = f"/proc/{os.getpid()}/fd/{file}"
                memory = _mapped(path)
            fault = _fault(fill, memory)
        told = gather_object([(path, fault)])
        _raise_any([fault for _, fault in told])
        if rank != first:
            try:
                memory = _mapped(told[first][0])
            except OSError:
                fault = _fault(fill, memory)
        _raise_any(gather_object([fault]))  # until all have opened it, the file stays open
    return memory


def _mapped(path: str) -> Tensor:
    with open(path, "r+b", buffering=0) as file:
        return torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=torch.uint8)


def _fault(fill: Callable[[Tensor], None], memory: Tensor) -> Exception | None:
    """Fills the memory, and returns what has prevented it."""
    try:
        fill(memory)
    except (ConfigError, Interrupted) as error:
        return error.with_traceback(None)  # which would keep the worker processes of the loader
    return None


def _raise_any(faults: list[Exception | None]) -> None:
    for fault in faults:
        if fault is not None:
            raise fault
