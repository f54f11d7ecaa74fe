"""Joining and leaving the other processes of a run, in training and in evaluation alike."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator as Accelerator
from accelerate.utils import InitProcessGroupKwargs

from mrp.config import ConfigError

# How long a process waits for the others in one exchange before torch ends it. In training it waits while another one
# compiles, evaluates, or lets an earlier checkpoint be finished (at most ten minutes); the watchdog speaks much sooner.
_TRAINING = timedelta(hours=1)
EVALUATION = timedelta(days=2)  # only the first process trains heads, and the others wait for it


def join(*handlers: Any, timeout: timedelta | None = None) -> Accelerator:
    """Joins the other processes that the launcher started; without a launcher this process is alone."""
    # Left to itself, accelerate takes the ranks of a machine without an accelerator for as many separate runs.
    cpu = not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true"}
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if not cpu and local >= torch.accelerator.device_count():
        raise ConfigError(
            f"--processes: process {local + 1} finds no device of its own: this machine has "
            f"{torch.accelerator.device_count()}; start one process per device"
        )
    handlers = (*handlers, InitProcessGroupKwargs(timeout=timeout or _TRAINING))
    accelerator = Accelerator(mixed_precision="no", cpu=cpu, kwargs_handlers=list(handlers))
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise ConfigError(
            f"WORLD_SIZE: the launcher started {started} processes, but accelerate found {accelerator.num_processes}; "
            "unset the variables of the launcher that is not used"
        )
    return accelerator


def join_for_evaluation() -> Accelerator:
    """Joins the processes that read features together, which wait as long as the first one trains heads."""
    return join(timeout=EVALUATION)


def leave() -> None:
    """Leaves the other processes, once all of them have come to the same end."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
