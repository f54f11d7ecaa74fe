"""What comes in answers here as it did where it comes from, and becomes a folder like a run's."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mrp
from mrp import cli
from mrp.config import ConfigError
from mrp.exchange.export import export
from mrp.exchange.importing import import_weights
from mrp.interop import hub, reading
from tests.interop.conftest import Make, images, shake

CASES = Path(__file__).parent.parent / "reference" / "cases"
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4}
TINY = {
    "image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64,
}  # fmt: skip
MEAN, STD = 0.5, 0.25


def moved(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.rand(parameter.shape, generator=generator)
    return model.eval()


def close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def brought(source: Path, *words: str, **options: Any) -> mrp.Model:
    """Imported with the command's own function, then loaded from the folder that it made."""
    out = source.with_name("imported")
    import_weights(str(source), out, words=words, **options)
    return mrp.load(out)


def scores(model: mrp.Model, pixels: Tensor) -> Tensor:
    """Of images that are normalised already."""
    with torch.no_grad():
        found: Tensor = model.objective.predict(pixels)[1]  # type: ignore[operator]
    return found


def encoded(model: mrp.Model, pixels: Tensor) -> Tensor:
    from mrp.models.vit import embed, encode

    with torch.no_grad():
        return encode(model.backbone, embed(model.backbone, pixels)).tokens


def save_timm(folder: Path, architecture: str, **options: Any) -> nn.Module:
    """A folder as timm itself writes it."""
    from timm.models import save_for_hf

    model = moved(timm.create_model(architecture, **options))
    size = options["img_size"]
    shape = (3, size, size) if isinstance(size, int) else (3, *size)
    data = {"mean": (MEAN,) * 3, "std": (STD,) * 3, "input_size": shape}
    save_for_hf(model, str(folder), safe_serialization=True, data_config=data)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 5},
        {"num_classes": 5, "global_pool": "avg", "init_values": 0.1},
        {"num_classes": 5, "reg_tokens": 2, "no_embed_class": True},
        {"num_classes": 5, "class_token": False, "global_pool": "avg", "img_size": (16, 24)},
        {"num_classes": 0, "init_values": 0.1},
    ],
    ids=["plain", "mean", "registers", "no class token", "no head"],
)
def test_timms_folder(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = save_timm(tmp_path / "model", "vit_base_patch16_224", **SMALL | options)
    model = brought(tmp_path / "model")
    pixels = images(3, (16, 24) if "img_size" in options else (16, 16))
    with torch.no_grad():
        expected = theirs(pixels)
    assert close(scores(model, pixels) if options["num_classes"] else encoded(model, pixels)[:, 0], expected)
    assert bool(model.missing) == (options["num_classes"] == 0)


def test_timms_beit_and_names_of_timm(tmp_path: Path) -> None:
    theirs = save_timm(tmp_path / "a", "beit_base_patch16_224", **SMALL, num_classes=5)
    model = brought(tmp_path / "a")
    with torch.no_grad():
        assert close(scores(model, images()), theirs(images()))
    shutil.rmtree(tmp_path / "imported")
    named = {"img_size": 32, "num_classes": 5}  # CLIP's norm before the first block: only its name tells
    theirs = save_timm(tmp_path / "b", "vit_base_patch32_clip_224", **named)
    model = brought(tmp_path / "b")
    assert model.run.backbone.name == "vit_base_patch32_clip_224"
    with torch.no_grad():
        assert close(scores(model, images(2, (32, 32))), theirs(images(2, (32, 32))))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_state_dict_alone(suffix: str, tmp_path: Path) -> None:
    theirs = moved(timm.create_model("vit_base_patch16_224", **SMALL, num_classes=5))
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": theirs.state_dict()}, path)
    else:
        save_file(theirs.state_dict(), path)
    with pytest.raises(ConfigError, match=r"do not tell the number of heads; add backbone.heads=N"):
        brought(path)
    model = brought(path, "backbone.heads=4", "data.mean=0.5", "data.std=0.25")
    assert model.run.data.mean == (0.5,) * 3
    with torch.no_grad():
        assert close(scores(model, images()), theirs(images()))


@pytest.mark.parametrize("saved", ["safetensors", "bin"])
def test_transformers_vitmae(saved: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        **TINY, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=64, mask_ratio=0.5, norm_pix_loss=True,
    )  # fmt: skip
    theirs = moved(transformers.ViTMAEForPreTraining(config))
    theirs.save_pretrained(tmp_path / "model")
    if saved == "bin":
        path = tmp_path / "model" / "model.safetensors"
        torch.save(load_file(path), path.with_name("pytorch_model.bin"))
        path.unlink()
    # The eps of its norms, in encoder and decoder, is transformers' own (1e-12).
    model = brought(tmp_path / "model")
    assert model.run.name == "mae"
    assert not model.missing
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(3, 16, dtype=torch.bool).scatter(1, noise.argsort(1)[:, :8], False)
    batch = model._raw(images())
    with torch.no_grad():
        assert close(model.objective(batch, mask).loss, theirs(images(), noise=noise).loss)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ViTForImageClassification", {}),
        ("ViTModel", {"layer_norm_eps": 1e-6}),
        ("Data2VecVisionForImageClassification", {"use_relative_position_bias": True}),
        ("Data2VecVisionForImageClassification", {"use_mean_pooling": False, "layer_scale_init_value": 0.0}),
        ("Data2VecVisionModel", {"use_shared_relative_position_bias": True, "use_mean_pooling": False}),
    ],
)
def test_transformers_vits(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    settings = "ViTConfig" if kind.startswith("ViT") else "Data2VecVisionConfig"
    config = getattr(transformers, settings)(**TINY | options, num_labels=5)
    theirs = moved(getattr(transformers, kind)(config))
    theirs.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1] * 3, "image_std": [0.3] * 3})
    )
    model = brought(tmp_path / "model", *(["objective.smallest_block=1"] if kind == "Data2VecVisionModel" else []))
    assert model.run.data.mean == (0.1,) * 3
    with torch.no_grad():
        found = theirs(images())
    if kind.endswith("Classification"):
        assert close(scores(model, images()), found.logits)
    else:
        assert close(encoded(model, images()), found.last_hidden_state)
        assert model.missing
        if kind == "Data2VecVisionModel":
            assert getattr(model.run.objective, "blocks") == "beit"  # noqa: B009 -- as it was trained, if it goes on


