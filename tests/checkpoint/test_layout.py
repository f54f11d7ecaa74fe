"""Our layout of tensors is a safetensors file, byte by byte what a reader of others finds in one."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from mrp.checkpoint.layout import Layout

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
]  # fmt: skip


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    found = {f"of {dtype}": torch.randint(0, 2, (3, 5)).to(dtype) for dtype in DTYPES}
    found |= {"one byte": torch.tensor([True]), "alone": torch.tensor(3.5), "none": torch.zeros(0, 4)}
    found |= {"turned": torch.randn(4, 6).t(), "part": torch.randn(9)[2:7], "ünïcode": torch.randn(2)}
    return found | {"nan": torch.tensor([float("nan"), -0.0, float("inf")])}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        ours, theirs = (t.contiguous().flatten().view(torch.uint8) for t in (tensor, found[name]))
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("count", [0, 1, 5, 99])
def test_others_read_what_is_laid_out(count: int) -> None:
    wanted = dict(list(tensors().items())[:count])
    layout = Layout(wanted)
    content = b"".join(layout.chunks())
    assert len(content) == layout.size
    assert_same(load(content), wanted)


def test_in_shared_memory_it_is_the_same() -> None:
    layout = Layout(tensors())
    room = torch.full((layout.size,), 255, dtype=torch.uint8)
    layout.copy_to(room)
    assert room.numpy().tobytes() == b"".join(layout.chunks())


def test_the_order_in_which_they_come_changes_nothing() -> None:
    wanted = tensors()
    backwards = dict(reversed(wanted.items()))
    assert b"".join(Layout(wanted).chunks()) == b"".join(Layout(backwards).chunks())


def test_a_trained_tensor_is_copied_without_its_history() -> None:
    weight = torch.nn.Parameter(torch.randn(3))
    assert_same(load(b"".join(Layout({"w": weight, "twice": weight * 2}).chunks())), {"w": weight, "twice": weight * 2})
