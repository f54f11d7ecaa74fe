"""A backbone as timm's own model: the same features, or a word on what timm lacks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.models.beit import Beit

from mrp.config import ConfigError
from mrp.interop import timm_export
from mrp.models import vit
from mrp.objectives import classify

SMALL = {"width": 32, "depth": 2, "heads": 4, "patch": 4}


def shaken(model: vit.Backbone) -> vit.VisionTransformer:
    """With weights of which none is zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def build(size: tuple[int, int] = (16, 24), **options: Any) -> vit.Backbone:
    return shaken(vit.build(vit.Config.model_validate(SMALL | options), size, 3))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"registers": 2, "layer_scale": 0.1, "positions": "learned"},
        {"class_token": False, "drop_path": 0.3},
        {"qkv_bias": "query_value", "positions": "none", "mlp_ratio": 2},
        {"relative_bias": "shared", "layer_scale": 0.1, "positions": "none", "qkv_bias": "query_value"},
        {"relative_bias": "shared", "positions": "learned"},
        {"relative_bias": "per_block", "layer_scale": 1e-4, "attention_dropout": 0.1},
    ],
)
def test_it_computes_the_same(options: dict[str, Any]) -> None:
    model = build(**options)
    theirs = timm_export.build(model)[0]
    assert isinstance(theirs, Beit) == ("relative_bias" in options)
    images = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        ours = vit.pool(model, vit.encode(model, vit.embed(model, images)).tokens)
        assert torch.allclose(theirs(images), ours, atol=1e-5)
        assert torch.allclose(model(images), ours, atol=1e-5)  # by timm's own functions, which mrp does not call
        last = model.forward_intermediates(images, norm=True, output_fmt="NLC", intermediates_only=True)[-1]
        assert torch.allclose(last, model.forward_features(images)[:, model.num_prefix_tokens :], atol=1e-5)
        assert torch.equal(copy.deepcopy(model)(images), model(images))


@pytest.mark.parametrize("bias", ["none", "shared"])
def test_a_norm_after_pooling_goes_with_it(bias: str) -> None:
    model = vit.build(vit.Config.model_validate(SMALL | {"relative_bias": bias}), (16, 24), 3)
    shaken(classify.Objective(classify.Config(classes=3, pool="mean"), model).backbone)
    images = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        ours = vit.pool(model, vit.encode(model, vit.embed(model, images)).tokens)
        assert torch.allclose(timm_export.build(model)[0](images), ours, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relative_bias": "shared", "registers": 1}, "backbone.registers: 1 with a relative_bias"),
        ({"relative_bias": "per_block", "class_token": False}, "backbone.class_token: false with a relative_bias"),
    ],
)
def test_what_timm_lacks_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        timm_export.build(build(**options))


def test_parts_of_a_named_model_that_are_not_known_are_refused() -> None:
    model = vit.build(vit.Config(name="vit_small_patch16_224", patch=8, drop_path=0.1), (16, 16), 3)
    timm_export.build(model)[0]
    model.norm_pre = torch.nn.LayerNorm(384, eps=1e-6)
    with pytest.raises(ConfigError, match=r"norm_pre"):
        timm_export.build(model)[0]
