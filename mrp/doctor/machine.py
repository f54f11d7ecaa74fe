"""The facts of a machine that decide whether a run can go well there; a test hands the checks other ones."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

from mrp.processes import container
from mrp.processes.cost import device_memory
from mrp.processes.halves import is_bf16_slow

PACKAGES = ("torch", "torchvision", "timm", "accelerate")
_SHARED = Path("/dev/shm")  # noqa: S108 -- looked at, not written to
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Machine:
    """What the checks ask of the machine, asked once."""

    versions: dict[str, str]  # of Python and the packages that matter
    device: torch.device
    gpus: tuple[str, ...]  # their names, as far as torch sees them
    driver: bool  # whether NVIDIA's driver is loaded
    bf16: bool  # whether the device computes in bfloat16 by itself, at least as fast as in float32
    compiler: str | None  # the C compiler that torch.compile would call
    header: bool  # whether there is Python's, which it compiles with
    nccl: bool
    memory: int  # bytes that each process may use: its GPU's, or its part of the host's
    host_memory: int  # bytes of the host that are left to us
    installed_memory: int
    cores: int  # that are left to us
    installed_cores: int
    shared_memory: int | None  # free bytes under /dev/shm; None where there is none
    open_files: int  # that a process may have open
    disk: int  # free bytes where the run's folder lies


def this_machine(folder: Path, processes: int) -> Machine:
    """Returns the facts of this machine, for a run in this folder."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return Machine(
        versions={"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES},
        device=device,
        gpus=tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())) if cuda else (),
        driver=_DRIVER.exists(),
        bf16=not is_bf16_slow(device),
        compiler=next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None),
        header=Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").is_file(),
        nccl=torch.distributed.is_available() and torch.distributed.is_nccl_available(),
        memory=device_memory(device, processes),
        host_memory=container.host_memory(),
        installed_memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cores=container.usable_cores(),
        installed_cores=os.cpu_count() or 1,
        shared_memory=shutil.disk_usage(_SHARED).free if _SHARED.is_dir() else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        disk=shutil.disk_usage(existing).free,
    )
