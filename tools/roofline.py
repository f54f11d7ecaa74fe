"""Where the time of a training step must go: FLOPs and bytes of each part of MAE and SimMIM against a GPU's limits.

    python tools/roofline.py                                    # ViT-B and ViT-L at 224, batch 256, on an H100
    python tools/roofline.py --gpu h200
    python tools/roofline.py --backbone vit_huge_patch14_224 --batch 128

Nothing is measured. FLOPs are exact (they add up to those that `mrp` counts); bytes are what the kernels of a compiled
step have to read and write if each chain of elementwise operations is one kernel, except where the compiler is known
to move more. tools/gpu_kernels.py counts all that it moves, and a profile (tools/gpu.py, part `faster`) shows the time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_setup import Scale, make_run

from mrp.build import build_step
from mrp.models.vit import num_heads
from mrp.run import Run


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do per second by its data sheet."""

    flops: float  # dense bf16 products; in float8 twice as many
    bandwidth: float  # bytes of its memory


GPUS = {"h100": Gpu(989e12, 3.35e12), "h200": Gpu(989e12, 4.8e12)}  # SXM
# The share of these limits that kernels reach. These are assumptions, until a profile gives better ones.
REACH = {"product": 0.65, "convolution": 0.2, "attention": 0.4, "memory": 0.85}
_HALF, _SINGLE = 2, 4  # bytes
# Bytes per number of a branch's sum and norm, forward and backward, by the bytes per number of the residual stream, as
# tools/gpu_kernels.py counts them for MAE with a ViT-B on torch 2.11. In float32, 28 would do: but sums are computed
# again from several branches, norms are written in float32 too, and a gradient is read once more to be made bf16.
_RESIDUAL = {_HALF: 18, _SINGLE: 38}
_FUSED = 31  # the same, counted, if tools/gpu_fused.py does it: 28, the first norm of a stack, and parts of gradients


@dataclass(frozen=True)
class Part:
    """FLOPs and bytes of a part of a step, over the whole batch, forward and backward."""

    name: str
    kind: str  # a key of REACH
    flops: float
    bytes: float
    speed: int = 1  # 2: of products in float8

    def limits(self, gpu: Gpu) -> tuple[float, float]:
        """Returns the seconds below which neither the products nor the memory can be."""
        return self.flops / self.speed / gpu.flops, self.bytes / gpu.bandwidth

    def expected(self, gpu: Gpu) -> float:
        """Returns the seconds at the shares of the limits that are assumed."""
        products, memory = self.limits(gpu)
        return max(products / REACH[self.kind], memory / REACH["memory"])


@dataclass(frozen=True)
class Blocks:
    """A stack of transformer blocks as it is met in a step."""

    name: str
    rows: int  # sequences: the batch times the masks per image
    tokens: int  # per sequence
    width: int
    depth: int
    heads: int
    biased: bool = False  # attention adds a relative bias, which is learned


@dataclass(frozen=True)
class Shape:
    """The sizes that decide what a step costs."""

    encoder: Blocks
    decoder: Blocks | None
    patches: int
    visible: int  # patches that enter the encoder
    outputs: int  # numbers per patch
    parameters: int  # trained ones
    gpu: Gpu  # that it is computed on

    @classmethod
    def of(cls, run: Run, gpu: Gpu) -> Shape:
        """Returns those of a run of MAE or SimMIM."""
        with torch.device("meta"):
            step = build_step(run)
        objective: Any = step.objective
        vit, patches = objective.backbone, objective.backbone.patch_embed.num_patches
        rows, visible = run.batch * objective.num_masks, getattr(objective, "num_visible", patches)
        heads, biased = num_heads(vit), hasattr(vit, "rel_pos_bias")
        encoder = Blocks(
            "encoder", rows, vit.num_prefix_tokens + visible, vit.embed_dim, len(vit.blocks), heads, biased
        )
        decoder = getattr(objective, "decoder", None)
        if decoder is not None:
            width, tokens = decoder.embed.out_features, decoder.positions.shape[1]
            decoder = Blocks("decoder", rows, tokens, width, len(decoder.blocks), decoder.blocks[0].attn.num_heads)
        numbers = vit.patch_embed.proj.weight[0].numel()
        trained = sum(p.numel() for p in step.parameters() if p.requires_grad)
        return cls(encoder, decoder, patches, visible, numbers, trained, gpu)


@dataclass(frozen=True)
class Ways:
    """How a step is computed: the product's way, and what tools/gpu_candidates.py has in its place."""

    visible: bool = False  # only visible patches are embedded, by a linear layer
    linear: bool = False  # patches are embedded by a linear layer, not by a convolution
    hidden: bool = False  # the last block of the decoder and the head work for hidden patches only
    epilogue: bool = False  # GELU is part of the products around it
    residual: int = _SINGLE  # bytes per number of the residual stream
    fp8: bool = False  # the products of the blocks take float8
    fused: bool = False  # a sum and its norm are one kernel, which gives the gradient of the bias before it in passing
    gelu: bool = False  # the backward pass of GELU gives the gradient of the bias before it in passing
    flex: bool = False  # the gradient of a relative bias is never written per sample


def parts(shape: Shape, ways: Ways = Ways()) -> Iterator[Part]:
    """Yields every part of a step."""
    encoder, decoder = shape.encoder, shape.decoder
    rows, patches = encoder.rows, shape.patches
    # uint8 is read; float32 pixels are written, read for the embedding (bf16), for statistics, targets and their mean;
    # the loss reads predictions and targets forward and backward, and writes a gradient.
    yield Part("pixels, targets, loss", "memory", 0, 45 * rows * patches * shape.outputs)
    embedded = rows * (shape.visible if ways.visible else patches)
    kind = "product" if ways.visible or ways.linear else "convolution"
    yield _product("patch embedding", embedded, shape.outputs, encoder.width, passes=2, kind=kind)
    # The output is made float32 and gathered; backward its gradient is scattered into zeros and made bf16.
    moved = 8 if ways.visible else 19
    yield Part("embedding: casts, gather, scatter", "memory", 0, moved * embedded * encoder.width)
    yield from _blocks(encoder, ways)
    if decoder is None:
        yield _product("head", rows * patches, encoder.width, shape.outputs)
    else:
        yield _product("decoder: embedding", rows * encoder.tokens, encoder.width, decoder.width)
        yield Part("decoder: mask tokens, positions", "memory", 0, 12 * rows * decoder.tokens * decoder.width)
        predicted = patches - shape.visible if ways.hidden else decoder.tokens
        yield from _blocks(decoder, ways, last=predicted)
        yield _product("decoder: head", rows * predicted, decoder.width, shape.outputs)
    # Weights are made bf16, their gradients float32; the norm reads gradients; AdamW reads four numbers, writes three.
    yield Part("weights to bf16 and back", "memory", 0, 12 * shape.parameters)
    yield Part("gradient norm and AdamW", "memory", 0, (4 + 28) * shape.parameters)


def _product(
    name: str, rows: int, inputs: int, outputs: int, passes: int = 3, fp8: bool = False, kind: str = "product"
) -> Part:
    """Returns a linear layer: its output, and the gradients of its weight and (in three passes) of its input."""
    numbers = passes * (rows * inputs + inputs * outputs + rows * outputs)
    flops = 2 * passes * rows * inputs * outputs
    return Part(name, kind, flops, _HALF * numbers, 2 if fp8 else 1)


