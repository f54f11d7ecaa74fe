"""Models of timm's module `eva`: what timm computes, on all patches or on the kept ones alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models import create_model
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from mrp.batch import Batch
from mrp.build import build_step, measure_cost
from mrp.check.objectives import it_is_one_graph
from mrp.config import ConfigError
from mrp.models import attention, eva, masking, vit
from mrp.optim.groups import groups
from tests.models.test_blocks import Encoder
from tests.objectives.test_every_objective import make_run

SIZE: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 0, "dynamic_img_size": False}
NAMES: dict[str, dict[str, Any]] = {
    "eva02_tiny_patch14_224": {"patch_size": 4},  # learned positions beside rotary ones, a gated MLP
    "eva02_base_patch16_clip_224": {"patch_size": 4},  # norms inside attention and MLP; queries and keys apart
    "eva_giant_patch14_224": {"patch_size": 4, "init_values": 0.1},  # no rotary positions
    "eva02_enormous_patch14_clip_224": {"patch_size": 4},  # norms at the end of branches
    "vit_tiny_patch16_dinov3_qkvb": {"patch_size": 4},  # registers, halves rotated
    "vit_small_patch16_rope_mixed_ape_224": {"patch_size": 4},  # learned frequencies per block
    "vit_medium_patch16_rope_reg1_gap_256": {"patch_size": 4},  # no class token
    "vit_pe_spatial_tiny_patch16_512": {"patch_size": 4},  # a norm before the blocks, and none after them
    "vit_base_patch16_sapiens2": {"patch_size": 4, "num_kv_heads": 1},  # heads that share keys
}
ROTARY = [name for name in NAMES if name not in {"eva_giant_patch14_224", "eva02_enormous_patch14_clip_224"}]


def build(name: str, size: tuple[int, int] = (16, 24), **options: Any) -> eva.Eva:
    """Returns a tiny model in which no weight is zero."""
    torch.manual_seed(0)
    arguments = {"img_size": size} | SIZE | NAMES[name] | options
    model = create_model(name, **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return eva.adopted(model, name, arguments)


def seen(model: eva.Eva, images: torch.Tensor, places: torch.Tensor | None = None, **options: Any) -> vit.Encoded:
    tokens = vit.embed(model, images)
    return vit.encode(model, tokens if places is None else masking.gather_tokens(tokens, places), places, **options)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_timm_computes(name: str) -> None:
    model, images = build(name).eval(), torch.randn(2, 3, 16, 24)
    theirs = create_model(name, img_size=(16, 24), **SIZE | NAMES[name]).eval()
    theirs.load_state_dict(model.state_dict())
    ours = seen(model, images, layers="output")
    assert torch.allclose(ours.tokens, theirs.forward_features(images), atol=1e-5)
    assert torch.equal(model.forward_features(images), theirs.forward_features(images))
    assert torch.equal(model.norm(ours.layers[-1]), ours.tokens)
    assert torch.allclose(vit.pool(model, ours.tokens), theirs(images), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_kept_patches_are_turned_by_their_places(name: str) -> None:
    """What timm computes of all patches where nothing may look at the dropped ones."""
    model, images = build(name).eval(), torch.randn(2, 3, 16, 24)
    places = torch.tensor([[0, 5, 23], [2, 3, 11]])
    ours = seen(model, images, places).tokens
    prefix = torch.arange(model.num_prefix_tokens)
    for image, kept, expected in zip(images, places, ours, strict=True):
        index = torch.cat([prefix, kept + model.num_prefix_tokens])
        may_look = torch.zeros(model.num_prefix_tokens + 24, dtype=torch.bool)
        may_look[index] = True
        theirs = model.forward_features(image[None], attn_mask=may_look.expand(1, 1, len(may_look), -1))
        assert torch.allclose(theirs[0, index], expected, atol=1e-5)


@pytest.mark.parametrize("name", ROTARY)
def test_the_same_patches_elsewhere_are_seen_otherwise(name: str) -> None:
    model, images = build(name).eval(), torch.randn(1, 3, 16, 24)
    tokens = vit.embed(model, images)[:, :3]
    here, there = (vit.encode(model, tokens, torch.tensor([where])).tokens for where in ([0, 1, 2], [0, 7, 20]))
    assert not torch.allclose(here, there, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_stochastic_depth_is_drawn_by_key_and_recomputing_changes_nothing(name: str) -> None:
    model, images, places = build(name), torch.randn(4, 3, 16, 24), torch.tensor([[0, 5, 23, 11]] * 4)
    model.stochastic_depth = vit.StochasticDepth(0.5, 2)
    keys = torch.arange(4) * 7919
    whole = seen(model, images, places).tokens
    skipped = seen(model, images, places, keys=keys).tokens
    assert not torch.allclose(skipped, whole)
    one = seen(model, images[2:3], places[2:3], keys=keys[2:3]).tokens
    assert torch.allclose(one, skipped[2:3], atol=1e-4)
    gradients = []
    for recompute in (False, True):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        seen(model, images, places, keys=keys).tokens.square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize("name", NAMES)
def test_what_the_mlp_adds_is_the_last_difference(name: str) -> None:
    model, images = build(name).eval(), torch.randn(2, 3, 16, 24)
    added = seen(model, images, layers="added").layers
    middle: list[torch.Tensor] = []
    block: Any = model.blocks[-1]
    after = block.norm2 if isinstance(block, eva.EvaPostNormBlock) else block.mlp
    after.register_forward_hook(lambda _, given, output: middle.append(output))
    seen(model, images)
    scale = getattr(block, "gamma_2", None)
    assert torch.allclose(added[-1], middle[0] if scale is None else scale * middle[0], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_what_the_fused_kernel_was_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = build(name).eval(), torch.randn(2, 3, 16, 24)
    given, plain = [], functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        given.append((query, key))
        return plain(query, key, value, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    shares = attention.to_patches(model, images, 1)
    query, key = given[1]
    prefix = model.num_prefix_tokens
    query = query[:, :, :1] if model.has_class_token else query[:, :, prefix:].mean(2, keepdim=True)
    expected = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
    assert torch.allclose(shares, expected[:, :, 0, prefix:], atol=1e-6)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_small_patch16_rope_mixed_ape_224"])
def test_it_is_the_same_where_parameters_are_sharded(name: str, one_process: DeviceMesh) -> None:
    model, images = build(name), torch.randn(2, 3, 16, 24)
    root = Encoder(model)
    expected = root(images)
    for block in model.blocks:
        fully_shard(block, mesh=one_process)
    fully_shard(root, mesh=one_process)
    assert torch.allclose(root(images), expected)


def test_weights_move_to_another_grid() -> None:
    small, large = (build("vit_small_patch16_rope_mixed_ape_224", size) for size in ((16, 24), (32, 16)))
    large.load_state_dict(vit.resampled(large, small.state_dict(), vit.grid(small)), strict=True)
    assert torch.equal(large.rope.freqs, small.rope.freqs)  # type: ignore[union-attr]


def test_learned_frequencies_do_not_decay_and_learn_as_slowly_as_positions() -> None:
    objective = torch.nn.Module()
    objective.backbone = build("vit_small_patch16_rope_mixed_ape_224")
    found = {name: group for group in groups(objective, 0.1, 0.5) for name in group["param_names"]}
    assert found["backbone.rope.freqs"]["weight_decay"] == 0
    assert found["backbone.pos_embed"]["weight_decay"] == 0.1
    assert found["backbone.rope.freqs"]["lr_scale"] == found["backbone.pos_embed"]["lr_scale"] == 0.125


KINDS = {
    "eva02_tiny_patch14_224": (True, 0, "avg", "learned", 28),
    "vit_tiny_patch16_dinov3_qkvb": (True, 4, "avg", "none", 32),
    "vit_medium_patch16_rope_reg1_gap_256": (False, 1, "avg", "none", 32),
    "vit_base_patch16_sapiens2": (True, 8, "token", "none", 32),
    "vit_small_patch16_rope_mixed_224": (True, 0, "token", "none", 32),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_name_builds_what_it_says(name: str) -> None:
    config = vit.Config(name=name)
    size = KINDS[name][-1]
    with torch.device("meta"):
        model = vit.build(config, (size, size), 3)
    assert (model.has_class_token, model.num_reg_tokens, model.global_pool) == KINDS[name][:3]
    assert (config.class_token, config.registers, config.positions) == (*KINDS[name][:2], KINDS[name][3])
    assert (model.pos_embed is None) == (config.positions == "none")
    assert vit.Config.model_validate(config.model_dump()) == config


def test_a_section_may_differ_from_its_name() -> None:
    options = {"registers": 2, "class_token": False, "positions": "sincos", "norm_eps": 1e-3, "drop_path": 0.2}
    with torch.device("meta"):
        config = vit.Config.model_validate({"name": "vit_tiny_patch16_dinov3_qkvb", "patch": 8, **options})
        model = vit.build(config, (16, 16), 3)
    assert (model.num_prefix_tokens, model.global_pool, vit.grid(model)) == (2, "avg", (2, 2))
    assert not model.pos_embed.requires_grad
    assert vit.norm_eps(model) == model.norm.eps == 1e-3
    assert model.stochastic_depth.layers.shape[0] == 12


@pytest.mark.parametrize("options", [{"norm": "post"}, {"qkv_bias": "query_value"}, {"relative_bias": "shared"}])
def test_options_that_such_blocks_do_not_have_are_refused(options: dict[str, Any]) -> None:
    name = "vit_tiny_patch16_dinov3_qkvb"
    message = rf"backbone.{next(iter(options))}: {name} is made of EvaBlock, which has no such option"
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        vit.build(vit.Config.model_validate({"name": name} | options), (32, 32), 3)


@pytest.mark.parametrize("method", ["mae", "crossmae", "simmim", "data2vec", "data2vec2", "ijepa"])
def test_every_method_trains_all_of_it(method: str) -> None:
    named = {"name": "vit_tiny_patch16_dinov3_qkvb", "width": None, "depth": None, "heads": None, "patch": None}
    with torch.device("meta"):
        step = build_step(make_run(method, {"size": 32}, named | {"patch": 4}))
        step.objective(Batch(torch.empty(2, 3, 32, 32), torch.arange(2))).loss.backward()
    assert [key for key, weight in step.named_parameters() if weight.requires_grad and weight.grad is None] == []


@pytest.mark.slow
def test_it_compiles_to_one_graph() -> None:
    named = {"name": "vit_tiny_patch16_dinov3_qkvb", "width": None, "depth": None, "heads": None, "patch": 8}
    it_is_one_graph(make_run("mae", {"size": 16}, named | {"drop_path": 0.1}))


def test_its_cost_is_counted() -> None:
    named = {"name": "eva02_tiny_patch14_224", "width": None, "depth": None, "heads": None, "patch": 4}
    run = make_run("mae", {"size": 16}, named)
    cost = measure_cost(run)
    assert cost.trainable == sum(p.numel() for p in build_step(run).parameters() if p.requires_grad)
    assert cost.training_flops > 2 * cost.forward_flops > 0
