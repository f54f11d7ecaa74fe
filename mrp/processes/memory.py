"""How much memory a run takes, and what to do when there is too little."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mrp.config import ConfigError

_PROC = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")
_GIB = 2**30
_HOST_IS_FULL = re.compile(r"can't allocate memory|not enough memory|Cannot allocate memory")


def used(device: torch.device) -> dict[str, float]:
    """GiB for the metrics: this process with its workers on the host, and its peak on its device."""
    found = {"memory/host_gib": resident(os.getpid()) / _GIB}
    if device.type == "cuda":
        found["memory/device_peak_gib"] = torch.cuda.max_memory_allocated(device) / _GIB
    return found


def resident(process: int) -> int:
    """Bytes that a process and all that it has started hold, pages shared with files aside; 0 where /proc is none."""
    try:
        _, whole, shared = (_PROC / str(process) / "statm").read_text().split()[:3]
    except (OSError, ValueError):  # it has ended in the meantime
        return 0
    own = (int(whole) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    try:
        children = (_PROC / str(process) / "task" / str(process) / "children").read_text().split()
    except OSError:
        return own
    return own + sum(resident(int(child)) for child in children)


def host_memory() -> int:
    """Bytes of the host that this process's container or batch job may use, which may be less than there are."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *limits(_PROC / "self" / "cgroup", _GROUPS)])


def limits(membership: Path, root: Path) -> Iterator[int]:
    """The memory limits of every control group that a process is in, of the first version and of the second."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in {"", "memory"} and "memory" not in controllers.split(","):
            continue
        base, name = (root, "memory.max") if not controllers else (root / "memory", "memory.limit_in_bytes")
        inside = base / path.lstrip("/")
        for group in (inside, *inside.parents):
            if group == base.parent:
                break
            try:
                yield int((group / name).read_text())
            except (OSError, ValueError):  # "max", or not visible from in here
                continue


@contextmanager
def explained(
    tried: int, fits: Callable[[int], int], device: torch.device, coupled: int | None = None
) -> Iterator[None]:
    """Turn a lack of memory into one line that says what was tried and what would fit.

    Where `coupled` images act on each other, a smaller micro-batch is another loss: that is said too.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not _HOST_IS_FULL.search(str(error)):
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