def _blocks(blocks: Blocks, ways: Ways, last: int | None = None) -> Iterator[Part]:
    """Yields the parts of a stack; `last` is how many tokens go through the last block if not all."""
    depth, width, name = blocks.depth, blocks.width, blocks.name
    whole = blocks.rows * blocks.tokens
    fewer = whole if last is None else blocks.rows * last
    rows = (depth - 1) * whole + fewer  # through queries, projection and MLP, over all blocks
    linear = [
        _product("", depth * whole, width, 2 * width, fp8=ways.fp8),
        _product("", rows, width, 2 * width, fp8=ways.fp8),  # queries and projection
        _product("", rows, width, 8 * width, fp8=ways.fp8),  # both of the MLP
    ]
    yield Part(
        f"{name}: linear layers", "product", sum(p.flops for p in linear), sum(p.bytes for p in linear), linear[0].speed
    )
    pairs = (rows * blocks.tokens) * width
    yield Part(f"{name}: attention", "attention", 14 * pairs, _HALF * 12 * rows * width)
    if blocks.biased and not ways.flex:  # the gradient of every sample's bias is written, and read to be added up
        pairs = blocks.rows * blocks.heads * blocks.tokens**2
        yield Part(f"{name}: gradient of the bias", "memory", 0, 2 * _HALF * depth * pairs)
    yield Part(f"{name}: gradients of queries, keys and values joined", "memory", 0, _HALF * 6 * rows * width)
    per_number = _FUSED if ways.fused else _RESIDUAL[ways.residual]
    yield Part(f"{name}: norms, residuals", "memory", 0, 2 * per_number * rows * width)
    yield Part(f"{name}: GELU", "memory", 0, (16 if ways.epilogue else 40) * rows * width)
    read = 9 - 2 * ways.fused - 4 * ways.gelu  # of queries, keys and values 3, projection 1, MLP 4 and 1
    yield Part(f"{name}: gradients of biases", "memory", 0, _HALF * read * rows * width)
    if ways.fp8:  # of 7 inputs and 9 gradients: read in bf16, written in float8 as they are and transposed
        yield Part(f"{name}: quantising", "memory", 0, 4 * (7 + 9) * rows * width)


def expected(shape: Shape, ways: Ways = Ways()) -> float:
    """Returns the seconds of a step at the assumed shares of the limits."""
    return sum(part.expected(shape.gpu) for part in parts(shape, ways))


def gpu_named(name: str) -> Gpu:
    """Returns the limits of a GPU by a part of its name; those of an H100 where none is known."""
    return next((gpu for key, gpu in GPUS.items() if key in name.lower().split()), GPUS["h100"])


def table(run: Run, gpu: Gpu) -> str:
    """Returns the parts of a run's step as a table."""
    shape = Shape.of(run, gpu)
    found = list(parts(shape))
    likely = expected(shape)
    lines = [
        "| part | TFLOP | GB | ms at the limits | bound by | ms expected | share |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in found:
        products, memory = part.limits(gpu)
        bound = "products" if products > memory else "memory"
        lines.append(
            f"| {part.name} | {part.flops / 1e12:.2f} | {part.bytes / 1e9:.2f} | {1e3 * max(products, memory):.2f} "
            f"| {bound} | {1e3 * part.expected(gpu):.2f} | {part.expected(gpu) / likely:.1%} |"
        )
    flops, moved = sum(part.flops for part in found), sum(part.bytes for part in found)
    least = sum(max(part.limits(gpu)) for part in found)
    lines.append(
        f"| all | {flops / 1e12:.2f} | {moved / 1e9:.2f} | {1e3 * least:.2f} | | {1e3 * likely:.2f} | 100.0% |"
    )
    return "\n".join(lines)


def main() -> None:
    """Prints a table per backbone."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--backbone", nargs="+", default=["vit_base_patch16_224", "vit_large_patch16_224"])
    words.add_argument("--method", choices=("mae", "simmim"), default="mae")
    words.add_argument("--batch", type=int, default=256)
    words.add_argument("--gpu", choices=GPUS, default="h100")
    options = words.parse_args()
    for name in options.backbone:
        run = make_run(options.method, Scale(False, Path()), name, batch=options.batch, precision="bf16")
        print(f"{options.method}, {name}, batch {options.batch}, {options.gpu}:\n\n{table(run, GPUS[options.gpu])}\n")


if __name__ == "__main__":
    main()