@pytest.mark.parametrize(("case", "expected"), [("vit_cls", "logits"), ("vit_meanpool", "logits")])
def test_official_fine_tuned_checkpoints(case: str, expected: str, tmp_path: Path) -> None:
    shutil.copytree(CASES / case, tmp_path / case)
    model = brought(tmp_path / case / "checkpoint.pth", "backbone.heads=4")
    tensors = load_file(CASES / case / "tensors.safetensors")
    assert close(scores(model, tensors["images"]), tensors[expected])


def test_official_settings_are_taken_over_and_the_rest_is_said(tmp_path: Path) -> None:
    shutil.copytree(CASES / "mae_rawpix", tmp_path / "mae")
    model = brought(tmp_path / "mae" / "checkpoint.pth", "backbone.heads=4", "objective.decoder.heads=4")
    assert model.run.objective.target == "pixels"  # type: ignore[attr-defined]
    assert model.source["source"] == "checkpoint.pth"
    assert model.run.data.train == "none given at import"
    model.reconstruct(torch.rand(2, 3, 32, 32))


def test_an_encoder_alone_goes_into_the_method_that_is_asked_for(make: Make) -> None:
    folder = make("mae")
    out = folder.with_name("official")
    export(folder, "official", out)
    weights = torch.load(out / "checkpoint.pth", weights_only=True)["model"]
    path = folder.with_name("encoder.pth")
    torch.save({"model": {k: w for k, w in weights.items() if not k.startswith(("decoder", "mask_token"))}}, path)
    for method in (None, "simmim"):
        words = ["backbone.heads=4", *(["objective.mask_unit=4"] if method else [])]
        model = brought(path, *words, method=method)
        assert model.run.name == (method or "mae")
        assert torch.equal(model.features(images()), mrp.load(path.with_name("imported")).features(images()))
        with pytest.raises(ConfigError, match=r"was imported without '"):
            model.reconstruct(images())
        shutil.rmtree(path.with_name("imported"))


