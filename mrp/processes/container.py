"""What a container or a batch job leaves to this process, which may be less than the machine has: memory and cores."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
_MEMBERSHIP, _GROUPS = PROC / "self" / "cgroup", Path("/sys/fs/cgroup")


def host_memory(membership: Path = _MEMBERSHIP, root: Path = _GROUPS) -> int:
    """Returns the bytes of the host's memory that this process may use."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group, version in control_groups("memory", membership, root):
        limits += _numbers(group / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
    return min(limits)


def usable_cores(membership: Path = _MEMBERSHIP, root: Path = _GROUPS) -> int:
    """Returns the number of processor cores that this process may use, at least one."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    cores = [len(affinity(0)) if affinity else os.cpu_count() or 1]
    for group, version in control_groups("cpu", membership, root):
        if version == 2:
            quota = _numbers(group / "cpu.max")
        else:
            quota = _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
        if len(quota) == 2 and quota[0] > 0:  # microseconds of work per period; -1 means without a limit
            cores.append(math.ceil(quota[0] / quota[1]))
    return max(1, min(cores))


def share_of_cores(processes: int) -> int:
    """Returns the cores of one of so many processes that share what this machine leaves to them."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", processes)))


def control_groups(controller: str, membership: Path, root: Path) -> Iterator[tuple[Path, int]]:
    """Yields every control group that limits this process, the innermost first, with the version of its hierarchy."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, version = root, 2
        elif controller in controllers.split(","):
            base, version = root / controllers, 1
            base = base if base.is_dir() else root / controller
        else:
            continue
        innermost = base / path.lstrip("/")
        for group in (innermost, *innermost.parents):
            if group == base.parent:
                break
            yield group, version


def _numbers(path: Path) -> list[int]:
    """Returns the numbers in a file; none where it says "max", or cannot be seen from inside the container."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []
