"""The initial weights that the official recipes start from, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mrp.config import Tree, build
from mrp.models import vit
from mrp.models.decoder import Convolution, ConvolutionConfig, CrossAttention, CrossConfig, Predictor, PredictorConfig
from mrp.objectives import OBJECTIVES

CUT = 0.5396  # the deviation of normal numbers of which those beyond one deviation are left out


def deviation(tensor: Tensor) -> float:
    return float(tensor.detach().std())


def backbone(init: str, **options: object) -> vit.Backbone:
    torch.manual_seed(0)
    config = build(vit.Config, Tree({"width": 256, "depth": 3, "heads": 4, "patch": 8, "init": init, **options}, {}))
    return vit.build(config, (32, 32), 3)


def objective(name: str, model: vit.Backbone) -> Any:
    part: Any = OBJECTIVES.find(name)
    return part.Objective(part.Config(**part.Config.small), model)


def weights(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Yields the matrices of all blocks."""
    return ((name, p) for name, p in module.named_parameters() if "blocks." in name and p.ndim > 1)


def test_mae_starts_from_xaviers_weights() -> None:
    model = backbone("xavier")
    for name, weight in weights(model):
        assert deviation(weight) == pytest.approx((2 / sum(weight.shape)) ** 0.5, rel=0.02), name
    patches = model.patch_embed.proj.weight
    assert deviation(patches) == pytest.approx((2 / (256 + 3 * 64)) ** 0.5, rel=0.02)
    assert model.patch_embed.proj.bias.any(), "MAE leaves this bias as torch draws it"
    assert deviation(model.cls_token) == pytest.approx(0.02, rel=0.15)


def test_beits_weights_end_at_one_deviation_and_shrink_where_a_block_adds() -> None:
    model = backbone("truncated", positions="learned")
    for layer, block in enumerate(model.blocks, start=1):
        for weight in (block.attn.qkv.weight, block.mlp.fc1.weight):
            assert deviation(weight) == pytest.approx(0.02 * CUT, rel=0.02)
            assert float(weight.detach().abs().max()) <= 0.02
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert deviation(weight) == pytest.approx(0.02 * CUT / (2 * layer) ** 0.5, rel=0.03)
        assert not block.mlp.fc1.bias.any()
    assert deviation(model.patch_embed.proj.weight) == pytest.approx(0.02 * CUT, rel=0.02)
    assert not model.patch_embed.proj.bias.any()
    for token in (model.cls_token, model.pos_embed):
        assert float(token.detach().abs().max()) <= 0.02
        assert token.any()


def test_normal_weights_are_alike_in_every_block() -> None:
    model = backbone("normal")
    for name, weight in [*weights(model), ("patches", model.patch_embed.proj.weight)]:
        assert deviation(weight) == pytest.approx(0.02, rel=0.02), name
    assert not model.patch_embed.proj.bias.any()


def test_data2vec_2s_weights_are_normal_but_for_patches_and_tokens() -> None:
    model = backbone("bert")
    for name, weight in weights(model):
        assert deviation(weight) == pytest.approx(0.02, rel=0.02), name
    assert deviation(model.patch_embed.proj.weight) == pytest.approx((2 / (256 + 3 * 64)) ** 0.5, rel=0.02)
    assert deviation(model.cls_token) == pytest.approx(1, rel=0.15)


def test_heads_and_decoders_start_as_in_the_released_code() -> None:
    def uniform(weight: Tensor, fan_in: int) -> None:  # torch's own draw
        assert deviation(weight) == pytest.approx((3 * fan_in) ** -0.5, rel=0.05)

    model = backbone("truncated", positions="none")
    simmim, data2vec = objective("simmim", model), objective("data2vec", model)
    uniform(simmim.head.weight, 256)
    assert simmim.head.bias.any()
    assert deviation(data2vec.head.weight) == pytest.approx(0.02 * CUT, rel=0.02)
    for method in (simmim, data2vec):
        assert float(method.mask_token.detach().abs().max()) <= 0.02

    maskfeat = objective("maskfeat", backbone("normal", positions="learned"))
    assert deviation(maskfeat.head.weight) == pytest.approx(0.02, rel=0.02)

    convolution = Convolution(ConvolutionConfig(width=256, depth=2), 256, (4, 4), 1)
    uniform(convolution.layers[0].weight, 9 * 256 // 16)
    uniform(convolution.head.weight, 256)

    cross = CrossAttention(CrossConfig(depth=40), 64, 39, (4, 4), 8, 1e-6)
    assert deviation(cross.map_weights) == pytest.approx((2 / (40 + 40)) ** 0.5, rel=0.05)

    predictor = Predictor(PredictorConfig(width=192, depth=3), 256, 4, (4, 4), 0, 1e-6)
    for name, weight in weights(predictor):
        assert deviation(weight) == pytest.approx(0.02, rel=0.02), name


@pytest.mark.parametrize("name", ["classify", "capi"])
def test_no_weight_can_be_a_thousand_deviations_off(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Up to torch 2.11 at least, one in some thirty million numbers of `trunc_normal_` is the bound itself, which is 2.
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda *_, **__: pytest.fail("its bounds are far away"))
    objective(name, backbone("truncated"))
