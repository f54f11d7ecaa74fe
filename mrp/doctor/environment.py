"""Whether the machine has what the run asks of it."""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections.abc import Iterator

from mrp.doctor.case import Case
from mrp.doctor.finding import Finding, error, ok, warning
from mrp.doctor.machine import PACKAGES
from mrp.doctor.recipe import checkpoint_bytes, most_checkpoints
from mrp.processes.wrapping import is_compiled

_GIB = 2**30
_DISTRIBUTION = "mrp-vit"
_AHEAD = 3  # micro-batches per worker in shared memory: two that wait, and one that is being made
_OPEN_ANYWAY = 128  # files that a training process has open before it reads any data
_PER_BATCH = 6  # tensors of a micro-batch, each a file of its own in shared memory


def versions(case: Case) -> Iterator[Finding]:
    """Compares versions with those that mrp needs."""
    have = case.machine.versions
    found = ", ".join(f"{name} {version}" for name, version in have.items())
    needs = _needs()
    old = [name for name in PACKAGES if name in needs and _numbers(have[name]) < _numbers(needs[name])]
    if old:
        words = " ".join(f"'{name}>={needs[name]}'" for name in old)
        yield error("versions", f"{found}: too old: {', '.join(old)}", f"pip install --upgrade {words}")
    elif not (3, 11) <= _numbers(have["Python"])[:2] <= (3, 13):
        yield warning("versions", f"{found}: mrp is tested with Python 3.11 to 3.13", "make an environment with one")
    else:
        yield ok("versions", found)


def _needs() -> dict[str, str]:
    """Returns the oldest versions that mrp says it works with, where it is installed."""
    try:
        lines = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    return dict(line.split(">=") for line in lines if re.fullmatch(r"[\w-]+>=[\d.]+", line))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:3]))


def devices(case: Case) -> Iterator[Finding]:
    """Looks for GPUs, one per process, and for how they compute and talk."""
    machine, run = case.machine, case.run
    cuda = machine.device.type == "cuda"
    if cuda and case.processes > len(machine.gpus):
        yield error(
            "devices",
            f"{len(machine.gpus)} GPUs for {case.processes} processes",
            f"plan for one process per GPU: --processes {len(machine.gpus)}",
        )
    elif cuda:
        yield ok("devices", ", ".join(machine.gpus))
    elif machine.driver:
        yield warning(
            "devices",
            "the driver of an NVIDIA GPU is loaded, but torch sees no GPU, so the run computes on the CPU",
            "install torch with CUDA (python -c 'import torch; print(torch.version.cuda)'), or a driver that is as new",
        )
    else:
        yield ok("devices", "no GPU of CUDA or ROCm; the run computes on the CPU")
    if cuda and case.processes > 1 and not machine.nccl:
        yield error("NCCL", "this torch has none, by which GPUs exchange gradients", "install torch with NCCL")
    if run.precision == "bf16" and not machine.bf16:
        yield warning(
            "bf16",
            f"{machine.gpus[0] if cuda else 'this processor'} computes in bfloat16 only by emulation, which is slow",
            "take precision=fp32" + (", or a GPU of compute capability 8.0 or higher" if cuda else ""),
        )
    lacks = [] if machine.compiler else [("no C compiler is found (cc, gcc, clang)", "gcc")]
    lacks += [] if machine.header else [("Python's headers (Python.h) are not found", "python3-dev, of this Python")]
    for what, package in lacks if is_compiled(run.machine.compile, machine.device) else []:
        remedy = f"install {package}, or set machine.compile=no"
        yield error("torch.compile", f"{what}, which torch.compile needs", remedy)


def limits(case: Case) -> Iterator[Finding]:
    """Says what a container or a batch job leaves to the run."""
    machine = case.machine
    parts = [f"{machine.cores} of {machine.installed_cores} cores"]
    parts += [f"{machine.host_memory / _GIB:.3g} of {machine.installed_memory / _GIB:.3g} GiB of memory"]
    yield ok("limits", f"{' and '.join(parts)} are left to this process")


def disk(case: Case) -> Iterator[Finding]:
    """Compares the space on the disk with the checkpoints that will lie there."""
    each, most, free = checkpoint_bytes(case), most_checkpoints(case), case.machine.disk
    found = f"{free / _GIB:.3g} GiB are free at {case.folder}, and {most} checkpoints of {each / _GIB:.2g} GiB"
    if free < each * most:
        remedy = "make space, give another --folder, or keep fewer (checkpoint.keep, checkpoint.milestone)"
        yield error("disk", f"{found} take {each * most / _GIB:.3g} GiB", remedy)
    else:
        yield ok("disk", f"{found} fit")


def shared_memory(case: Case) -> Iterator[Finding]:
    """Compares /dev/shm with the batches that workers put there."""
    there = case.machine.shared_memory
    if there is None or not case.workers:
        return
    batch = case.plan.micro_batch * case.run.data.num_channels * math.prod(case.run.data.shape)
    needed = case.processes * case.workers * _AHEAD * batch
    found = f"{there / _GIB:.2g} GiB are free under /dev/shm, and the batches of {case.workers} workers"
    found += f" of each of {case.processes} processes" if case.processes > 1 else ""
    if there < needed:
        yield error(
            "shared memory",
            f"{found} need {needed / _GIB:.2g} GiB",
            "give the container more (docker run --shm-size=8g), or take fewer machine.workers or a smaller "
            "machine.micro_batch",
        )
    else:
        yield ok("shared memory", f"{found} need {needed / _GIB:.2g} GiB at most")


def open_files(case: Case) -> Iterator[Finding]:
    """Compares the limit on open files with what shards and batches take."""
    allowed = case.machine.open_files
    shards = min(len(case.source.shard_sizes), case.run.data.window * case.run.data.lanes)
    needed = _OPEN_ANYWAY + _PER_BATCH * _AHEAD * case.workers + shards
    found = f"{allowed:,} may be open in a process, which has about {needed:,} open at most"
    if needed > allowed:
        remedy = f"raise the limit before the start: ulimit -n {1 << needed.bit_length()}"
        yield warning("open files", found, f"{remedy}; or lower data.window")
    else:
        yield ok("open files", found)


CHECKS = (versions, devices, limits, disk, shared_memory, open_files)
