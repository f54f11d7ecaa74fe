"""The parts that timm's ViT lacks: depth dropped by key, norms after residuals, keys without bias, relative biases."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import RectBivariateSpline
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from mrp.batch import Batch
from mrp.build import build_step
from mrp.config import ConfigError
from mrp.interop.traits import Traits
from mrp.models import blocks, masking, named, positions, vit
from tests.objectives.test_every_objective import make_run


class Encoder(nn.Module):
    """What is wrapped as a whole, as the training step is."""

    def __init__(self, model: vit.Backbone) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return vit.encode(self.model, vit.embed(self.model, images)).tokens


SMALL = {"width": 32, "depth": 2, "heads": 4, "patch": 4}


def build(size: tuple[int, int] = (16, 16), **options: Any) -> vit.Backbone:
    return vit.build(vit.Config.model_validate(SMALL | options), size, 3)


def test_branches_are_skipped_by_sample_whatever_else_is_in_the_batch() -> None:
    keys = torch.arange(5000) * 31
    factors = blocks.StochasticDepth(0.4, depth=3)(keys)
    assert factors.shape == (3, 2, 5000)
    assert torch.equal(factors[:, :, 70:90], blocks.StochasticDepth(0.4, depth=3)(keys[70:90]))
    assert factors[2].unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert (factors[0] == 1).all()
    assert factors.mean(2).flatten().tolist() == pytest.approx([1] * 6, abs=0.04)


def test_layers_and_branches_are_skipped_independently() -> None:
    keys = torch.arange(20_000)
    kept = blocks.StochasticDepth(0.5, depth=3)(keys)[1:].flatten(0, 1) > 0
    mask = masking.random_mask(keys, 4, 2, 7)[:, 1]  # nor do they follow the mask
    assert (torch.corrcoef(torch.stack([*kept, mask]).float()) - torch.eye(5)).abs().max() < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_factor_of_a_branch_is_that_of_the_plain_formula_bit_for_bit(dtype: torch.dtype) -> None:
    keys = torch.arange(500) * 977
    factors = blocks.StochasticDepth(0.3, depth=12)(keys).to(dtype)
    for layer, rate in enumerate(torch.linspace(0, 0.3, 12).tolist()):
        for branch in (0, 1):
            kept = masking.fold(keys, 0x70A7, layer, branch) >= int(rate * 2**32)
            assert torch.equal(factors[layer, branch], kept.to(dtype) / (1 - rate))


def test_nothing_is_skipped_in_evaluation_or_without_keys() -> None:
    model, images, keys = build(drop_path=0.9), torch.randn(8, 3, 16, 16), torch.arange(8)
    whole = vit.encode(model, vit.embed(model, images)).tokens
    assert not torch.equal(vit.encode(model, vit.embed(model, images), keys=keys).tokens, whole)
    model.blocks.eval()  # a frozen block, in a backbone that trains
    assert torch.equal(vit.encode(model, vit.embed(model, images), keys=keys).tokens, whole)
    assert torch.equal(vit.encode(model.eval(), vit.embed(model, images), keys=keys).tokens, whole)


@pytest.mark.parametrize("name", [None, "vit_tiny_patch16_224"])
def test_depth_is_skipped_at_timms_rates(name: str | None) -> None:
    options = SMALL | {"depth": 5} if name is None else {"name": name}
    ours = vit.build(vit.Config.model_validate(options | {"drop_path": 0.3}), (32, 32), 3)
    theirs = timm.create_model("vit_tiny_patch16_224", drop_path_rate=0.3, depth=len(ours.blocks))
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in theirs.blocks]
    assert (1 - 1 / ours.stochastic_depth.scales).flatten().tolist() == pytest.approx(rates, abs=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's, while it compiles
@pytest.mark.parametrize("options", [{}, {"relative_bias": "per_block"}, {"norm": "post"}])
def test_blocks_that_are_compiled_one_by_one_share_one_graph(options: dict[str, Any]) -> None:
    model = build(depth=14, drop_path=0.5, **options)
    images, keys = torch.randn(4, 3, 16, 16), torch.arange(4)
    expected = vit.encode(model, vit.embed(model, images), keys=keys).tokens
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for block in model.blocks:
        block.compile(backend="eager", dynamic=False)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        compiled = vit.encode(model, vit.embed(model, images), keys=keys).tokens
    assert torch.equal(compiled, expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


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


@pytest.mark.parametrize("places", [None, torch.tensor([[0, 5, 11], [2, 3, 4]])], ids=["all", "visible"])
@pytest.mark.parametrize("kind", ["shared", "per_block"])
def test_the_bias_reaches_attention_in_a_layout_that_fused_kernels_take(
    kind: str, places: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, masks, plain = build(relative_bias=kind), [], functional.scaled_dot_product_attention

    def watched(*tensors: torch.Tensor, **options: Any) -> torch.Tensor:
        masks.append(options["attn_mask"])
        return plain(*tensors, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    tokens = vit.embed(model, torch.randn(2, 3, 16, 16))
    vit.encode(model, tokens if places is None else masking.gather_tokens(tokens, places), places)
    assert len(masks) == 2
    assert [mask.stride(-1) for mask in masks] == [1, 1]
    assert all(mask.is_contiguous() for mask in masks)


@pytest.mark.parametrize("kind", ["shared", "per_block"])
def test_a_relative_bias_is_there_where_parameters_are_sharded(kind: str, one_process: DeviceMesh) -> None:
    model, images = build(relative_bias=kind), torch.randn(2, 3, 16, 16)
    for name, parameter in model.named_parameters():
        if "bias_table" in name:
            torch.nn.init.normal_(parameter)
    root = Encoder(model)
    expected = root(images)
    for block in model.blocks:
        fully_shard(block, mesh=one_process)
    fully_shard(root, mesh=one_process)
    assert torch.allclose(root(images), expected)


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


def beits_places(old: int, new: int) -> list[float]:
    """Where BEiT's code puts the offsets of `old` patches among those of `new` ones: a geometric progression."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if (1 - ratio ** (old - 1)) / (1 - ratio) > new - 1 else (ratio, high)
    far = [sum(ratio**power for power in range(steps)) for steps in range(1, old)]
    return [-place for place in reversed(far)] + [0.0, *far]


