"""Lays tensors out as the bytes of a safetensors file, so that another process can write them from shared memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mrp.tensors import whole

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class Layout:
    """Where each tensor lies in a file, which follows from its whole shape alone, also where it is sharded."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        # Larger elements first, so that each tensor lies at a multiple of its element's size.
        self._tensors = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
        entries, start = {}, 0
        for name, tensor in self._tensors.items():
            end = start + tensor.numel() * tensor.element_size()
            entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
            start = end
        header = json.dumps(entries, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        self.head = len(header).to_bytes(8, "little") + header
        self.size = len(self.head) + start

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yields the file's bytes, one tensor at a time."""
        yield self.head
        for tensor in self._tensors.values():
            yield memoryview(whole(tensor).cpu().contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]

    def copy_to(self, memory: Tensor, asynchronous: bool = False) -> None:
        """Copies the file's bytes into this memory of the host; `asynchronous`: the device may still be copying."""
        memory[: len(self.head)] = torch.frombuffer(bytearray(self.head), dtype=torch.uint8)
        start = len(self.head)
        for tensor in self._tensors.values():
            end = start + tensor.numel() * tensor.element_size()
            target = memory[start:end].view(tensor.dtype).view(tensor.shape)
            target.copy_(whole(tensor), non_blocking=asynchronous)
            start = end

    def gather(self) -> None:
        """Takes part in putting sharded tensors together, on a process that does not write them."""
        for tensor in self._tensors.values():
            whole(tensor)
