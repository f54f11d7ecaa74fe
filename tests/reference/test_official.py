"""Official checkpoints: whole or the encoder alone, nothing in them executed, nothing dropped unseen."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from mrp.config import ConfigError
from mrp.interop import official, untrusted
from mrp.interop.weights import part
from mrp.models import vit

CASES = Path(__file__).parent / "cases"
METHODS = {
    "umae": "mae", "mae_rawpix": "mae", "crossmae": "crossmae", "simmim_relative": "simmim", "data2vec": "data2vec",
    "data2vec2": "data2vec2", "ijepa": "ijepa", "maskfeat": "maskfeat", "vit_cls": "classify",
    "vit_meanpool": "classify",
}  # fmt: skip


def content(case: str) -> dict[str, Any]:
    return untrusted.read(CASES / case / "checkpoint.pth")


@pytest.mark.parametrize("case", METHODS)
def test_the_method_is_recognised_and_the_encoder_stands_alone(case: str) -> None:
    found = official.load(CASES / case / "checkpoint.pth")
    assert found.method == METHODS[case]
    encoder = part(found.tensors)
    assert {"patch_embed.proj.weight", "blocks.2.attn.qkv.bias"} <= encoder.keys()
    assert ("cls_token" in encoder) is (case != "ijepa")
    assert not any(name.startswith(("decoder", "teacher", "head", "mask_token")) for name in encoder)


def test_an_encoder_fits_a_backbone_of_another_size() -> None:
    encoder = part(official.load(CASES / "simmim_relative" / "checkpoint.pth").tensors)
    options = {"width": 48, "depth": 3, "heads": 4, "patch": 8, "layer_scale": 0.1, "positions": "none"}
    model = vit.build(vit.Config.model_validate(options | {"relative_bias": "per_block"}), (48, 32), 3)
    model.load_state_dict(vit.resampled(model, encoder, (4, 4)))
    assert torch.equal(*(block.rel_pos_bias.relative_position_bias_table for block in list(model.blocks)[:2]))


def test_a_checkpoint_of_the_encoder_alone_is_read(tmp_path: Path) -> None:
    model = {name: w for name, w in content("umae")["model"].items() if not name.startswith(("decoder", "mask", "fc"))}
    torch.save({"model": model}, tmp_path / "encoder.pth")
    assert official.load(tmp_path / "encoder.pth").tensors.keys() == {f"backbone.{k}" for k in model}


@pytest.mark.parametrize("place", ["teacher", "model_ema", "model/_ema", None])
def test_the_teacher_is_found_where_official_code_puts_it(place: str | None, tmp_path: Path) -> None:
    saved = content("data2vec")
    teacher = saved.pop("teacher")
    if place == "model/_ema":
        saved["model"]["_ema"] = teacher
    elif place:
        saved[place] = teacher
    torch.save(saved, tmp_path / "checkpoint.pth")
    weights = official.load(tmp_path / "checkpoint.pth").tensors
    expected = teacher if place else saved["model"]
    assert torch.equal(weights["teacher.backbone.blocks.0.mlp.fc1.weight"], expected["blocks.0.mlp.fc1.weight"])


def test_keys_get_no_bias_and_the_index_of_offsets_is_not_kept() -> None:
    weights = official.load(CASES / "data2vec_relative" / "checkpoint.pth").tensors
    query, key, value = weights["backbone.blocks.0.attn.qkv.bias"].chunk(3)
    assert not key.any()
    assert torch.equal(query, content("data2vec_relative")["model"]["blocks.0.attn.q_bias"])
    assert torch.equal(value, content("data2vec_relative")["model"]["blocks.0.attn.v_bias"])
    assert not any("index" in name for name in weights)


def test_what_is_not_known_is_never_dropped(tmp_path: Path) -> None:
    saved = content("umae")
    saved["model"]["momentum_encoder.weight"] = torch.zeros(1)
    torch.save(saved, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"'momentum_encoder.weight' is no weight of mae"):
        official.load(tmp_path / "other.pth")
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, tmp_path / "resnet.pth")
    with pytest.raises(ConfigError, match=r"holds no model that is known here"):
        official.load(tmp_path / "resnet.pth")


class Payload:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.folder),))


def test_a_checkpoint_that_would_run_code_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"model": {"cls_token": torch.zeros(1)}, "extra": Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match=r"evil.pth: refused: it asks to load 'posix.mkdir"):
        official.load(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["yacs.config.CfgNode", "omegaconf.dictconfig.DictConfig"])
def test_the_settings_of_other_packages_are_let_through_unexecuted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _, title = name.rpartition(".")
    kind = type(title, (dict,), {"__module__": place})
    with monkeypatch.context() as patch:  # as if the package were here when the file was written
        module = types.ModuleType(place)
        setattr(module, title, kind)
        for part in (place.partition(".")[0], place):
            patch.setitem(sys.modules, part, module)
        settings = kind(MODEL=kind(TYPE="vit"))
        settings.frozen = True
        torch.save(content("simmim") | {"config": settings}, tmp_path / "with.pth")
    assert official.load(tmp_path / "with.pth").method == "simmim"
    assert untrusted.read(tmp_path / "with.pth")["config"]["MODEL"]["TYPE"] == "vit"


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), [torch.zeros(3)], {"model": None}, {1: torch.zeros(1)}, {"model": {}}, b"not a checkpoint"],
    ids=["tensor", "list", "nothing", "numbered", "empty", "text"],
)
def test_files_of_another_kind_are_one_line(content: object, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ConfigError, match=r"file\.pth: ") as error:
        official.load(path)
    assert "\n" not in str(error.value)