@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (24, 24)), ((12, 12), (14, 14)), ((14, 14), (7, 7)), ((14, 10), (24, 18))]
)
def test_a_relative_bias_lies_at_another_size_where_beits_code_puts_it(
    old: tuple[int, int], new: tuple[int, int]
) -> None:
    table = torch.randn((2 * old[0] - 1) * (2 * old[1] - 1) + 3, 2)
    moved = positions.resample_table(table, old, new)
    places = [beits_places(before, now) for before, now in zip(old, new, strict=True)]
    for head in range(2):
        values = table[:-3, head].view(2 * old[0] - 1, 2 * old[1] - 1)
        spline = RectBivariateSpline(*places, values.double().numpy(), s=0)
        expected = torch.tensor(spline(*(range(1 - side, side) for side in new)), dtype=torch.float32)
        assert torch.allclose(moved[:-3, head].view_as(expected), expected, atol=1e-5)
    assert torch.equal(moved[-3:], table[-3:])


@pytest.mark.parametrize("new", [(1, 4), (2, 4), (3, 2), (5, 1)])
@pytest.mark.parametrize("old", [(1, 4), (2, 2), (3, 1)])
def test_the_smallest_tables_move_too(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = torch.full(((2 * old[0] - 1) * (2 * old[1] - 1) + 3, 2), 0.7)
    moved = positions.resample_table(table, old, new)
    assert moved.shape == ((2 * new[0] - 1) * (2 * new[1] - 1) + 3, 2)
    assert torch.allclose(moved, torch.tensor(0.7))


def test_a_shared_bias_is_given_to_every_block() -> None:
    shared, own = build(relative_bias="shared"), build(relative_bias="per_block")
    torch.nn.init.normal_(shared.rel_pos_bias.relative_position_bias_table)
    own.load_state_dict(vit.resampled(own, shared.state_dict(), vit.grid(shared)))
    for block in own.blocks:
        assert torch.equal(
            block.rel_pos_bias.relative_position_bias_table, shared.rel_pos_bias.relative_position_bias_table
        )


KINDS = {
    "vit_base_patch14_reg4_dinov2": (True, 4, "token"),
    "vit_little_patch16_reg1_gap_256": (False, 1, "avg"),
    "vit_base_patch16_gap_224": (False, 0, "avg"),
    "beit3_base_patch16_224": (True, 0, "avg"),
    "vit_base_patch16_224": (True, 0, "token"),
    "test_vit": (True, 0, "token"),  # of images of any size
}


@pytest.mark.parametrize("name", KINDS)
def test_a_name_builds_what_it_says(name: str) -> None:
    config = vit.Config(name=name)
    with torch.device("meta"):
        model = vit.build(config, (56, 56) if "patch14" in name else (64, 64), 3)
        tokens = vit.encode(model, vit.embed(model, torch.empty(2, 3, *model.patch_embed.img_size))).tokens
    assert (model.has_class_token, model.num_reg_tokens, model.global_pool) == KINDS[name]
    assert (config.class_token, config.registers) == KINDS[name][:2]
    assert tokens.shape[1] == model.num_prefix_tokens + 16
    assert vit.pool(model, tokens).shape == (2, model.embed_dim)
    assert vit.Config.model_validate(config.model_dump()) == config


def test_a_section_may_differ_from_its_name() -> None:
    config = vit.Config(name="vit_base_patch14_reg4_dinov2", registers=0, class_token=False)
    with torch.device("meta"):
        model = vit.build(config, (28, 28), 3)
    assert (model.num_prefix_tokens, model.global_pool) == (0, "avg")


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_xp_224", "vit_pwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256"]
)
def test_blocks_of_another_kind_work_under_every_method_that_only_asks_for_tokens(name: str) -> None:
    backbone = {"name": name, "width": None, "depth": None, "heads": None, "patch": None}
    run = make_run("mae", {"size": 64}, backbone)
    with torch.device("meta"):
        step = build_step(run)
        step.objective(Batch(torch.empty(2, 3, 64, 64), torch.arange(2))).loss.backward()
    assert [key for key, weight in step.named_parameters() if weight.requires_grad and weight.grad is None] == []