SQUARE, COVER = {"height": 16, "width": 16}, {"shortest_edge": 16}


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"size": SQUARE}, None),  # ViTImageProcessor
        ({"size": 16, "do_center_crop": False, "crop_size": 16}, None),  # BEiT's, as transformers 4 first wrote it
        ({"size": SQUARE, "do_center_crop": True, "crop_size": SQUARE}, None),
        ({"size": COVER, "do_center_crop": True, "crop_size": SQUARE}, 1.0),
        (
            {"size": 16, "do_center_crop": True, "crop_size": 16},
            None,
        ),  # BEiT's and DeiT's take one number for both sides
        ({"size": {"shortest_edge": 18}, "do_center_crop": True, "crop_size": SQUARE}, 224 / 256),
        ({"size": SQUARE, "do_center_crop": True, "crop_size": {"height": 12, "width": 12}}, 224 / 256),
        ({"size": COVER}, 224 / 256),  # images of many sizes, which no model here takes
        ({"do_resize": False, "size": SQUARE}, 224 / 256),
        ({}, 224 / 256),
        ([], 224 / 256),
    ],
)
def test_evaluation_sees_as_much_of_an_image_as_transformers_says(said: Any, kept: float | None, make: Make) -> None:
    folder = make("mae")
    out = folder.with_name("out")
    export(folder, "transformers", out)
    (out / "preprocessor_config.json").write_text(json.dumps(said))
    data = mrp.load(out).run.data
    assert data.frame.kept(data.shape) == kept


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone.", "encoder.", "module.base_encoder."])
def test_an_encoder_that_was_a_part_of_something_is_read(prefix: str, tmp_path: Path) -> None:
    theirs = moved(timm.create_model("vit_base_patch16_224", **SMALL, num_classes=0)).state_dict()
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in theirs.items()}}, tmp_path / "part.pth")
    model = mrp.load(tmp_path / "part.pth", backbone={"heads": 4})
    assert torch.equal(model.backbone.blocks[1].mlp.fc2.weight, theirs["blocks.1.mlp.fc2.weight"])


@pytest.mark.parametrize("registers", [0, 2])
def test_official_dinov2(registers: int, tmp_path: Path) -> None:
    from timm.models.vision_transformer import checkpoint_filter_fn

    theirs: Any = timm.create_model(
        "vit_base_patch16_224", **SMALL, num_classes=0, init_values=0.1, reg_tokens=registers, no_embed_class=True
    )
    theirs = moved(theirs) if registers else moved(timm.create_model("vit_base_patch16_224", **SMALL, num_classes=0))
    official = theirs.state_dict() | {"mask_token": torch.zeros(1, 32)}
    if registers:
        official["register_tokens"] = official.pop("reg_token")
        official["pos_embed"] = torch.cat([torch.ones(1, 1, 32), official["pos_embed"]], dim=1)
    torch.save(official, tmp_path / "dinov2.pth")
    theirs.load_state_dict(checkpoint_filter_fn(dict(official), theirs))
    model = mrp.load(tmp_path / "dinov2.pth", backbone={"heads": 4})
    with torch.no_grad():
        assert close(encoded(model, images()), theirs.forward_features(images()))


