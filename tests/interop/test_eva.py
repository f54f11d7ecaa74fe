"""Models of timm's module `eva`, written for timm and read from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.models import create_model

import mrp
from mrp.config import ConfigError, Tree
from mrp.interop import huggingface_export, init, timm_export
from mrp.interop.folders import Preprocessing
from mrp.interop.reading import read
from mrp.models import eva, vit
from mrp.objectives import classify, mae
from mrp.step import Prepare
from tests.models.test_eva import NAMES, build

TINY = "vit_tiny_patch16_dinov3_qkvb"
IMAGES = Preprocessing((32, 32), 3, (0.5,) * 3, (0.5,) * 3, None)


def tiny(name: str = TINY, **options: Any) -> eva.Eva:
    """Returns a model as a run has it."""
    torch.manual_seed(0)
    found = vit.build(vit.Config.model_validate({"name": name, "patch": 16} | options), (32, 32), 3)
    assert isinstance(found, eva.Eva)
    return found.eval()


def features(model: vit.Backbone, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vit.encode(model, vit.embed(model, images)).tokens


def loaded(source: Path, **values: Any) -> vit.Backbone:
    weights = read(source, values=values)
    model = vit.build(weights.backbone, weights.size, weights.channels)
    model.load_state_dict({k.removeprefix("backbone."): w for k, w in weights.tensors.items() if "backbone" in k})
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
def test_timm_computes_the_same(name: str) -> None:
    model, images = build(name).eval(), torch.randn(2, 3, 16, 24)
    theirs, architecture, arguments = timm_export.build(model)
    again: Any = create_model(architecture, **json.loads(json.dumps(arguments))).eval()
    again.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.allclose(again.forward_features(images), features(model, images), atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_classifier_goes_with_its_norm(pool: str) -> None:
    model = build("eva02_tiny_patch14_224")
    objective = classify.Objective(classify.Config(classes=3, pool=pool), model).eval()  # type: ignore[arg-type]
    images = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        ours = objective.head(vit.pool(model, features(model, images)))
        theirs = timm_export.build(model, objective.head)[0](images)  # type: ignore[arg-type]
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"name": "eva02_tiny_patch14_224", "patch": 8, "mlp_ratio": 2}, {"registers": 0, "layer_scale": 0.1}],
    ids=["dinov3", "eva02", "changed"],
)
def test_a_folder_comes_back(options: dict[str, Any], tmp_path: Path) -> None:
    model, images = tiny(**options), torch.randn(2, 3, 32, 32)
    timm_export.write(tmp_path, model, None, IMAGES)
    again = loaded(tmp_path)
    assert isinstance(again, eva.Eva)
    assert torch.equal(features(again, images), features(model, images))


def test_a_state_dict_needs_a_name(tmp_path: Path) -> None:
    model, file, images = tiny(), tmp_path / "weights.safetensors", torch.randn(2, 3, 32, 32)
    save_file(model.state_dict() | {"rope.periods": torch.ones(16)}, file)  # a table that older versions have saved
    with pytest.raises(ConfigError, match=r"weights do not tell which; say it with backbone\.name=NAME"):
        read(file)
    assert vit.grid(loaded(file, backbone={"name": TINY})) == (16, 16), "as timm says of the name"
    again = loaded(file, backbone={"name": TINY}, data={"size": 32})
    assert torch.equal(features(again, images), features(model, images))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("vit_pe")])
def test_weights_that_might_be_taken_for_a_beit_are_not(name: str, tmp_path: Path) -> None:
    # A giant EVA as published: one with scaled layers would be a BEiT with positions, which computes the same.
    as_published = {"init_values": None} if name.startswith("eva_giant") else {}
    save_file(build(name, **as_published).state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(ConfigError, match="timm's module eva"):
        read(tmp_path / "weights.safetensors", values={"data": {"size": [16, 24]}, "backbone": {"heads": 2}})


def test_a_run_starts_from_such_weights_on_any_grid(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(tiny().state_dict(), file)
    values = init.completed(Tree({"init": str(file), "backbone": {"name": TINY}}, {})).values
    assert values["backbone"] | {"drop_path": 0.0} == vit.Config(name=TINY, patch=16).model_dump(mode="json")
    objective = mae.Objective(mae.Config(), tiny())
    for parameter in objective.backbone.parameters():
        torch.nn.init.zeros_(parameter)
    config = init.Config.model_validate(values["init"])
    step = torch.nn.Module()
    step.objective, step.prepare = objective, Prepare((0.5,) * 3, (0.5,) * 3)
    assert "new: decoder" in init.start(config, "mae", step)
    assert torch.equal(objective.backbone.get_parameter("cls_token"), tiny().get_parameter("cls_token"))


def test_another_name_of_the_same_sizes_is_a_disagreement(tmp_path: Path) -> None:
    timm_export.write(tmp_path, tiny(), None, IMAGES)
    with pytest.raises(ConfigError, match=f"have model {TINY}"):
        init.completed(Tree({"init": str(tmp_path), "backbone": {"name": "vit_tiny_patch16_224"}}, {}))


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a backbone\.name of timm's module eva is what transformers"):
        huggingface_export.write(tmp_path, mae.Objective(mae.Config(), tiny()), IMAGES)
    with pytest.raises(ConfigError, match=r"backbone\.norm_eps: 0\.001 is what timm"):
        timm_export.build(tiny(norm_eps=1e-3))


def test_arguments_that_a_section_cannot_say_are_refused(tmp_path: Path) -> None:
    timm_export.write(tmp_path, tiny(), None, IMAGES)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["embed_dim"] = 96
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"embed_dim differs from {TINY}"):
        read(tmp_path)


def test_python_says_the_name_too(tmp_path: Path) -> None:
    model, file = tiny(), tmp_path / "weights.safetensors"
    save_file(model.state_dict(), file)
    ours = mrp.load(file, backbone={"name": TINY}, data={"size": 32})
    assert isinstance(ours.backbone, eva.Eva)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(features(ours.backbone, images), features(model, images))
    with pytest.raises(ConfigError, match="a run says itself what its weights are; leave out backbone"):
        mrp.load(tmp_path / "runs" / "none", backbone={"name": TINY})


def test_statistics_of_colours_are_not_those_of_grey_images(tmp_path: Path) -> None:
    for channels in (1, 3):
        grey = vit.build(vit.Config.model_validate({"name": TINY}), (32, 32), channels)
        save_file(grey.state_dict(), tmp_path / "weights.safetensors")
        found = read(tmp_path / "weights.safetensors", values={"backbone": {"name": TINY}})
        assert (found.channels, len(found.mean)) == (channels, 3 if channels == 3 else 0)