def test_a_name_whose_pooling_no_method_trains_is_refused() -> None:
    with pytest.raises(ValueError, match="vit_base_patch16_siglip_224 pools its tokens by attention"):
        vit.Config(name="vit_base_patch16_siglip_224")


@pytest.mark.parametrize(
    "options", [{"norm": "post"}, {"drop_path": 0.1}, {"relative_bias": "shared"}, {"init": "truncated"}]
)
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
    named.look_up.cache_clear()
    torch.manual_seed(0)
    named.look_up("vit_tiny_patch16_224")
    first = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), first)


def test_a_model_of_another_module_of_timms_is_named() -> None:
    with pytest.raises(ValueError, match=r"'samvit_base_patch16': timm has it, but only models of its modules"):
        vit.Config(name="samvit_base_patch16")


@pytest.mark.parametrize("name", ["vit_small_patch16_18x2_224", "vit_pwee_patch16_reg1_gap_256"])
def test_blocks_of_another_kind_are_known_by_their_sizes(name: str) -> None:
    with torch.device("meta"):
        model = vit.build(vit.Config(name=name), (32, 32), 3)
    traits = Traits.of(model)
    assert traits.heads == vit.num_heads(model) == (6 if "18x2" in name else 4)
    assert not traits.exact_gelu, "which no other project computes as these do"
