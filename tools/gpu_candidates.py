"""Ways to compute a step faster that `mrp` does not use: each changes a built step in place, before it is compiled.

What pays, as the part `faster` of tools/gpu.py measures it, is moved into `mrp`. Until then nothing of it is there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from roofline import Shape, Ways, expected, parts
from timm.layers import Attention, PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from mrp import methodkit as kit
from mrp.batch import Batch, Output
from mrp.models.blocks import Block as EncoderBlock
from mrp.models.decoder import Transformer
from mrp.models.masking import gather_tokens, scatter_tokens, visible_places
from mrp.models.vit import encode, num_prefix_positions
from mrp.objectives import mae
from mrp.step import Step


class _Visible(mae.Objective):
    def encode_visible(
        self, images: Tensor, mask: Tensor, num_visible: int, keys: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        vit, places = self.backbone, visible_places(mask, num_visible)
        patches = gather_tokens(kit.patchify(images, self.patch, channels_first=True), places)
        tokens = _embedded(vit.patch_embed, patches).float()
        if vit.pos_embed is not None:
            tokens = tokens + vit.pos_embed[0, num_prefix_positions(vit) :][places]
        return encode(vit, tokens, places, keys).tokens, places


class _LinearPatches(PatchEmbed):
    def forward(self, x: Tensor) -> Tensor:
        return _embedded(self, kit.patchify(x, self.patch_size, channels_first=True))


def _embedded(embedding: Any, patches: Tensor) -> Tensor:
    """Returns patch tokens: a convolution whose windows do not overlap is a product with each flat patch."""
    tokens: Tensor = functional.linear(patches, embedding.proj.weight.flatten(1), embedding.proj.bias)
    return tokens


class _Hidden(mae.Objective):
    """For images that lack no channels."""

    def forward(self, batch: Batch, mask: Tensor | None = None) -> Output:
        mask = self.mask(batch.keys) if mask is None else mask
        latent, visible = self.encode_visible(batch.images, mask, self.num_visible, self.view_keys(batch.keys))
        hidden = visible_places(~mask, self.num_patches - self.num_visible)
        prediction = _decoded(self.decoder, latent, visible, hidden)  # BM H PQC
        target = self.target(batch.images)
        per_view = (prediction.float() - gather_tokens(target, hidden)).square().mean((1, 2))
        return self.build_output(per_view, latent, kit.collapse_loss(target, mask), batch.step)


def _decoded(decoder: Transformer, tokens: Tensor, places: Tensor, hidden: Tensor) -> Tensor:
    """Returns MAE's prediction of the hidden patches alone; only keys and values of the last block are of all."""
    tokens = decoder.embed(tokens)
    prefix, visible = tokens[:, : decoder.num_prefix], tokens[:, decoder.num_prefix :]
    masked = decoder.mask_token.to(tokens.dtype).expand(
        len(tokens), decoder.positions.shape[1] - decoder.num_prefix, -1
    )
    tokens = torch.cat([prefix, scatter_tokens(masked, visible, places)], dim=1) + decoder.positions
    *blocks, last = decoder.blocks
    for block in blocks:
        tokens = block(tokens)
    predicted: Tensor = decoder.head(decoder.norm(_through_some(last, tokens, hidden + decoder.num_prefix)))
    return predicted


def _through_some(block: Any, tokens: Tensor, places: Tensor) -> Tensor:
    """Returns what a block makes of the tokens at these places, which look at all."""
    attention, width = block.attn, tokens.shape[-1]
    normalised, weight, bias = block.norm1(tokens), attention.qkv.weight, attention.qkv.bias
    query = functional.linear(gather_tokens(normalised, places), weight[:width], bias[:width])
    key, value = functional.linear(normalised, weight[width:], bias[width:]).chunk(2, dim=-1)
    heads = [part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (query, key, value)]
    attended = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    some = gather_tokens(tokens, places) + attention.proj(attended)
    out: Tensor = some + block.mlp(block.norm2(some))
    return out


