"""Joining and leaving the other processes of a run, in training and in evaluation alike."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from accelerate import Accelerator as Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from mrp import progress
from mrp.config import ConfigError

# How long a process waits for the others in one exchange before torch ends it. In training it waits while another one
# compiles, evaluates, or lets an earlier checkpoint be finished (at most ten minutes); the watchdog speaks much sooner.
_TRAINING = timedelta(hours=1)
EVALUATION = timedelta(days=2)  # only the first process trains heads, and the others wait for it


def join(*handlers: Any, timeout: timedelta | None = None) -> Accelerator:
    """Joins the other processes that the launcher started; without a launcher this process is alone."""
    # Left to itself, accelerate takes the ranks of a machine without a GPU for as many separate runs, and devices that
    # mrp has never been tried on, such as a Mac's, which has no float64.
    cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true"}
    started = int(os.environ.get("WORLD_SIZE") or 1)
    if not cpu:
        _check_devices(started, torch.cuda.device_count())
    else:
        _tell_of_unused_device()
    if started == 1:
        _warn_of_single_tasks()
    handlers = (*handlers, InitProcessGroupKwargs(timeout=timeout or _TRAINING))
    accelerator = Accelerator(mixed_precision="no", cpu=cpu, kwargs_handlers=list(handlers))
    # `precision: fp32` is float32, also where the environment says otherwise, as that of NVIDIA's images does. What is
    # right is not set again, since the compiler takes a setting that was given for another one.
    torch.backends.cudnn.allow_tf32 = False
    if torch.backends.cuda.matmul.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = False
    if accelerator.num_processes != started:
        raise ConfigError(
            f"WORLD_SIZE: the launcher started {started} processes, but accelerate found {accelerator.num_processes}; "
            "unset the variables of the launcher that is not used"
        )
    return accelerator


@cache
def _tell_of_unused_device() -> None:
    """Says once that this machine has a device that mrp leaves alone."""
    if not torch.cuda.is_available() and (found := torch.accelerator.current_accelerator(check_available=True)):
        progress.say(f"computes on the CPU: mrp uses GPUs of CUDA and ROCm, not this machine's '{found.type}' device")


def _check_devices(started: int, devices: int) -> None:
    """Refuses to start where a process would share a device with another one, or take none."""
    if started > 1 and "LOCAL_RANK" not in os.environ:  # accelerate would train on the processor, and say nothing
        raise ConfigError(
            "LOCAL_RANK: is not set beside WORLD_SIZE, so no process knows its device; set it to the number of the "
            "process on its machine (under srun: LOCAL_RANK=$SLURM_LOCALID)"
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    is_task = os.environ.get("SLURM_LOCALID") == str(local)  # started by srun, and not by a launcher inside of a job
    if devices == 1 and is_task and "CUDA_VISIBLE_DEVICES" in os.environ:  # one for each task
        local = 0
        os.environ["LOCAL_RANK"] = "0"  # which accelerate takes for the number of a device
    if local >= devices:
        raise ConfigError(
            f"--processes: process {local + 1} finds no device of its own: this machine has {devices}; start one "
            "process per device"
        )


def _warn_of_single_tasks() -> None:
    """Says that tasks which srun has started together do not know of each other."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1 and os.environ.get("SLURM_PROCID") == "0":
        progress.tell(
            f"warning: srun has started {tasks} tasks, each of which is alone, since RANK and WORLD_SIZE are not set; "
            "'mrp submit RECIPE --dry-run' shows what to set"
        )


def join_for_evaluation() -> Accelerator:
    """Joins the processes that read features together, which wait as long as the first one trains heads."""
    return join(timeout=EVALUATION)


def from_first(value: Any) -> Any:
    """Returns the first process's value on every process."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


def from_all(value: Any) -> list[Any]:
    """Returns the values of all processes, in their order, on every process."""
    values: list[Any] = gather_object([value])
    return values


def leave() -> None:
    """Leaves the other processes, once all of them have come to the same end."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
