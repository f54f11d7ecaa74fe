"""The candidate `gelu`: the GELU of an MLP in Triton, whose backward pass adds up the gradient of the bias before it.

The compiler adds it up in a kernel of its own, which reads all of a gradient again that was just written.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from gpu_fused import Linear, wrapped, written
from timm.layers import Mlp
from torch import Tensor
from torch.library import triton_op

from mrp.step import Step

_PROGRAMS = 396  # three for each of an H100's multiprocessors
_DIVIDED = {"COLUMNS": 256, "ROWS": 8, "num_warps": 4}


@triton.jit  # type: ignore[untyped-decorator]
def _gelu_kernel(  # type: ignore[no-untyped-def]
    x, offset, of_out, out, sums, rows, kind: tl.constexpr,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Writes GELU(x + offset) or, given a gradient of that, x's gradient and a part of the offset's."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    in_width = column < WIDTH
    added = tl.load(offset + column, in_width, 0.0)[None, :]
    of_offset = tl.zeros([COLUMNS], kind)
    for step in range(STEPS):
        row = (step * tl.num_programs(1) + tl.program_id(1)) * ROWS + tl.arange(0, ROWS)
        there = (row < rows)[:, None] & in_width[None, :]
        places = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        value = tl.load(x + places, there, 0.0).to(kind) + added
        share = 0.5 + 0.5 * tl.erf(value * 0.7071067811865476)
        if of_out is None:
            result = value * share
        else:
            slope = share + value * tl.exp(-0.5 * value * value) * 0.3989422804014327
            result = tl.load(of_out + places, there, 0.0).to(kind) * slope
            of_offset += tl.sum(result, 0)
        tl.store(out + places, result.to(out.dtype.element_ty), there)
    if of_out is not None:
        tl.store(sums + tl.program_id(1) * WIDTH + column, of_offset, in_width)


@triton_op("mrp_tools::gelu", mutates_args={})
def _gelu(x: Tensor, offset: Tensor, of_out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns GELU(x + offset), or the gradients of both."""
    width, rows = x.shape[-1], x.numel() // x.shape[-1]
    blocks = triton.cdiv(width, _DIVIDED["COLUMNS"])
    # Forward a program has one tile; backward few programs have many each, for each writes a part of a gradient.
    steps = 1 if of_out is None else triton.cdiv(rows * blocks, _DIVIDED["ROWS"] * _PROGRAMS)
    programs = triton.cdiv(rows, _DIVIDED["ROWS"] * steps)
    out = torch.empty_like(x, dtype=written(x, offset))
    sums = offset.new_empty(0 if of_out is None else programs, width)
    kind = tl.float64 if offset.dtype == torch.float64 else tl.float32
    wrapped(_gelu_kernel)[(blocks, programs)](
        x, offset, of_out, out, sums, rows, kind=kind, WIDTH=width, STEPS=steps, **_DIVIDED
    )
    return out.to(x.dtype), sums.sum(0)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], inputs[1])


def _gradients(ctx: Any, of_out: Tensor, _: Tensor) -> Any:
    return *_gelu(*ctx.saved_tensors, of_out.contiguous()), None


_gelu.register_autograd(_gradients, setup_context=_keep)


def gelu(x: Tensor, offset: Tensor) -> Tensor:
    """Returns GELU(x + offset) in the type of x; the offset is one number per column."""
    out: Tensor = _gelu(x.contiguous(), offset, None)[0]
    return out


class _Mlp(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        bias: Any = self.fc1.bias
        out: Tensor = self.fc2(gelu(self.fc1(x), bias))
        return out


def change(step: Step) -> None:
    """Lets every MLP of the encoder and of the decoder use it."""
    for module in step.modules():
        if type(module) is Mlp:
            module.__class__ = _Mlp
            module.fc1.__class__ = Linear
