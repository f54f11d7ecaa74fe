"""Batches on their way from the host to the device, while the device computes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mrp.batch import Batch


class Transfer:
    """Copies batches on a stream of their own, so that one travels while the device still computes with the last one.

    The copy does not wait for the work that is queued on the device, and only the work that uses this batch waits for
    the copy. On a CPU the batch is returned as it is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch on the device; the host waits for nothing if the batch is in page-locked memory."""
        if self._stream is None:
            return batch.to(self._device)
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            batch = batch.to(self._device, non_blocking=True)
        computing.wait_stream(self._stream)
        for tensor in pytree.tree_leaves(batch):
            if isinstance(tensor, Tensor):
                # Its memory belongs to the copying stream, which must not reuse it while it is computed with.
                tensor.record_stream(computing)
        return batch
