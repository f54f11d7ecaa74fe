"""The processes of a run, found the same way in training and in evaluation."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator as Accelerator
from accelerate.utils import InitProcessGroupKwargs

from mrp.config import ConfigError

_PATIENCE = timedelta(days=2)


def join(*handlers: Any) -> Accelerator:
    """Meet the other processes that the launcher started (none: this one is alone)."""
    # Left to itself, accelerate takes the ranks of a machine without an accelerator for as many separate runs.
    cpu = not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true"}
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if not cpu and local >= torch.accelerator.device_count():
        raise ConfigError(
            f"--processes: process {local + 1} finds no device of its own: this machine has "
            f"{torch.accelerator.device_count()}; start one process a device"
        )
    accelerator = Accelerator(mixed_precision="no", cpu=cpu, kwargs_handlers=list(handlers))
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise ConfigError(
            f"WORLD_SIZE: the launcher started {started} processes, but accelerate found {accelerator.num_processes}; "
            "unset the variables of the launcher that is not used"
        )
    return accelerator


def meet() -> Accelerator:
    """The processes that read features together: only the first one trains heads, and the others wait for it."""
    return join(InitProcessGroupKwargs(timeout=_PATIENCE))