class _Float8Product(torch.autograd.Function):
    """A linear layer whose three products take float8, each tensor with one scale from its largest value."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        given, scale = _float8(rows, torch.float8_e4m3fn)
        weights, weight_scale = _float8(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(given, scale, weights, weight_scale)
        ctx.dtypes = rows.dtype, weight.dtype, dtype
        return _scaled(given, weights.t(), scale, weight_scale, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        given, scale, weights, weight_scale = ctx.saved_tensors
        of_rows, of_weight, dtype = ctx.dtypes
        received, gradient_scale = _float8(gradient, torch.float8_e5m2)
        # A GPU multiplies float8 only where the first factor lies by rows and the second by columns.
        to_rows = _scaled(received, weights.t().contiguous().t(), gradient_scale, weight_scale, dtype)
        to_weight = _scaled(
            received.t().contiguous(), given.t().contiguous().t(), gradient_scale, scale, dtype, accurate=True
        )
        return to_rows.to(of_rows), to_weight.to(of_weight), None


def _float8(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    largest = torch.finfo(dtype).max
    scale = tensor.detach().abs().amax().float().clamp(min=1e-12) / largest
    return (tensor.float() / scale).clamp(-largest, largest).to(dtype).contiguous(), scale


def _scaled(
    left: Tensor, right: Tensor, scale: Tensor, other: Tensor, dtype: torch.dtype, accurate: bool = False
) -> Tensor:
    product: Tensor = torch._scaled_mm(
        left, right, scale_a=scale, scale_b=other, out_dtype=dtype, use_fast_accum=not accurate
    )
    return product


class _Float8Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        product = _Float8Product.apply(input.flatten(0, -2), self.weight, dtype)
        out: Tensor = (product + self.bias.to(dtype)).unflatten(0, input.shape[:-1])
        return out


class _Flex(Attention):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        assert attn_mask is not None
        bias = attn_mask[0]
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )

        def score(score: Tensor, sample: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return score + bias[head, row, column]

        attended: Any = flex_attention(query, key, value, score_mod=score)
        out: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return out


class _Flash(Attention):
    backend = SDPBackend.FLASH_ATTENTION

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        with sdpa_kernel(self.backend if x.is_cuda else SDPBackend.MATH):
            out: Tensor = super().forward(x, attn_mask, is_causal)
        return out


class _Cudnn(_Flash):
    backend = SDPBackend.CUDNN_ATTENTION


class _Efficient(_Flash):
    backend = SDPBackend.EFFICIENT_ATTENTION


class _EncoderRegion(EncoderBlock):
    @torch.compiler.nested_compile_region
    def forward(self, *arguments: Any, **options: Any) -> Any:
        return super().forward(*arguments, **options)


class _DecoderRegion(Block):
    @torch.compiler.nested_compile_region
    def forward(self, *arguments: Any, **options: Any) -> Any:
        return super().forward(*arguments, **options)


Change = Callable[[Step], None]


def as_it_is(step: Step) -> None:
    """Changes nothing: the candidate is another way to compile."""


def _become(kind: type[nn.Module], *, where: str = "", old: type[nn.Module] | None = None) -> Change:
    """Returns a change that gives modules another class: those of class `old` under names that hold `where`."""

    def change(step: Step) -> None:
        found = [
            module for name, module in step.named_modules() if where in name and type(module) is (old or kind.__base__)
        ]
        assert found, f"nothing becomes {kind.__name__}"
        for module in found:
            module.__class__ = kind

    return change


def _residual(step: Step) -> None:
    for blocks in _stacks(step):
        blocks[0].register_forward_pre_hook(lambda block, given: (given[0].bfloat16(), *given[1:]))


def _fused(step: Step) -> None:
    from gpu_fused import fuse  # which needs Triton

    fuse(step)


def _gelu(step: Step) -> None:
    from gpu_gelu import change

    change(step)


def _regions(step: Step) -> None:
    _become(_EncoderRegion)(step)
    _become(_DecoderRegion)(step)


def compile_blocks(step: Step) -> None:
    """Compiles each block by itself, which is done once per stack, and nothing else."""
    for blocks in _stacks(step):
        for block in blocks:
            block.compile(dynamic=False)


def _stacks(step: Step) -> list[Any]:
    objective: Any = step.objective
    return [objective.backbone.blocks, objective.decoder.blocks]


@dataclass(frozen=True, eq=False)
class Model:
    """What a candidate is tried on: a method on a backbone, as it is on a GPU."""

    method: str
    backbone: Mapping[str, Any]
    objective: Mapping[str, Any]
    size: int
    batch: int


# As wide as a ViT-B and a third as deep, so that it is compiled in a third of the time. What is done once per step (the
# embedding, the last block of the decoder) weighs more in it than in a whole ViT-B, for which a row says so.
_SHORT = {"name": None, "width": 768, "depth": 4, "heads": 12, "patch": 16}
MAE = Model("mae", _SHORT, {"decoder": {"depth": 2}}, 224, 256)
SIMMIM = Model("simmim", _SHORT, {}, 224, 256)
_TINY_DECODER = {"width": 192, "depth": 1, "heads": 3}
CIFAR = Model(
    "mae", {"name": None, "width": 192, "depth": 12, "heads": 3, "patch": 4}, {"decoder": _TINY_DECODER}, 32, 1024
)


@functools.cache
def whole(method: str, size: str) -> Model:
    """Returns a model in full, for which less is measured and as much foretold."""
    return Model(method, {"name": f"vit_{size}_patch16_224"}, {}, 224, 256)


@dataclass(frozen=True)
class Candidate:
    """A way to compute a step, and what is foretold of it before it is measured."""

    what: str
    foretold: Callable[[Shape], float]  # the change of a step's time, relative
    change: Change = as_it_is
    model: Model = MAE
    blocks_only: bool = False  # each block is compiled, and not the step
    options: Mapping[str, Any] = field(default_factory=dict)  # of torch.compile, for inductor
    further: tuple[float, float] = (1e-3, 2e-3)  # from float32 than 1.5 times the product: loss, gradient
    starts: bool = False  # the time of the first step is of interest too: the product's is compiled anew beside it
    seconds: int = 180  # until it is compiled


def _by(**ways: Any) -> Callable[[Shape], float]:
    """Returns what the FLOPs and bytes of tools/roofline.py foretell."""
    return lambda shape: expected(shape, Ways(**ways)) / expected(shape) - 1


def _of_attention(share: float) -> Callable[[Shape], float]:
    """Returns the change of a step whose attention takes this much longer, relative."""

    def foretold(shape: Shape) -> float:
        attention = sum(part.expected(shape.gpu) for part in parts(shape) if part.kind == "attention")
        return share * attention / expected(shape)

    return foretold


_KERNELS_PER_BLOCK, _LAUNCH = 40, 4e-6  # forward and backward; seconds of the host


def _without_launches(shape: Shape) -> float:
    """Returns the change of a step for which the host no longer starts kernels one by one."""
    blocks = shape.encoder.depth + (shape.decoder.depth if shape.decoder else 0)
    on_device, on_host = expected(shape), (blocks + 2) * _KERNELS_PER_BLOCK * _LAUNCH
    return on_device / max(on_device, on_host) - 1


def _unfused_pixels(shape: Shape) -> float:
    """Returns the change of a step in which pixels, targets and loss are computed by one kernel per operation."""
    return 3 * next(parts(shape)).expected(shape.gpu) / expected(shape)


CANDIDATES = {
    "visible": Candidate("MAE embeds the visible patches only", _by(visible=True), _become(_Visible)),
    "hidden": Candidate(
        "the decoder's last block and head work for hidden patches only", _by(hidden=True), _become(_Hidden)
    ),
    "residual": Candidate(
        "the residual stream in bf16", _by(residual=2), _residual, further=(2e-3, 1e-2)
    ),
    "fused": Candidate("a residual sum and the norm behind it in one kernel", _by(fused=True), _fused),
    "gelu": Candidate(
        "GELU's backward pass adds up the gradient of the bias before it", _by(gelu=True), _gelu
    ),
    "flash": Candidate("attention by flash alone", _of_attention(0.4), _become(_Flash, old=Attention)),
    "cudnn": Candidate("attention by cuDNN alone", _of_attention(0), _become(_Cudnn, old=Attention)),
    "efficient": Candidate(
        "attention by the efficient kernel alone", _of_attention(1), _become(_Efficient, old=Attention)
    ),
    "fp8": Candidate(
        "the products of the blocks in float8", _by(fp8=True), _become(_Float8Linear, where="blocks."),
        further=(1e-2, 1.5e-1),
    ),
    "epilogue": Candidate(
        "GELU in the epilogue of a product: Triton's products beside cuBLAS's, the faster taken", _by(epilogue=True),
        options={
            "max_autotune_gemm": True, "max_autotune_gemm_backends": "ATEN,TRITON", "triton.cudagraphs": False,
            "max_autotune_conv_backends": "ATEN", "epilogue_fusion": True,
        },
        starts=True, seconds=300,
    ),
    "blocks": Candidate(
        "each block compiled, one graph for all of a stack", _unfused_pixels, blocks_only=True, starts=True
    ),
    "region": Candidate(
        "the whole step compiled, its blocks once (nested_compile_region)", lambda shape: 0.0, _regions, starts=True
    ),
    "graphs": Candidate(
        "CUDA graphs, for a ViT-Ti on 32 x 32", _without_launches, model=CIFAR, options={"triton.cudagraphs": True}
    ),
    "linear": Candidate(
        "SimMIM embeds patches by a linear layer", _by(linear=True), _become(_LinearPatches), SIMMIM
    ),
    "flex": Candidate(
        "SimMIM's relative bias by FlexAttention", _by(flex=True), _become(_Flex, where="blocks."), SIMMIM
    ),
}  # fmt: skip
