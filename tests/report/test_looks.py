"""Attention, colours and class-activation maps of small models: shapes, meaning, and the same every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mrp
from mrp.config import ConfigError
from mrp.report import looks
from tests.interop.conftest import OBJECTIVES, Make, images, make  # noqa: F401 -- the fixture

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{method: (method, {}) for method in OBJECTIVES},
    "no class token": ("mae", {"class_token": False}),
    "registers and a bias": ("simmim", {"registers": 2, "relative_bias": "shared", "positions": "none"}),
}


@pytest.mark.parametrize(("method", "backbone"), KINDS.values(), ids=KINDS)
def test_shapes_and_the_same_every_time(method: str, backbone: dict[str, Any], make: Make) -> None:  # noqa: F811
    model = mrp.load(make(method, backbone))
    for layer in (None, 1):
        seen = [
            (
                looks.attention(model, images(), layer),
                looks.colours(model, images(), layer),
                looks.eigen_cam(model, images(), layer),
                looks.gradient_cam(model, images(), layer=layer).maps,
            )
            for _ in range(2)
        ]
        heads, colours, eigen, gradient = seen[0]
        assert heads.shape == (3, 4, 4, 4)
        assert (heads > 0).all()
        assert (heads.sum((2, 3)) <= 1 + 1e-6).all()
        assert colours.shape == (3, 4, 4, 3)
        assert colours.min() == 0
        assert colours.max() == 1
        for maps in (eigen, gradient):
            assert maps.shape == (3, 4, 4)
            assert maps.min() >= 0
            assert maps.max() > 0
        assert all(np.array_equal(one, other) for one, other in zip(*seen, strict=True))


def test_attention_of_the_mean_query_adds_up(make: Make) -> None:  # noqa: F811
    model = mrp.load(make("mae", {"class_token": False}))
    assert looks.attention(model, images()).sum((2, 3)) == pytest.approx(1, abs=1e-5)


def test_components_are_those_of_the_features() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 400, 6, generator=generator).exp() * torch.tensor([9.0, 1, 4, 0.1, 0.1, 0.1])
    found = looks.principal(rows, 3)[0]
    assert torch.allclose(looks.principal(-rows, 3)[0].pow(3).sum(0).sign(), torch.ones(3, dtype=torch.float64))
    centred = rows[0].double() - rows[0].double().mean(0)
    _, _, axes = torch.linalg.svd(centred)
    assert torch.allclose(found.abs(), (centred @ axes[:3].T).abs(), atol=1e-8)
    assert (found.pow(3).sum(0) > 0).all()
    wide = torch.randn(2, 5, 40, generator=generator)
    tall = torch.nn.functional.pad(wide, (0, 0, 0, 60))  # more rows than numbers, in which no direction is new
    assert looks.principal(wide, 2).shape == (2, 5, 2)
    spread = torch.linalg.svdvals((wide - wide.mean(1, keepdim=True)).double())[:, :2]
    assert torch.allclose(looks.principal(wide, 2).norm(dim=1), spread, atol=1e-8)
    assert looks.principal(tall, 2).shape == (2, 65, 2)
    alike = torch.ones(1, 50, 6) + 1e-7 * torch.randn(1, 50, 6, generator=generator)
    assert not looks.principal(alike, 3).any(), "rounding is no component"


class Blocks(nn.Module):
    """Blocks that do nothing."""

    def forward(self, tokens: Tensor, **options: Any) -> Any:
        return tokens


def planted(make: Make, method: str, **backbone: Any) -> tuple[mrp.Model, Tensor, Tensor]:  # noqa: F811
    """A model whose patch features are the patches, and images that are grey but for one bright patch each."""
    model = mrp.load(make(method, backbone | {"class_token": False, "width": 48}, size=32))
    vit: Any = model.backbone
    for number in range(len(vit.blocks)):
        vit.blocks[number] = Blocks()
    vit.norm = nn.Identity()
    with torch.no_grad():
        vit.pos_embed.zero_()
        vit.patch_embed.proj.weight.copy_(torch.eye(48).view_as(vit.patch_embed.proj.weight))
        vit.patch_embed.proj.bias.zero_()
    pixels = torch.full((2, 3, 32, 32), 0.4)  # the mean, so that all other patches are empty
    places = torch.tensor([[2, 5], [7, 1]])
    for image, (row, column) in zip(pixels, places.tolist(), strict=True):
        image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.9
    return model, pixels, places


def peaks(maps: Any) -> Tensor:
    flat = torch.from_numpy(maps).flatten(1)
    assert ((flat > 0.5 * flat.amax(1, keepdim=True)).sum(1) == 1).all(), "nothing else stands out"
    return torch.stack([flat.argmax(1) // maps.shape[2], flat.argmax(1) % maps.shape[2]], 1)


def test_maps_point_at_a_planted_patch(make: Make) -> None:  # noqa: F811
    model, pixels, places = planted(make, "mae")
    assert torch.equal(peaks(looks.eigen_cam(model, pixels)), places)
    found = looks.gradient_cam(model, pixels)
    assert found.what == ("difference from an empty image",) * 2
    assert torch.equal(peaks(found.maps), places)
    colours = torch.from_numpy(looks.colours(model, pixels)).flatten(1, 2)
    for colour, (row, column) in zip(colours, places.tolist(), strict=True):
        assert (colour != colour[8 * row + column]).any(1).sum() == 63, "the patch has a colour of its own"


def test_a_map_of_a_class_points_at_what_speaks_for_it(make: Make) -> None:  # noqa: F811
    model, pixels, places = planted(make, "classify")
    model.backbone.fc_norm = nn.Identity()
    objective: Any = model.objective
    with torch.no_grad():
        objective.head.weight.copy_(torch.tensor([1.0, -1, 0, 0, 0])[:, None].expand(5, 48))
        objective.head.bias.zero_()
    found = looks.gradient_cam(model, pixels)
    assert found.what == ("class 0", "class 0"), "the likeliest"
    assert torch.equal(peaks(found.maps), places)
    against = looks.gradient_cam(model, pixels, classes=torch.tensor([1, 0])).maps
    assert not against[0].any(), "nothing speaks for the other class"
    assert torch.equal(peaks(against[1:]), places[1:])


def test_a_head_on_a_frozen_backbone_is_explained_too(make: Make) -> None:  # noqa: F811
    model = mrp.load(make("classify", frozen=True))
    with torch.no_grad():
        likeliest = model.objective.predict(model.batch(images()).images)[1].argmax(1)  # type: ignore[operator]
    found = looks.gradient_cam(model, images())
    assert found.what == tuple(f"class {number}" for number in likeliest.tolist())
    assert found.maps.max() > 0


def test_similarity_to_a_reference(make: Make) -> None:  # noqa: F811
    model, pixels, places = planted(make, "mae")
    pixels[:, 2, :4, :4] = 0.9  # another patch, which is unlike the reference
    red = (torch.arange(48) < 16).float()
    found = looks.gradient_cam(model, pixels, reference=red)
    assert found.what == ("similarity to the reference",) * 2
    assert torch.equal(peaks(found.maps), places)
    one_each = looks.gradient_cam(model, pixels, reference=torch.stack([red, red]))
    assert np.array_equal(one_each.maps, found.maps)


def test_what_cannot_be_asked_is_one_line(make: Make) -> None:  # noqa: F811
    model = mrp.load(make("mae"))
    with pytest.raises(ConfigError, match="tells no classes apart"):
        looks.gradient_cam(model, images(), classes=torch.zeros(3, dtype=torch.int64))
    for layer in (0, 3):
        with pytest.raises(ConfigError, match=f"{layer} was given, and .* has the layers 1 to 2"):
            looks.attention(model, images(), layer)
    with pytest.raises(ValueError, match="images of shape"):
        looks.eigen_cam(model, torch.rand(1, 3, 8, 8))


def test_many_images_are_taken_some_at_a_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    model = mrp.load(make("classify"))
    whole = looks.gradient_cam(model, images()), looks.attention(model, images())
    monkeypatch.setattr(looks, "CHUNK", 2)
    parts = looks.gradient_cam(model, images()), looks.attention(model, images())
    assert np.allclose(whole[0].maps, parts[0].maps, atol=1e-6)
    assert whole[0].what == parts[0].what
    assert np.allclose(whole[1], parts[1], atol=1e-6)


def test_a_map_lies_over_its_image() -> None:
    pixels = torch.rand(2, 3, 8, 12)
    maps = np.zeros((2, 2, 3), np.float32)
    maps[0, 1, 2] = 5
    shown = looks.overlay(pixels, maps)
    assert shown.shape == (2, 8, 12, 3)
    assert shown.min() >= 0
    assert shown.max() <= 1
    grey = pixels.mean(1)[..., None].numpy()
    heat = (shown - 0.4 * grey) / 0.6
    assert np.ptp(heat[0, 4:, 8:], (0, 1)) == pytest.approx(0, abs=1e-5)
    assert (heat[0, 5, 9, :2] > heat[0, 0, 0, :2] + 0.5).all(), "yellow on black"
    assert np.ptp(heat[1], (0, 1)) == pytest.approx(0, abs=1e-5), "an empty map is even"