def test_several_encoders_are_named(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_base_patch16_224", **SMALL, num_classes=0).state_dict()
    both = {f"{part}.{name}": tensor.clone() for part in ("base", "momentum") for name, tensor in theirs.items()}
    torch.save(both, tmp_path / "both.pth")
    with pytest.raises(ConfigError, match=r"one encoder alone: those whose names begin with 'base.' or 'momentum.'$"):
        mrp.load(tmp_path / "both.pth")
    torch.save({"epoch": 3, "student": theirs}, tmp_path / "below.pth")
    with pytest.raises(ConfigError, match=r"weights under 'student'.*torch.save\(content\['student'\], PATH\)$"):
        mrp.load(tmp_path / "below.pth")


def test_the_heads_of_a_width_that_models_do_not_agree_on_are_asked_for(tmp_path: Path) -> None:
    wide = {**SMALL, "embed_dim": 512, "num_heads": 8, "depth": 1}  # as timm's vit_medium; MAE's decoder has 16
    torch.save(timm.create_model("vit_base_patch16_224", **wide, num_classes=0).state_dict(), tmp_path / "medium.pth")
    with pytest.raises(ConfigError, match="do not tell the number of heads"):
        mrp.load(tmp_path / "medium.pth")


def test_what_the_caller_says_of_images_is_heard(tmp_path: Path) -> None:
    path, heads = tmp_path / "weights.pth", {"heads": 4}
    torch.save(timm.create_model("vit_base_patch16_224", **SMALL, num_classes=0).state_dict(), path)
    model = mrp.load(path, backbone=heads, data={"mean": 0.5, "std": 0.25})
    assert torch.equal(model.batch(images()).images, (images() - 0.5) / 0.25)
    for section, message in (
        ({"data": {"means": 0.5}}, "data.means: unknown key; did you mean 'mean'"),
        ({"data": {"size": 15}}, "data.size: 15 is no multiple of the patch 4x4"),
        ({"backbone": {"heads": 5}}, r"weights.pth: backbone: width 32 is not a multiple of heads 5; change one"),
        ({"objective": {"ratio": 1}}, r"weights.pth: objective: ratio: unknown key"),
    ):
        with pytest.raises(ConfigError, match=message):
            mrp.load(path, **{"backbone": heads, **section})  # type: ignore[arg-type]


def test_what_was_imported_is_exported_probed_and_continued(make: Make, tmp_path: Path) -> None:
    shutil.copytree(CASES / "vit_cls", tmp_path / "official")
    model = brought(tmp_path / "official" / "checkpoint.pth", "backbone.heads=4")
    export(tmp_path / "official" / "imported", "timm", tmp_path / "timm")
    again = reading.read(tmp_path / "timm")
    assert again.method == "classify"
    assert all(torch.equal(tensor, model.objective.state_dict()[name]) for name, tensor in again.tensors.items())
    card = (tmp_path / "timm" / "README.md").read_text()
    assert "imported from `checkpoint.pth`" in card


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = CASES / "vit_cls" / "checkpoint.pth", tmp_path / "run"
    cli.main(["import", str(source), "--out", str(out), "backbone.heads=4"])
    assert "classify: 44 tensors" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main(["import", str(source), "--out", str(out), "backbone.heads=4"])
    assert caught.value.code == 2
    assert "is there already and not empty" in capsys.readouterr().err
    cli.main(["export", str(out), "--to", "official", "--out", str(tmp_path / "out")])
    assert "it agrees with the run to 0.0e+00" in capsys.readouterr().out


class Payload:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.folder),))


