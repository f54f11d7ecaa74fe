"""The candidate `fused`: a branch's sum and the LayerNorm behind it in one kernel, written in Triton.

    python tools/gpu_fused.py       # registers, spills and bytes under way of the kernels on an H100; needs none

What the compiler writes for a sum and its norm moves 38 bytes per number of the residual stream, forward and backward;
these move 28, and give the gradient of the bias before the sum in passing. The stream is float32, and so are all sums.
Nothing is added up by atomic operations: each program writes its part of a gradient, and torch adds the parts up.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.library import triton_op, wrap_triton
from torch.nn import functional
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
from triton.compiler import ASTSource  # type: ignore[import-untyped]
from triton.runtime.jit import JITFunction  # type: ignore[import-untyped]

from mrp.models.blocks import Block as EncoderBlock
from mrp.step import Step

_PROGRAMS = 396  # of the backward pass, three for each of an H100's multiprocessors: each writes its part of a gradient


@triton.jit  # type: ignore[untyped-decorator]
def _sum_and_norm_kernel(  # type: ignore[no-untyped-def]
    x, branch, offset, scale, factors, weight, bias, total, normed, means, inverses,
    rows, tokens, EPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Writes x + (branch + offset) * scale * factor, and its norm. Given as a number, EPS would be float64."""
    kind: tl.constexpr = x.dtype.element_ty
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    in_rows, in_width = row < rows, column < WIDTH
    there = in_rows[:, None] & in_width[None, :]
    places = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    added = tl.load(branch + places, there, 0.0).to(kind)
    if offset is not None:
        added += tl.load(offset + column, in_width, 0.0)[None, :]
    if scale is not None:
        added *= tl.load(scale + column, in_width, 0.0)[None, :]
    if factors is not None:
        added *= tl.load(factors + row // tokens, in_rows, 0.0)[:, None]
    summed = tl.load(x + places, there, 0.0) + added
    tl.store(total + places, summed, there)
    mean = tl.sum(summed, 1) / WIDTH
    centred = tl.where(in_width[None, :], summed - mean[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1) / WIDTH + EPS)
    out = centred * inverse[:, None] * tl.load(weight + column, in_width, 0.0)[None, :]
    out += tl.load(bias + column, in_width, 0.0)[None, :]
    tl.store(normed + places, out.to(normed.dtype.element_ty), there)
    tl.store(means + row, mean, in_rows)
    tl.store(inverses + row, inverse, in_rows)


@triton.jit  # type: ignore[untyped-decorator]
def _sum_and_norm_backward_kernel(  # type: ignore[no-untyped-def]
    of_normed, of_total, total, branch, offset, scale, factors, weight, means, inverses, of_x, of_branch, sums,
    rows, tokens, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PARTS: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of x and of the branch, and this program's part of those of weight, bias, offset, scale."""
    kind: tl.constexpr = total.dtype.element_ty
    column = tl.arange(0, BLOCK)
    in_width = column < WIDTH
    weights = tl.load(weight + column, in_width, 0.0)[None, :]
    of_weight, of_bias = tl.zeros([BLOCK], kind), tl.zeros([BLOCK], kind)
    of_offset, of_scale = tl.zeros([BLOCK], kind), tl.zeros([BLOCK], kind)
    for step in range(STEPS):
        row = (step * tl.num_programs(0) + tl.program_id(0)) * ROWS + tl.arange(0, ROWS)
        in_rows = row < rows
        there = in_rows[:, None] & in_width[None, :]
        places = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        gradient = tl.load(of_normed + places, there, 0.0).to(kind)
        mean, inverse = tl.load(means + row, in_rows, 0.0)[:, None], tl.load(inverses + row, in_rows, 0.0)[:, None]
        normal = tl.where(in_width[None, :], (tl.load(total + places, there, 0.0) - mean) * inverse, 0.0)
        of_weight += tl.sum(gradient * normal, 0)
        of_bias += tl.sum(gradient, 0)
        gradient *= weights
        along = (tl.sum(gradient * normal, 1) / WIDTH)[:, None]
        gradient -= (tl.sum(gradient, 1) / WIDTH)[:, None] + normal * along
        gradient *= inverse
        if of_total is not None:
            gradient += tl.load(of_total + places, there, 0.0)
        tl.store(of_x + places, gradient, there)
        if factors is not None:
            gradient *= tl.load(factors + row // tokens, in_rows, 0.0)[:, None]
        if scale is not None:
            added = tl.load(branch + places, there, 0.0).to(kind)
            if offset is not None:
                added += tl.load(offset + column, in_width, 0.0)[None, :]
            of_scale += tl.sum(gradient * added, 0)
            gradient *= tl.load(scale + column, in_width, 0.0)[None, :]
        if offset is not None:
            of_offset += tl.sum(gradient, 0)
        tl.store(of_branch + places, gradient.to(of_branch.dtype.element_ty), there)
    part = sums + tl.program_id(0) * PARTS * WIDTH + column
    tl.store(part, of_weight, in_width)
    tl.store(part + WIDTH, of_bias, in_width)
    if offset is not None:
        tl.store(part + 2 * WIDTH, of_offset, in_width)
    if scale is not None:
        tl.store(part + (PARTS - 1) * WIDTH, of_scale, in_width)


@triton_op("mrp_tools::sum_and_norm", mutates_args={})
def _sum_and_norm(
    x: Tensor, branch: Tensor, offset: Tensor | None, scale: Tensor | None, factors: Tensor | None,
    weight: Tensor, bias: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns the sum, its norm in the branch's type, and mean and inverse deviation of each row."""
    width, rows = x.shape[-1], x.numel() // x.shape[-1]
    total, normed = torch.empty_like(x), torch.empty_like(branch, dtype=written(branch, x))
    means, inverses = x.new_empty(rows), x.new_empty(rows)
    divided = _divided(width, backward=False)
    wrapped(_sum_and_norm_kernel)[(triton.cdiv(rows, divided["ROWS"]),)](
        x, branch, offset, scale, factors, weight, bias, total, normed, means, inverses,
        rows, x.shape[-2], EPS=eps, WIDTH=width, **divided,
    )  # fmt: skip
    return total, normed.to(branch.dtype), means, inverses


@triton_op("mrp_tools::sum_and_norm_backward", mutates_args={})
def _sum_and_norm_backward(
    of_normed: Tensor, of_total: Tensor | None, total: Tensor, branch: Tensor | None, offset: Tensor | None,
    scale: Tensor | None, factors: Tensor | None, weight: Tensor, means: Tensor, inverses: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns the gradients of x, of the branch, and those of weight, bias, offset and scale that there are."""
    width, rows = total.shape[-1], total.numel() // total.shape[-1]
    of_x, of_branch = torch.empty_like(total), torch.empty_like(of_normed, dtype=written(of_normed, total))
    parts, divided = 2 + (offset is not None) + (scale is not None), _divided(width, backward=True)
    steps = triton.cdiv(rows, divided["ROWS"] * _PROGRAMS)
    programs = triton.cdiv(rows, divided["ROWS"] * steps)
    sums = total.new_empty(programs, parts, width)
    wrapped(_sum_and_norm_backward_kernel)[(programs,)](
        of_normed, of_total, total, branch, offset, scale, factors, weight, means, inverses, of_x, of_branch, sums,
        rows, total.shape[-2], WIDTH=width, PARTS=parts, STEPS=steps, **divided,
    )  # fmt: skip
    return of_x, of_branch.to(of_normed.dtype), sums.sum(0)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    _, branch, offset, scale, factors, weight, _, _ = inputs
    total, _, means, inverses = output
    ctx.set_materialize_grads(False)  # of the last sum there is none
    ctx.mark_non_differentiable(means, inverses)
    needed = branch if scale is not None else None
    ctx.save_for_backward(total, needed, offset, scale, factors, weight, means, inverses)


def _gradients(ctx: Any, of_total: Tensor | None, of_normed: Tensor, *_: Tensor) -> Any:
    total, branch, offset, scale, factors, weight, means, inverses = ctx.saved_tensors
    of_total = None if of_total is None else of_total.contiguous()
    of_x, of_branch, sums = _sum_and_norm_backward(
        of_normed.contiguous(), of_total, total, branch, offset, scale, factors, weight, means, inverses
    )
    of_offset = None if offset is None else sums[2]
    return of_x, of_branch, of_offset, None if scale is None else sums[-1], None, sums[0], sums[1], None


_sum_and_norm.register_autograd(_gradients, setup_context=_keep)


def sum_and_norm(
    x: Tensor, branch: Tensor, norm: nn.LayerNorm, *, offset: Tensor | None = None,
    scale: Tensor | None = None, factors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns x + (branch + offset) * scale * factors, and its norm in the branch's type.

    Offset and scale are one number per column, factors one per sample. Everything but the branch is float32.
    """
    x, branch = x.contiguous(), branch.contiguous()
    total, normed, *_ = _sum_and_norm(x, branch, offset, scale, factors, norm.weight, norm.bias, norm.eps)
    return total, normed


def _divided(width: int, backward: bool) -> dict[str, int]:
    """Returns how a kernel is divided: over columns into warps, over rows into programs.

    Forward, a program has one row. Backward there are three programs per multiprocessor, so that few parts of gradients
    are written, and each takes several rows at once, since else too few bytes would be under way from the memory. Both
    stay below the number of registers at which some are spilled: `python tools/gpu_fused.py` shows them.
    """
    block = triton.next_power_of_2(width)
    warps = max(1, min(8, block // 256))
    if backward:
        return {"BLOCK": block, "ROWS": max(1, min(8, 2048 // block)), "num_warps": max(2, warps)}
    return {"BLOCK": block, "ROWS": 1, "num_warps": warps}


def written(like: Tensor, stream: Tensor) -> torch.dtype:
    """Returns the type in which a kernel writes: Triton's interpreter cuts off where a GPU rounds, so torch rounds."""
    return like.dtype if isinstance(_sum_and_norm_kernel, JITFunction) else stream.dtype


def wrapped(kernel: Any) -> Any:
    """Returns what starts a kernel: the compiler sees into it, and Triton's interpreter is called as it is."""
    return wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel


def fuse(step: Step) -> None:
    """Lets every sum in the encoder and in the decoder be one kernel with the norm behind it."""
    objective: Any = step.objective
    for stack, norm in ((objective.backbone, objective.backbone.norm), (objective.decoder, objective.decoder.norm)):
        for block, following in zip(stack.blocks, [*(block.norm1 for block in stack.blocks[1:]), norm], strict=True):
            block.__class__ = _KINDS[type(block)]
            block.following = (following,)  # in a tuple: it is no part of this block
            for linear in (block.attn.proj, block.mlp.fc2):
                linear.__class__ = Linear
        norm.__class__ = _LastNorm


class Linear(nn.Linear):
    """Leaves its bias to what comes next."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns the product alone."""
        return functional.linear(input, self.weight)


class _LastNorm(nn.LayerNorm):
    """Is given what the last block returns: tokens and their norm."""

    def forward(self, input: Any) -> Any:
        return input[1]


class _EncoderBlock(EncoderBlock):
    def forward(self, x: Any, attn_mask: Tensor | None = None, *_: Any, **more: Any) -> Any:
        bias: Any = getattr(self, "rel_pos_bias", None)
        return _through(self, x, attn_mask if bias is None else bias(more.get("places")), more.get("factors"))


class _DecoderBlock(Block):
    def forward(self, x: Any, attn_mask: Tensor | None = None, is_causal: bool = False) -> Any:
        return _through(self, x, attn_mask)


_KINDS = {EncoderBlock: _EncoderBlock, Block: _DecoderBlock}


def _through(block: Any, given: Any, attn_mask: Tensor | None, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns what a block makes of tokens, and its norm; the first block is given tokens, the others the same two."""
    x, normed = given if isinstance(given, tuple) else (given, block.norm1(given))
    attention, mlp = (None, None) if factors is None or not block.training else factors
    branch, scale = block.attn(normed, attn_mask=attn_mask), getattr(block.ls1, "gamma", None)
    x, normed = sum_and_norm(x, branch, block.norm2, offset=block.attn.proj.bias, scale=scale, factors=attention)
    branch, scale = block.mlp(normed), getattr(block.ls2, "gamma", None)
    return sum_and_norm(x, branch, block.following[0], offset=block.mlp.fc2.bias, scale=scale, factors=mlp)


@dataclass(frozen=True)
class Built:
    """What a kernel is for an H100: numbers of its cubin, and how many bytes it can have under way."""

    width: int
    registers: int  # per thread
    spilled: int  # bytes of a thread's stack
    programs: int  # per multiprocessor, at once
    kilobytes: float  # that these have asked the memory for, if all wait


def built(kernel: Any, width: int) -> Built:
    """Compiles a kernel in full, with offset, scale and factors, for an H100, which need not be there."""
    backward = kernel is _sum_and_norm_backward_kernel
    divided = _divided(width, backward)
    warps = divided.pop("num_warps")
    constants = {"EPS": 1e-6, "WIDTH": width, "PARTS": 4, "STEPS": 32} | divided
    half, names = ("branch", "normed", "of_normed", "of_branch"), [each.name for each in kernel.params]
    others = {"rows": "i32", "tokens": "i32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: others.get(name, "*bf16" if name in half else "*fp32") for name in names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name not in others}
    fixed = {(names.index(name),): value for name, value in constants.items() if name in names}
    source = ASTSource(kernel, signature, constexprs=fixed, attrs=aligned)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.findall(rf"{word}:(\d+)", said)[-1]) for word in ("REG", "STACK"))
    programs = min(65536 // (32 * warps * -(-registers // 8) * 8), 64 // warps, 3 if backward else 32)
    loaded = (4 + 2 + 4 if backward else 4 + 2) * divided["ROWS"] * width
    return Built(width, registers, stack, programs, programs * loaded / 1024)


def main() -> None:
    """Prints what the kernels of every width that recipes use are for an H100."""
    print("| kernel | width | registers | spilled | programs | KiB under way |\n|---|---|---|---|---|---|")
    for kernel in (_sum_and_norm_kernel, _sum_and_norm_backward_kernel):
        for width in (192, 384, 512, 768, 1024, 1280):
            of = built(kernel, width)
            numbers = f"{of.registers} | {of.spilled} | {of.programs} | {of.kilobytes:.0f}"
            print(f"| {'sum and norm' if kernel is _sum_and_norm_kernel else 'backward'} | {width} | {numbers} |")


if __name__ == "__main__":
    main()
