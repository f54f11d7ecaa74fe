"""How many threads torch computes with on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Lets torch compute with so many threads meanwhile; None leaves their number as it is."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
