"""The parts that timm's ViT lacks: depth dropped by key, norms after residuals, keys without bias, relative biases."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from mrp.config import ConfigError
from mrp.models import blocks, masking, positions, vit

SMALL = {"width": 32, "depth": 2, "heads": 4, "patch": 4}


def build(size: tuple[int, int] = (16, 16), **options: Any) -> vit.VisionTransformer:
    return vit.build(vit.Config.model_validate(SMALL | options), size, 3)


def test_paths_are_dropped_by_sample_whatever_else_is_in_the_batch() -> None:
    path = blocks.DropPath(0.4, branch=1)
    tokens, keys = torch.ones(5000, 2, 3), torch.arange(5000) * 31
    dropped = path(tokens, keys)
    assert torch.equal(dropped[70:90], path(tokens[70:90], keys[70:90]))
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert float(dropped.mean()) == pytest.approx(1, abs=0.04)
    assert torch.equal(dropped.amax((1, 2)), dropped.amin((1, 2)))  # a sample's branch as a whole


def test_layers_and_branches_drop_independently() -> None:
    keys = torch.arange(20_000)
    kept = []
    for layer, branch in ((0, 0), (0, 1), (1, 0), (7, 1)):
        path = blocks.DropPath(0.5, branch)
        path.layer = layer
        kept.append(path(torch.ones(20_000, 1, 1), keys).flatten())
    kept.append(masking.random_mask(keys, 4, 2, 7)[:, 1].float())  # nor do they follow the mask
    assert (torch.corrcoef(torch.stack(kept)) - torch.eye(5)).abs().max() < 0.03


def test_paths_are_kept_in_evaluation_and_without_keys() -> None:
    path, tokens = blocks.DropPath(0.9, branch=0), torch.randn(8, 2, 3)
    assert path(tokens, None) is tokens
    assert path.eval()(tokens, torch.arange(8)) is tokens


@pytest.mark.parametrize("name", [None, "vit_tiny_patch16_224"])
def test_depth_is_dropped_at_timms_rates(name: str | None) -> None:
    options = SMALL | {"depth": 5} if name is None else {"name": name}
    ours = vit.build(vit.Config.model_validate(options | {"drop_path": 0.3}), (32, 32), 3)
    theirs = timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.3, depth=len(ours.blocks))
    for number, (block, reference) in enumerate(zip(ours.blocks, theirs.blocks, strict=True)):
        assert block.drop_path1.rate == pytest.approx(getattr(reference.drop_path1, "drop_prob", 0.0))
        assert (block.drop_path2.layer, block.drop_path2.branch) == (number, 1)


def test_each_view_of_the_batch_meets_its_own_depth_when_activations_are_recomputed() -> None:
    model = build(drop_path=0.5, relative_bias="shared")
    images, keys = torch.randn(4, 3, 16, 16), torch.arange(4)
    gradients = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        vit.encode(model, vit.embed(model, images), keys=keys).tokens.square().sum().backward()
        gradients.append(model.rel_pos_bias.relative_position_bias_table.grad.clone())
    assert torch.equal(*gradients)


def test_post_norm_blocks_end_in_their_norm() -> None:
    model = build(norm="post")
    images = torch.randn(2, 3, 16, 16)
    encoded = vit.encode(model, vit.embed(model, images), layers="added")
    assert torch.allclose(encoded.tokens.mean(-1), torch.zeros(2, 17), atol=1e-5)
    assert torch.equal(encoded.tokens, model.forward_features(images))
    assert [layer.shape for layer in encoded.layers] == [(2, 17, 32)] * 2
    last = model.blocks[1]
    before = vit.encode(model, vit.embed(model, images), layers="output").layers[0]
    attended = last.norm1(before + last.attn(before))
    assert torch.allclose(encoded.layers[1], last.mlp(attended), atol=1e-5)
    assert torch.allclose(encoded.tokens, last.norm2(attended + last.mlp(attended)), atol=1e-5)


def test_what_a_pre_norm_block_adds_is_the_difference() -> None:
    model = build(layer_scale=0.5)
    tokens = torch.randn(2, 17, 32)
    out, added = model.blocks[0](tokens, added=True)
    attended = tokens + model.blocks[0].ls1(model.blocks[0].attn(model.blocks[0].norm1(tokens)))
    assert torch.allclose(out, attended + added, atol=1e-6)


def test_keys_have_no_bias_and_never_get_one() -> None:
    model = build(qkv_bias="query_value")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        vit.encode(model, vit.embed(model, torch.randn(4, 3, 16, 16))).tokens.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    query, key, value = model.blocks[0].attn.qkv.bias.detach().chunk(3)
    assert not key.any()
    assert query.all()
    assert value.all()


@given(st.tuples(st.integers(1, 6), st.integers(1, 6)), st.integers(0, 3), st.data())
def test_a_relative_bias_is_of_the_offset(grid: tuple[int, int], prefix: int, data: st.DataObject) -> None:
    bias = positions.RelativeBias(grid, prefix, 2)
    num_offsets = (2 * grid[0] - 1) * (2 * grid[1] - 1)
    with torch.no_grad():
        bias.relative_position_bias_table.copy_(torch.arange(num_offsets + 3.0)[:, None].expand(-1, 2))
    table = bias()[0, 0]
    patch = [divmod(data.draw(st.integers(0, grid[0] * grid[1] - 1)), grid[1]) for _ in range(2)]
    (row, column), (other_row, other_column) = patch
    offset = (row - other_row + grid[0] - 1) * (2 * grid[1] - 1) + column - other_column + grid[1] - 1
    first, second = (prefix + r * grid[1] + c for r, c in patch)
    assert table[first, second] == offset
    if prefix:
        assert table[0, prefix] == num_offsets
        assert table[prefix, 0] == num_offsets + 1
        assert table[0, prefix - 1] == num_offsets + 2


def test_a_relative_bias_between_visible_patches_is_the_rows_and_columns_of_the_whole() -> None:
    bias = positions.RelativeBias((3, 4), 2, 2)
    torch.nn.init.normal_(bias.relative_position_bias_table)
    places = torch.tensor([[0, 5, 11], [2, 3, 4]])
    some, whole = bias(places), bias()
    for row, chosen in enumerate(places):
        index = torch.cat([torch.arange(2), chosen + 2])
        assert torch.equal(some[row], whole[0][:, index][:, :, index])
    assert torch.equal(bias(torch.arange(12)[None]), whole)


@pytest.mark.parametrize("kind", ["shared", "per_block"])
def test_a_relative_bias_enters_every_block(kind: str) -> None:
    model = build(relative_bias=kind)
    names = [name for name, _ in model.named_parameters() if "rel_pos_bias" in name]
    assert len(names) == (1 if kind == "shared" else 2)
    images = torch.randn(2, 3, 16, 16)
    before = vit.encode(model, vit.embed(model, images)).tokens
    for name in names:
        torch.nn.init.normal_(model.get_parameter(name))
        after = vit.encode(model, vit.embed(model, images)).tokens
        assert not torch.allclose(before, after, atol=1e-4)
        before = after


def test_a_relative_bias_moves_to_another_grid() -> None:
    small, large = build((16, 24), relative_bias="per_block"), build((32, 16), relative_bias="per_block")
    for block in small.blocks:
        table = block.rel_pos_bias.relative_position_bias_table.data
        offsets = torch.arange(-5.0, 6).repeat(7)  # the offset between columns, whatever that between rows
        table.copy_(torch.cat([offsets, torch.tensor([100.0, 200, 300])])[:, None].expand_as(table))
    large.load_state_dict(vit.resampled(large, small.state_dict(), vit.grid(small)))
    moved = large.blocks[1].rel_pos_bias.relative_position_bias_table.detach()
    assert torch.equal(moved[-3:, 0], torch.tensor([100.0, 200, 300]))
    table = moved[:-3, 0].view(15, 7)
    assert torch.allclose(table[0], table[9], atol=1e-5)
    assert (table.diff(dim=1) > 0).all()
    assert torch.allclose(table[:, 3], torch.zeros(15), atol=1e-5)


def test_a_shared_bias_is_given_to_every_block() -> None:
    shared, own = build(relative_bias="shared"), build(relative_bias="per_block")
    torch.nn.init.normal_(shared.rel_pos_bias.relative_position_bias_table)
    own.load_state_dict(vit.resampled(own, shared.state_dict(), vit.grid(shared)))
    for block in own.blocks:
        assert torch.equal(
            block.rel_pos_bias.relative_position_bias_table, shared.rel_pos_bias.relative_position_bias_table
        )


@pytest.mark.parametrize("options", [{"norm": "post"}, {"drop_path": 0.1}, {"relative_bias": "shared"}])
def test_a_name_with_blocks_of_its_own_keeps_them(options: dict[str, Any]) -> None:
    name = "vit_small_patch16_18x2_224"
    with torch.device("meta"):
        model = vit.build(vit.Config(name=name), (32, 32), 3)
        assert type(model.blocks[0]).__name__ == "ParallelThingsBlock"
        with pytest.raises(
            ConfigError, match=rf"backbone.{next(iter(options))}: {name} is made of ParallelThingsBlock"
        ):
            vit.build(vit.Config.model_validate({"name": name} | options), (32, 32), 3)


def test_a_name_decides_what_is_not_asked_for() -> None:
    with torch.device("meta"):
        model = vit.build(vit.Config(name="vit_giant_patch14_224"), (28, 28), 3)
        other = vit.build(vit.Config(name="vit_giant_patch14_224", mlp_ratio=2, layer_scale=0.1), (28, 28), 3)
    assert model.blocks[0].mlp.fc1.out_features == 6144
    assert other.blocks[0].mlp.fc1.out_features == 2816
    assert isinstance(other.blocks[0].ls1, timm.layers.LayerScale)


def test_looking_at_a_name_draws_no_random_numbers() -> None:
    vit._own_block.cache_clear()
    torch.manual_seed(0)
    vit._own_block("vit_tiny_patch16_224")
    first = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), first)
