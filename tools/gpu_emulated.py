"""Runs a program of Python on a GPU that is not there: the memory is the host's, and the kernels are those of a CPU.

    python tools/gpu_emulated.py -m mrp pretrain demo --folder runs/demo
    python tools/gpu_emulated.py tools/gpu.py --rehearse --out rehearsal --parts agree syncs faults resume

All else is torch's own code for CUDA: its allocator, streams, page-locked memory, the threads of the backward pass, and
`torch.cuda.set_sync_debug_mode`. A tensor on the wrong device is an error as on a GPU. Not emulated: the rounding and
speed of its kernels, fused attention, compiled code (nothing is compiled), and work that is not done yet: a stream
does at once what it is asked for. It is slow, about 0.1 ms per operation.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_CHOSEN = "MRP_GPU_IS_EMULATED"
_GPU = torch.device("cuda:0")
_aten = torch.ops.aten
# What torch does by itself: it takes memory, or looks at a tensor in another way, or reads one number.
_WITHOUT_KERNEL = {
    _aten.empty.memory_format, _aten.empty_strided.default, _aten.new_empty.default, _aten.new_empty_strided.default,
    _aten._unsafe_view.default, _aten._reshape_alias.default, _aten.lift_fresh.default, _aten.is_pinned.default,
    _aten._local_scalar_dense.default, _aten._pin_memory.default, _aten.record_stream.default, _aten.resize_.default,
    _aten.set_.source_Tensor, _aten.set_.source_Storage, _aten.set_.source_Storage_storage_offset,
    _aten.squeeze_.default, _aten.squeeze_.dim, _aten.unsqueeze_.default, _aten.t_.default, _aten.transpose_.default,
    _aten.as_strided_.default, _aten.detach_.default,
}  # fmt: skip
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
# The host waits for these, since the size of the result depends on the values.
_WAITING = {
    _aten.nonzero.default, _aten.masked_select.default, _aten.equal.default, _aten.bincount.default,
    _aten._unique2.default, _aten.unique_dim.default, _aten.unique_consecutive.default, _aten.repeat_interleave.Tensor,
}  # fmt: skip


class Emulated(TorchDispatchMode):
    """Computes what a GPU would be asked for on the CPU, in the GPU's memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        created_there = torch.device(kwargs.get("device") or "cpu").type == "cuda"
        if not created_there and not any(map(_is_there, tensors)):
            return func(*args, **kwargs)
        if func in _WITHOUT_KERNEL or func.is_view:
            return func(*args, **kwargs)
        if func is _aten.copy_.default:
            return _copied(*args, **kwargs)
        if func is _aten._to_copy.default:
            return _moved(*args, **kwargs)
        _check(func, args, tensors)
        if created_there:
            kwargs["device"] = torch.device("cpu")
        if getattr(kwargs.get("generator"), "device", _GPU) == _GPU:
            kwargs.pop("generator", None)
        there = {id(tensor): tensor for tensor in tensors if _is_there(tensor)}
        here = {key: _here(tensor) for key, tensor in there.items()}
        own = {tensor.untyped_storage().data_ptr(): there[key] for key, tensor in here.items() if tensor.numel()}
        args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: here.get(id(tensor), tensor), (args, kwargs))
        unchanged = {id(tensor): there[key] for key, tensor in here.items()}  # what was written in place

        def back(tensor: Tensor) -> Tensor:
            if (same := unchanged.get(id(tensor))) is not None:
                return same
            if tensor.numel() and (base := own.get(tensor.untyped_storage().data_ptr())) is not None:
                return torch.as_strided(base, tensor.size(), tensor.stride(), tensor.storage_offset())
            return _there(tensor)

        return pytree.tree_map_only(Tensor, back, func(*args, **kwargs))


def _is_there(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def _here(tensor: Tensor) -> Tensor:
    """Returns the same memory as a tensor of the CPU."""
    if not _is_there(tensor):
        return tensor
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    memory = torch.frombuffer((ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr()), dtype=torch.uint8)
    same = torch.empty(0, dtype=tensor.dtype)
    return same.set_(memory.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def _there(tensor: Tensor) -> Tensor:
    out = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=_GPU)
    _here(out).copy_(tensor)
    return out


def _wait() -> None:
    """Reads a number, so that torch warns or raises an error as it was told to where the host waits for a GPU."""
    torch.empty((), device=_GPU).item()


def _copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    if _is_there(target) != _is_there(source) and not non_blocking:
        _wait()
    _here(target).copy_(_here(source))
    return target


def _moved(source: Tensor, *, device: Any = None, non_blocking: bool = False, **options: Any) -> Tensor:
    to = _is_there(source) if device is None else torch.device(device).type == "cuda"
    if to != _is_there(source) and not non_blocking:
        _wait()
    copied = _aten._to_copy.default(_here(source), **{**options, "pin_memory": None})
    return _there(copied) if to else copied


def _check(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Raises an error where a GPU would, and waits where the host would wait."""
    if func in _INDEXED and _is_there(args[0]):
        indices = [index for index in args[1] if index is not None]
        if any(not _is_there(index) or index.dtype in (torch.bool, torch.uint8) for index in indices):
            _wait()
        tensors = [tensor for tensor in tensors if not any(tensor is index for index in indices)]
    odd = [tuple(tensor.shape) for tensor in tensors if tensor.ndim and not _is_there(tensor)]
    if odd:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but one of {odd[0]} is on cpu")
    if func in _WAITING:
        _wait()


def install() -> None:
    """Emulates from now on, in this thread and in those of the backward pass."""
    torch.backends.cudnn.enabled = False
    for enable in ("flash", "mem_efficient", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{enable}_sdp")(False)
    nn.Module.compile = lambda module, *how, **more: None  # type: ignore[method-assign]
    Emulated().__enter__()  # type: ignore[no-untyped-call]


def main() -> None:
    """Runs the program that the command line names."""
    from gpu_kernels import pretend

    pretend()
    os.environ[_CHOSEN] = "yes"
    import gpu_emulated  # noqa: F401 -- installs itself

    by_name, sys.argv = sys.argv[1] == "-m", sys.argv[2 if sys.argv[1] == "-m" else 1 :]
    if by_name:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(sys.argv[0]).parent)
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
elif os.environ.get(_CHOSEN):
    install()
