"""The page of backbones names all that timm has, and says of them what they are."""

from __future__ import annotations

import pytest

from mrp.models.named import all_names, look_up
from tools.backbones import PAGE, row, sorted_out, trained_by


def lines() -> dict[str, str]:
    """Returns the line of the page that a name stands in."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        for cell in line.split(" | ")[0].removeprefix("| ").split(", "):
            found[cell.strip("`")] = line
    return found


def test_every_name_is_on_it() -> None:
    assert set(all_names()) <= set(lines()), "timm has others: make docs"


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "vit_pwee_patch16_reg1_gap_256", "eva02_tiny_patch14_224", "vit_base_patch16_sapiens2"],
)
def test_what_it_says_of_a_name(name: str) -> None:
    shared = row(look_up(name))
    cells = lines()[name].strip("| ").split(" | ")
    assert cells[1:5] == [shared.prefix, shared.positions, shared.pool, f"`{shared.block}`"]
    assert cells[7] == shared.lacks
    assert cells[6] == ("all but `data2vec2`" if name.startswith("vit_pwee") else "all")


def test_methods_are_tried() -> None:
    assert trained_by("vit_tiny_patch16_dinov3_qkvb", "data2vec2")
    assert not trained_by("vit_pwee_patch16_reg1_gap_256", "data2vec2")


def test_what_is_not_built_has_its_reason() -> None:
    built, refused = sorted_out(["vit_base_patch16_siglip_224", "vit_tiny_patch16_224"])
    assert list(built.values()) == [["vit_tiny_patch16_224"]]
    assert refused == {"pools its tokens by attention, which no method here trains": ["vit_base_patch16_siglip_224"]}
    assert "pools its tokens by attention" in lines()["vit_base_patch16_siglip_224"]
