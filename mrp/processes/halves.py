"""Whether a processor computes in bfloat16 by itself, or only by emulation, which takes several times as long."""

from __future__ import annotations

import time
from functools import cache

import torch

_SHAPE = (128, 512, 512)  # of a product that takes about a millisecond
_TRIES = 3
SLOW = 1.5  # times as long as in float32: from here on bfloat16 does not pay


@cache
def bf16_slowdown() -> float:
    """Returns how many times as long a matrix product takes on this CPU in bfloat16 as in float32, measured."""
    rows, inner, columns = _SHAPE
    half, single = (_seconds(dtype, rows, inner, columns) for dtype in (torch.bfloat16, torch.float32))
    return half / single


def _seconds(dtype: torch.dtype, rows: int, inner: int, columns: int) -> float:
    """Returns the shortest of a few tries; the first one, which prepares, is not counted."""
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
    taken = []
    for _ in range(_TRIES + 1):
        start = time.perf_counter()
        torch.nn.functional.linear(left, right)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def is_bf16_slow(device: torch.device) -> bool:
    """Returns whether bfloat16 takes longer than float32 on a device."""
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bf16_slowdown() > SLOW
