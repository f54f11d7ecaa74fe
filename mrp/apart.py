"""What a program around mrp has set in torch for itself: set aside while mrp works, and given back as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Has torch be as in a new process meanwhile: float32, on the CPU by default, gradients, and no autocast.

    Afterwards the caller's random numbers go on as if none had been drawn in between.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_random_numbers_kept())
        if (dtype := torch.get_default_dtype()) != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Gives torch's generators of the CPU and of CUDA back as they were.

    Those of GPUs that nobody has used yet get the seed that they would have begun with.
    """
    used = torch.cuda.is_initialized()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if used else []):
            yield
    finally:
        if not used and torch.cuda.is_available():
            torch.cuda.manual_seed_all(torch.initial_seed())
