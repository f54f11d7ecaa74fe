"""The backbone: timm's model with timm's names, at any size, with positions that follow it."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from mrp.config import ConfigError
from mrp.models import positions, vit

SMALL = {"width": 32, "depth": 2, "heads": 4, "patch": 4}


def build(size: tuple[int, int] = (16, 16), channels: int = 3, **options: object) -> VisionTransformer:
    return vit.build(vit.Config.model_validate(SMALL | options), size, channels)


@pytest.mark.parametrize("options", [{}, {"positions": "learned"}, {"registers": 3}, {"class_token": False}])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_embed_and_encode_give_timms_own_features(size: tuple[int, int], options: dict[str, object]) -> None:
    model = build(size, **options).eval()
    images = torch.randn(2, 3, *size)
    ours = vit.encode(model, vit.embed(model, images), layers="output")
    assert torch.allclose(ours.tokens, model.forward_features(images), atol=1e-6)
    assert len(ours.layers) == 2
    assert torch.equal(model.norm(ours.layers[-1]), ours.tokens)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224"])
def test_a_named_size_is_timms_and_its_weights_load_into_timms(name: str) -> None:
    ours = vit.build(vit.Config(name=name, positions="learned"), (64, 32), 1)
    theirs = timm.create_model(name, num_classes=0, img_size=(64, 32), in_chans=1)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(1, 1, 64, 32)
    assert torch.allclose(theirs.eval()(images), vit.pool(ours, ours.eval().forward_features(images)), atol=1e-6)


@pytest.mark.parametrize("name", ["vit_large_patch16_224", "vit_huge_patch14_224", "vit_giant_patch14_224"])
def test_the_large_sizes_exist(name: str) -> None:
    with torch.device("meta"):
        model = vit.build(vit.Config(name=name), (224, 224), 3)
    assert sum(parameter.numel() for parameter in model.parameters()) > 3e8


def test_masked_tokens_are_replaced_before_positions_are_added() -> None:
    model = build()
    images, token = torch.randn(2, 3, 16, 16), torch.randn(1, 1, 32)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 3] = True
    plain, masked = vit.embed(model, images), vit.embed(model, images, token, mask)
    assert torch.equal(masked[~mask], plain[~mask])
    assert torch.allclose(masked[0, 3], token[0, 0] + model.pos_embed[0, 4])


def test_fixed_positions_are_not_trained_and_learned_ones_are() -> None:
    assert not build().pos_embed.requires_grad
    assert build(positions="learned").pos_embed.requires_grad


def test_rectangular_positions_keep_rows_and_columns_apart() -> None:
    table = positions.sincos(32, (2, 5))[0].view(2, 5, 32)
    assert torch.equal(table[0, :, :16], table[1, :, :16])  # the first half is the column alone
    assert torch.equal(table[:, 0, 16:], table[:, 3, 16:])  # the second the row
    assert not torch.equal(table[0, 0], table[0, 1])


def test_weights_move_to_another_size() -> None:
    small, large = build(), build((32, 24))
    large.load_state_dict(vit.resampled(large, small.state_dict(), vit.grid(small)), strict=True)
    assert torch.equal(large.blocks[1].mlp.fc1.weight, small.blocks[1].mlp.fc1.weight)
    assert torch.equal(large.pos_embed[:, 0], positions.sincos(32, (8, 6), 1)[:, 0])
    moved = large.pos_embed[0, 1:].view(8, 6, 32)  # fixed positions are interpolated, as the weights have learned them
    assert torch.allclose(moved[0, :, :16], moved[7, :, :16], atol=1e-5)
    assert not torch.equal(large.pos_embed, positions.sincos(32, (8, 6), 1))


def test_learned_positions_are_resampled_along_the_right_axes() -> None:
    small, large = build(positions="learned"), build((32, 24), positions="learned")
    state = small.state_dict()
    state["pos_embed"][0, 1:] = torch.arange(4.0).repeat(4)[:, None]  # the column's number, in every row
    moved = vit.resampled(large, state, vit.grid(small))["pos_embed"]
    table = moved[0, 1:].view(8, 6, 32)
    assert torch.equal(moved[:, 0], state["pos_embed"][:, 0])
    assert torch.allclose(table[0], table[7], atol=1e-5)
    assert (table.diff(dim=1) > 0).all()


def test_recomputing_activations_changes_nothing() -> None:
    model, images = build(), torch.randn(2, 3, 16, 16)
    gradients = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        vit.encode(model, vit.embed(model, images)).tokens.square().sum().backward()
        gradients.append(model.blocks[0].attn.qkv.weight.grad.clone())
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"patch": 5}, (16, 16), "not a multiple of the patch 5x5; the nearest that is: 15x15"),
        ({"width": 30, "heads": 3}, (16, 16), "multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, object], size: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(size, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vit_bose_patch16_224"}, "did you mean 'vit_base_patch16_224'"),
        ({"width": 32}, "give a name .* or also: depth, heads, patch"),
        ({"name": "vit_base_patch16_224", "depth": 3}, "already says its depth"),
        (SMALL | {"heads": 5}, "not a multiple of heads"),
    ],
)
def test_backbones_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vit.Config.model_validate(options)
