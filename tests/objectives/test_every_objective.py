"""What every training method must do; a new file in mrp/objectives is picked up by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mrp.check.objectives import CHECKS, every_parameter_learns, it_is_one_graph
from mrp.check.outcome import Skipped
from mrp.check.tiny import gradients as gradients
from mrp.check.tiny import small, tiny_batch, tiny_run
from mrp.objectives import OBJECTIVES
from mrp.run import Run

make_batch = tiny_batch

DECODER = {"width": 32, "depth": 1, "heads": 4}
# Every method with the options that it has for tiny runs, and variants.
VARIANTS: dict[str, dict[str, Any]] = {name: small(name) for name in OBJECTIVES.names()} | {
    "pixio": {"name": "mae", "mask_unit": 8, "decoder": DECODER},
    "u-mae": {"name": "mae", "masks": 2, "decoder": DECODER, "uniformity": {"weight": 0.1, "feature": "mean"}},
    "mae-sigreg": {
        "name": "mae", "masks": 2, "decoder": DECODER,
        "uniformity": {"weight": 0.1, "kind": "sigreg", "slices": 16, "feature": "mean"},
    },
    "crossmae-self": {
        "name": "crossmae", "masks": 2, "target": "pixels", "predicted": 0.5,
        "decoder": DECODER | {"self_attention": True, "input_map": False},
    },
    "u-simmim": {"name": "simmim", "mask_unit": 8, "uniformity": {"weight": 0.1, "feature": "mean"}},
    "capi": small("capi") | {"masks": 2},
    "maskfeat": small("maskfeat") | {"masks": 2, "window": 4, "blocks": "beit"},
    "ijepa": small("ijepa") | {"masks": 2},
    "u-data2vec": {
        "name": "data2vec", "smallest_block": 4, "layers": 2, "masks": 2,
        "uniformity": {"weight": 0.1, "feature": "mean"},
    },
    "classify": small("classify") | {"smoothing": 0.1},
    "tags": small("classify") | {"loss": "tags", "smoothing": 0.1},
    "probe": {"name": "classify", "classes": 4, "frozen": True, "head_std": 0.01},
}  # fmt: skip
NAMES = list(VARIANTS)

SHAPES = [
    pytest.param({"size": 16, "channels": 3}, {}, id="square"),
    pytest.param({"size": [16, 24], "channels": 3}, {"registers": 2}, id="rectangular-registers"),
    pytest.param({"size": 16, "channels": 1}, {"positions": "learned"}, id="grey-learned"),
    pytest.param({"size": 16, "channels": 5}, {"class_token": False}, id="five-channels-no-class-token"),
    pytest.param(
        {"size": [16, 24]},
        {"layer_scale": 0.1, "relative_bias": "shared", "positions": "none", "qkv_bias": "query_value"},
        id="beit",
    ),
    pytest.param(
        {"size": 16},
        {"norm": "post", "relative_bias": "per_block", "drop_path": 0.3, "attention_dropout": 0.1, "registers": 1},
        id="post-norm-bias-drop",
    ),
]


def make_run(name: str, data: dict[str, Any] | None = None, backbone: dict[str, Any] | None = None, **more: Any) -> Run:
    return tiny_run(more.pop("objective", VARIANTS[name]), data, backbone, **more)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_does_what_every_method_must(name: str, check: Callable[[Run], None]) -> None:
    graph = {"precision": "bf16"} if check is it_is_one_graph else {}  # the harder one: casts are part of it
    try:
        check(make_run(name, **graph))
    except Skipped as skipped:
        pytest.skip(str(skipped))


@pytest.mark.parametrize(("data", "backbone"), SHAPES[1:])
def test_every_trained_parameter_gets_a_gradient(name: str, data: dict[str, Any], backbone: dict[str, Any]) -> None:
    every_parameter_learns(make_run(name, data, backbone))