def hf(folder: Path, weights: Any, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if weights is not None:
        torch.save(weights, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize(
    ("weights", "config", "message"),
    [
        ({}, {"model_type": "bert"}, "model_type 'bert' is not known here"),
        (None, {"model_type": "vit"}, "has neither model.safetensors nor pytorch_model.bin"),
        ({"x.y": torch.zeros(1)}, {"model_type": "vit"}, "'x.y' is no weight of ViTMAE, ViT or Data2VecVision"),
        ({}, {"model_type": "vit", "hidden_act": "relu"}, "config.json: hidden_act: 'relu' .*'gelu'"),
        ({}, {"model_type": "vit", "num_attention_heads": 0}, "config.json: num_attention_heads: 0"),
        ({}, {"architecture": "resnet18"}, "architecture resnet18 is no Vision Transformer"),
        ({}, {"architecture": "no_such"}, "timm has no architecture 'no_such'"),
        ({}, {"architecture": "vit_base_patch16_224", "model_args": {"act_layer": "x"}}, "act_layer is not supported"),
        ({}, {"architecture": "hf-hub:owner/name"}, "timm has no architecture 'hf-hub:owner/name'"),
        ({}, {"architecture": "vit_base_patch16_224", "model_args": {"depth": 10**9}}, "depth 1000000000 is no number"),
        ({}, {"model_type": ["vit"]}, "holds no Vision Transformer that is known here"),
        ({}, {"architecture": "vit_base_patch16_224", "model_args": 3}, "holds no Vision Transformer"),
        ({}, {"other": 1}, "names neither a model_type"),
    ],
)
def test_folders_that_are_not_known_are_one_line(weights: Any, config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        reading.read(hf(tmp_path / "folder", weights, **config))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "folder"))


def test_a_folder_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = hf(tmp_path / "folder", {"vit.x": Payload(tmp_path / "ran")}, model_type="vit")
    with pytest.raises(ConfigError, match=r"refused: it asks to load 'posix.mkdir"):
        reading.read(folder)
    assert not (tmp_path / "ran").exists()


def test_tensors_that_do_not_fit_are_named(make: Make, tmp_path: Path) -> None:
    folder = make("classify", pool="cls")
    out = folder.with_name("timm")
    export(folder, "timm", out)
    state = load_file(out / "model.safetensors")
    for change, message in (
        (
            {"blocks.0.attn.q_norm.weight": torch.ones(8)},
            "'backbone.blocks.0.attn.q_norm.weight' is no part of classify",
        ),
        ({"cls_token": torch.ones(1, 1, 16)}, "'backbone.cls_token' is of shape"),
        ({"blocks.1.mlp.fc2.weight": None}, "has no 'backbone.blocks.1.mlp.fc2.weight'"),
    ):
        path = tmp_path / "changed.safetensors"
        save_file({k: w for k, w in (state | change).items() if w is not None}, path)
        with pytest.raises(ConfigError, match=message):
            reading.read(path, values={"backbone": {"heads": 4}})
    (tmp_path / "changed.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"changed\.safetensors: is damaged, or not a checkpoint"):
        reading.read(tmp_path / "changed.safetensors")


@pytest.mark.parametrize("words", ["heads=4", "backbone.heads", "model.heads=4", "backbone..x=1", "backbone.head=4"])
def test_words_that_are_not_known_are_one_line(words: str) -> None:
    with pytest.raises(ConfigError) as error:
        import_weights(str(CASES / "vit_cls" / "checkpoint.pth"), Path("nowhere"), words=[words, "backbone.heads=4"])
    assert "\n" not in str(error.value)
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(
    ("offline", "message"),
    [
        (True, "the hub is not reached (offline); fetch the folder and give its path"),
        (False, "cannot be fetched: [Errno 111] Connection refused; give a folder or a file instead"),
    ],
)
def test_a_hub_that_is_not_reached_is_one_line(
    offline: bool, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(SystemExit) as ended:
        cli.main(["import", "hf:owner/name", "--out", "nowhere"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"mrp: error: hf:owner/name: {message}\n"
    with pytest.raises(ConfigError, match="is no name of a model"):
        hub.fetch("hf:a/b/c")


def test_a_hub_that_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
    """The two calls of the hub's client, answered from a folder: what is asked for, and what is made of it."""
    import huggingface_hub

    folder = make("classify", pool="cls")
    export(folder, "timm", tmp_path / "hub")
    asked: list[Any] = []

    def snapshot(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tmp_path / "hub")

    files = [SimpleNamespace(rfilename=name) for name in os.listdir(tmp_path / "hub")]
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=files))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    found = reading.read("hf:owner/name@main")
    assert asked == [("owner/name", "main", ["config.json", "preprocessor_config.json", "model.safetensors"])]
    assert mrp.load("hf:owner/name@main").source["source"] == "hf:owner/name@main"
    assert torch.equal(found.tensors["head.weight"], mrp.load(folder).objective.state_dict()["head.weight"])


def test_shaking_reaches_every_part() -> None:
    """What these tests rest on: no weight is left at what it was built with, where a wrong name would go unseen."""
    layer = nn.Sequential()
    layer.add_module("objective", nn.Linear(2, 2))
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    shake(layer)
    assert all((tensor != before[name]).all() for name, tensor in layer.state_dict().items())
