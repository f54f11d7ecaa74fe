"""How much memory a run takes, and what to do when there is too little."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from mrp.config import ConfigError
from mrp.processes.container import PROC

_GIB = 2**30
# What the device, its libraries and the host say when memory is short, apart from torch's own OutOfMemoryError.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|CU(BLAS|DNN|SPARSE)_STATUS_ALLOC_FAILED|can't allocate memory|not enough memory"
    r"|Cannot allocate memory"
)


def used(device: torch.device) -> dict[str, float]:
    """Returns, in GiB, what this process and its workers hold on the host, and the process's peak on its device.

    What a system does not tell (without /proc, as macOS) is left out.
    """
    held = resident(os.getpid())
    values = {"memory/host_gib": held / _GIB} if held else {}
    if device.type == "cuda":
        values["memory/device_peak_gib"] = torch.cuda.max_memory_allocated(device) / _GIB
    return values


def resident(process: int) -> int:
    """Returns the bytes that a process and its children hold, without pages shared with files; 0 without /proc."""
    try:
        _, total, shared = (PROC / str(process) / "statm").read_text().split()[:3]
    except (OSError, ValueError):  # it has ended in the meantime
        return 0
    size = (int(total) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    try:
        children = (PROC / str(process) / "task" / str(process) / "children").read_text().split()
    except OSError:
        return size
    return size + sum(resident(int(child)) for child in children)


@contextmanager
def explained(
    tried: int, fits: Callable[[int], int], device: torch.device, coupled: int | None = None
) -> Iterator[None]:
    """Turns a lack of memory inside the block into one line that says what was tried and what would fit.

    `fits` returns the micro-batch for which the memory would suffice, given the bytes that were in use. Where `coupled`
    images act on each other, a smaller micro-batch would be another loss, so the advice is a different one.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident(os.getpid())
        smaller = fits(peak)
        if smaller >= tried:
            advice = "not even one image would do: take machine.checkpointing=true, more devices or a smaller model"
        elif coupled is None:
            advice = f"about {smaller} would fit: machine.micro_batch={smaller}"
        else:
            share = coupled * smaller // tried
            advice = f"about {smaller} would fit: take more processes, or coupled_batch={share} in a new run"
        raise ConfigError(
            f"machine.micro_batch: {tried} images at once need more memory than {device} has "
            f"({peak / _GIB:.3g} GiB were in use); {advice}"
        ) from None
