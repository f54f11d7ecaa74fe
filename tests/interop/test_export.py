"""What we export is loaded by the other side with its own call, and answers as we do."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import mrp
from mrp.api import Model, evaluate
from mrp.cli import main
from mrp.config import ConfigError
from mrp.data.augment import View
from mrp.exchange import card as card_module
from mrp.exchange.export import _preprocessing, export
from mrp.exchange.importing import import_weights
from mrp.interop import official_export, reading, untrusted
from mrp.model import class_names
from mrp.models.vit import embed, encode
from mrp.objectives import mae
from tests.interop.conftest import Make, images
from tests.probed import write_probe
from tests.tagged_digits import FILE, TAGS

CASES = Path(__file__).parent.parent / "reference" / "cases"
RELATIVE = {"positions": "none", "relative_bias": "shared", "layer_scale": 0.1, "qkv_bias": "query_value"}
EVERY_KIND: dict[str, dict[str, Any]] = {
    "mae": {"method": "mae"},
    "mae of another eps": {"method": "mae", "backbone": {"norm_eps": 1e-5}},
    "simmim": {"method": "simmim", "backbone": RELATIVE},
    "data2vec": {"method": "data2vec", "backbone": {"positions": "learned", "layer_scale": 0.1}},
    "class token": {"method": "classify", "pool": "cls"},
    "mean": {"method": "classify", "pool": "mean", "backbone": {"relative_bias": "per_block"}},
    "probe": {"method": "classify", "pool": "cls", "frozen": True},
}


def answers(model: Model, pixels: Tensor) -> Tensor:
    """Scores where there is a head, or else features."""
    with torch.no_grad():
        if hasattr(model.objective, "predict") and model.run.name == "classify":
            return model.objective.predict(model.module.prepare(pixels))[1]  # type: ignore[operator, no-any-return]
        return model.features(pixels)


def exported(folder: Path, to: str, **options: Any) -> Path:
    out = folder.with_name(f"{folder.name}-{to}")
    apart = export(folder, to, out, **options)
    assert apart is not None, "it was not compared"
    assert apart <= 1e-5
    return out


def close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("said", "kept"), [({"crop_mode": "squash"}, None), ({"crop_mode": "center"}, 1.0), ({"crop_pct": 0.9}, 224 / 256)]
)
def test_evaluation_sees_as_much_of_an_image_as_timm_says(make: Make, said: dict[str, Any], kept: float | None) -> None:
    """A run on small images that are not cropped would else be measured on crops once it is imported again."""
    out = exported(make("mae"), "timm")
    about = json.loads((out / "config.json").read_text())
    about["pretrained_cfg"] |= {"crop_pct": 1.0} | said
    (out / "config.json").write_text(json.dumps(about))
    data = mrp.load(out).run.data
    assert data.frame.kept(data.shape) == kept


@pytest.mark.parametrize("to", ["timm", "transformers"])
@pytest.mark.parametrize(
    "augment", ["resize", {"name": "resize", "flip": True}, "crop", {"name": "crop", "whole_from": 16}]
)
def test_what_comes_back_sees_the_same_of_an_image(augment: Any, to: str, make: Make) -> None:
    """Else its features, and what is measured of it, would be those of other images."""
    folder = make("classify", pool="cls", data={"augment": augment})
    out = exported(folder, to)
    import_weights(str(out), out.with_name("imported"))
    ours, picture = mrp.load(folder), (images(1, (40, 24))[0] * 255).to(torch.uint8)
    seen = View(ours.run.data, train=False)(picture, 0)
    for path in (out, out.with_name("imported")):
        again = mrp.load(path)
        assert again.run.data.frame.name == ours.run.data.frame.name  # type: ignore[attr-defined]
        assert again.run.data.frame.kept((16, 16)) == ours.run.data.frame.kept((16, 16))
        same = View(again.run.data, train=False)(picture, 0)
        assert torch.equal(same, seen)
        assert close(again.features(same[None]), ours.features(seen[None]))


@pytest.mark.parametrize("to", ["timm", "transformers"])
def test_a_head_comes_back_with_its_tags(
    to: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make("classify", data={"train": {"name": FILE}, "augment": "resize"}, classes=4, loss="tags")
    out, imported = exported(folder, to), tmp_path / "imported"
    config = json.loads((out / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    import_weights(str(out), imported)
    some = {"test": {"name": FILE, "tags": ["seven", "even"]}}
    found = []
    for path in (folder, out, imported):
        model = mrp.load(path)
        assert (model.run.objective.loss, class_names(model)) == ("tags", TAGS)  # type: ignore[attr-defined]
        answer = evaluate(path, data=some)
        assert answer is not None
        found.append([cell.measure.value for _, cell in sorted(answer.page.cells.items()) if cell.measure])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[1] == pytest.approx(found[2], rel=1e-6)
    unnamed = {"id2label": {str(number): f"LABEL_{number}" for number in range(4)}}
    config = {key: value for key, value in config.items() if key != "label_names"} | unnamed
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"has scores for 4 tags, .* what they are called; give --head FILE"):
        evaluate(out, data=some)
    head = tmp_path / "names.txt"
    head.write_text("\n".join(TAGS))
    capsys.readouterr()
    main(["evaluate", str(out), f"data.test={{name: {FILE}}}", "--head", str(head)])
    assert f"Names of the 4 tags: {head}." in " ".join(capsys.readouterr().out.split())
    head.write_text("\n".join(TAGS[:3]))
    with pytest.raises(ConfigError, match="names 3 tags, but"):
        evaluate(out, data=some, head=head)


def renamed(folder: Path, names: list[str]) -> None:
    """Writes other names of the classes into an exported folder."""
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(number): name for number, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(config))


def test_classes_that_are_called_otherwise_are_those_of_the_test_data(make: Make, tmp_path: Path) -> None:
    """Folders of images are often called otherwise (n01440764) than other people's heads call the same classes."""
    out = exported(make("classify", classes=10), "transformers")
    assert list(json.loads((out / "config.json").read_text())["id2label"].values()) == [*"0123456789"]
    names = [f"digit {number}" for number in range(10)]
    renamed(out, names)
    assert class_names(mrp.load(out)) == tuple(names)
    found = evaluate(out, data={"test": "digits"})
    assert found is not None
    assert "Names of the 10 classes: the class folders of test." in found.page.notes
    (tmp_path / "map.txt").write_text("".join(f"{number}\tdigit {number}\n" for number in range(10)))
    mapped = evaluate(out, tests=[f"d=digits,{tmp_path}/map.txt"])
    assert mapped is not None
    assert mapped.page.notes == (f"Names of the 10 classes: as {out} has them.",)
    assert mapped.page.cells[0, 0].measure.value == found.page.cells[0, 0].measure.value


def test_a_classifier_that_numbers_the_same_classes_otherwise_is_measured_by_their_names(
    make: Make, tmp_path: Path
) -> None:
    out, other = exported(make("classify", classes=10), "transformers"), tmp_path / "other"
    shutil.copytree(out, other)
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    tensors = load_file(other / "model.safetensors")
    save_file(
        {name: tensor[order] if name.startswith("classifier.") else tensor for name, tensor in tensors.items()},
        other / "model.safetensors",
        {"format": "pt"},
    )
    renamed(other, [str(number) for number in order])
    found, same = (evaluate(folder, data={"test": "digits"}) for folder in (out, other))
    assert found is not None
    assert same is not None
    assert same.page.cells[0, 0].measure.value == found.page.cells[0, 0].measure.value
    renamed(other, ["0", "one", *map(str, range(2, 10))])
    with pytest.raises(ConfigError, match=r"1 of its 10 classes \('1'\) are none of the classifier's 10"):
        evaluate(other, data={"test": "digits"})


@pytest.mark.parametrize("kind", [kind for kind in EVERY_KIND if "eps" not in kind])
def test_timm_loads_it_with_its_own_call(kind: str, make: Make) -> None:
    folder = make(**EVERY_KIND[kind])
    model, out = mrp.load(folder), exported(folder, "timm")
    pixels = images(5)
    ours = answers(model, pixels)
    with torch.no_grad():
        theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        assert close(ours, theirs(model.module.prepare(pixels)))
        config = json.loads((out / "config.json").read_text())
        path = out / "model.safetensors"
        again = timm.create_model(config["architecture"], checkpoint_path=path, **config["model_args"]).eval()
        assert close(ours, again(model.module.prepare(pixels)))
    seen = timm.data.resolve_model_data_config(theirs)
    assert seen["input_size"] == (3, 16, 16)
    assert (list(seen["mean"]), list(seen["std"]), seen["interpolation"]) == ([0.4] * 3, [0.2] * 3, "bicubic")
    assert seen["crop_pct"] == pytest.approx(224 / 256)


@pytest.mark.parametrize("target", ["pixels", "pixels_norm"])
@pytest.mark.parametrize("backbone", [{}, {"positions": "learned", "norm_eps": 1e-4}], ids=["sincos", "learned"])
def test_vitmae_has_the_same_loss_on_the_same_noise(target: str, backbone: dict[str, Any], make: Make) -> None:
    transformers = pytest.importorskip("transformers")
    folder = make("mae", backbone, target=target)
    model, out = mrp.load(folder), exported(folder, "transformers", whole=True)
    theirs, told = transformers.ViTMAEForPreTraining.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert theirs.config.norm_pix_loss == (target == "pixels_norm")
    objective = model.objective
    assert isinstance(objective, mae.Objective)
    noise = torch.rand(4, objective.num_patches, generator=torch.Generator().manual_seed(2))
    kept = noise.argsort(1)[:, : objective.num_visible]
    mask = torch.ones_like(noise, dtype=torch.bool).scatter(1, kept, False)
    batch = model.batch(images(4))
    with torch.no_grad():
        ours, found = objective(batch, mask), theirs.eval()(batch.images, noise=noise)
    assert torch.equal(found.mask.bool(), mask)
    assert float(found.loss) == pytest.approx(float(ours.loss), rel=1e-5)
    assert close(objective.predict(batch.images, mask)[1], found.logits)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("class token", "ViTForImageClassification"),
        ("probe", "ViTForImageClassification"),
        ("mean", "Data2VecVisionForImageClassification"),
        ("simmim", "Data2VecVisionModel"),
        ("data2vec", "Data2VecVisionModel"),
    ],
)
def test_transformers_loads_it_with_its_own_call(kind: str, name: str, make: Make) -> None:
    transformers = pytest.importorskip("transformers")
    folder = make(**EVERY_KIND[kind])
    model, out = mrp.load(folder), exported(folder, "transformers")
    theirs, told = getattr(transformers, name).from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    pixels = images(5)
    with torch.no_grad():
        found = theirs.eval()(model.module.prepare(pixels))
    assert close(answers(model, pixels), found.logits if "Classification" in name else found[0][:, 0])


def test_their_image_processor_does_what_evaluation_does(make: Make) -> None:
    transformers = pytest.importorskip("transformers")
    folder = make("mae")
    model, out = mrp.load(folder), exported(folder, "transformers")
    picture = (images(1, (18, 18))[0] * 255).to(torch.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    seen = mrp.data.augment.View(model.run.data, train=False)(picture, 0)  # type: ignore[attr-defined]
    assert theirs.shape == (1, 3, 16, 16)
    assert torch.allclose(theirs[0], model.module.prepare(seen[None])[0], atol=0.05)  # one grey level of 255, over 0.2


@pytest.mark.parametrize("kind", ["mae", "simmim", "mean"])
def test_onnx_runtime_says_the_same_of_any_number_of_images(kind: str, make: Make) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = make(**EVERY_KIND[kind])
    model, out = mrp.load(folder), exported(folder, "onnx")
    session = onnxruntime.InferenceSession(out / "model.onnx")
    for count in (1, 5):
        pixels = images(count)
        found = session.run(None, {"images": pixels.numpy()})
        assert close(model.features(pixels), torch.from_numpy(found[0]))
        assert close(answers(model, pixels), torch.from_numpy(found[-1]))
    assert b"/mrp/" not in (out / "model.onnx").read_bytes(), "where this machine keeps its code"


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11, about its own buffer
def test_torch_exports_format_says_the_same_of_any_number_of_images(make: Make) -> None:
    folder = make("data2vec2", {"norm": "post"})  # which timm and transformers cannot hold
    model, out = mrp.load(folder), exported(folder, "torch-export")
    program = torch.export.load(out / "model.pt2").module()
    for count in (1, 5):
        assert close(model.features(images(count)), program(images(count))[0])
    with zipfile.ZipFile(out / "model.pt2") as archive:  # which torch.save writes without compression
        assert not [name for name in archive.namelist() if b"/mrp/" in archive.read(name)]


@pytest.mark.parametrize(
    "case", sorted(path.parent.name for path in CASES.glob("*/checkpoint.pth") if path.parent.name != "capi")
)
def test_official_names_come_back_bit_by_bit(case: str, tmp_path: Path) -> None:
    from mrp import model as imported

    values = {"backbone": {"heads": 4}, "objective": {}}
    if case.startswith(("mae", "umae", "crossmae")):
        values["objective"] = {"decoder": {"heads": 4}}
    elif case == "ijepa":
        values["objective"] = {"predictor": {"heads": 4}}
    elif case.startswith("simmim"):
        values["objective"] = {"mask_unit": 8}
    elif case == "data2vec2":
        values["objective"] = {"layers": 3}  # the others are kept in the image encoder there
    elif case.startswith(("data2vec", "maskfeat")):
        values["objective"] = {"smallest_block": 1}
    path = CASES / case / "checkpoint.pth"
    found = reading.read(path, values=values)
    assert not found.missing
    objective = imported.step_of(found, imported.run_of(found)).objective
    before = untrusted.read(path)
    if case.startswith(("crossmae", "ijepa")):
        with pytest.raises(ConfigError, match="no official names are known for its weights"):
            official_export.write(tmp_path, objective)  # type: ignore[arg-type]
        return
    official_export.write(tmp_path, objective)  # type: ignore[arg-type]
    after = untrusted.read(tmp_path / "checkpoint.pth")
    key = "state_dict" if case == "maskfeat" else "model"
    # An online classifier is no part of U-MAE, and MaskFeat's filters of gradients are no weights.
    dropped = {"umae": ("fc.", "fc_norm."), "maskfeat": ("target_generator.",)}.get(case, ())
    assert after[key].keys() == {name for name in before[key] if not name.startswith(dropped)}
    assert all(torch.equal(tensor, before[key][name]) for name, tensor in after[key].items())
    assert all(torch.equal(tensor, before["teacher"][name]) for name, tensor in after.get("teacher", {}).items())
    assert ("teacher" in after) == ("teacher" in before)


def test_the_weights_that_were_asked_for_go_out(make: Make) -> None:
    folder = make("data2vec", average=True)
    tokens = {}
    for weights in ("student", "teacher", "average"):
        out = folder.with_name(weights)
        export(folder, "timm", out, weights)  # type: ignore[arg-type]
        tokens[weights] = timm.create_model(f"local-dir:{out}", pretrained=True).cls_token
        assert torch.equal(tokens[weights], mrp.load(folder, weights).backbone.cls_token)  # type: ignore[arg-type]
    assert not torch.equal(tokens["student"], tokens["teacher"])
    assert not torch.equal(tokens["student"], tokens["average"])


def test_the_card_tells_what_it_can_and_leaves_the_licence_open(make: Make) -> None:
    folder = make("mae")
    (folder / "metrics.jsonl").write_text('{"step": 4, "loss": 0.25, "memory/host_gib": 1}\n{"step": 9, "loss": 0.5}\n')
    write_probe(folder, 4, linear={"accuracy": 0.75, "heads": 9})
    card = (exported(folder, "timm") / "README.md").read_text()
    assert "license: unknown  # confirm" in card
    assert "To be confirmed by whoever publishes this" in card
    assert "library_name: timm" in card
    assert "Data: `digits`" in card
    assert "| loss | 0.25 |" in card
    assert "| probe.trained.linear.accuracy | 0.75 |" in card
    assert "`decoder`" in card
    assert 'create_model("local-dir:run-timm", pretrained=True)' in card
    assert str(folder.parent) not in card
    assert "memory" not in card


@pytest.mark.parametrize("weights", ["student", "average"])
def test_the_card_has_no_numbers_of_another_step_or_of_other_weights(make: Make, weights: Any) -> None:
    """Whoever publishes it would claim them of these weights."""
    folder = make("classify", average=True)
    line = {"step": 4, "loss": 0.2, "validation/accuracy": 0.5, "validation/average/accuracy": 0.6}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    write_probe(folder, 2, linear={"accuracy": 0.7})  # of a checkpoint before it
    write_probe(folder, 4, knn={"accuracy": 0.8})  # of the student
    of_both = {name: {"accuracy": {"accuracy": 0.9}} for name in ("student", "average")}
    (folder / "validation.json").write_text(json.dumps({"step": 9, **of_both}))  # the run has gone on
    out = folder.with_name("out")
    export(folder, "timm", out, weights=weights)
    table = (out / "README.md").read_text().partition("## Metrics")[2].partition("## Licence")[0]
    told = dict(re.findall(r"^\| (\S+) \| ([0-9.]+) \|$", table, re.MULTILINE))
    own = {"validation/average/accuracy": "0.6"}
    if weights == "student":
        own = {"validation/accuracy": "0.5", "probe.trained.knn.accuracy": "0.8"}
    assert told == {"step": "4", "loss": "0.2"} | own


@pytest.mark.parametrize(
    ("kind", "to", "options"),
    [
        ("mae", "timm", {}),
        ("mae", "transformers", {}),
        ("mae", "transformers", {"whole": True}),
        ("data2vec", "transformers", {}),
        ("mean", "transformers", {}),
    ],
)
def test_what_the_card_says_of_loading_is_so(
    kind: str, to: str, options: dict[str, Any], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(to)
    folder = make(**EVERY_KIND[kind])
    out = exported(folder, to, **options)
    card = (out / "README.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippet
    monkeypatch.chdir(out.parent)
    pictures = (images(3) * 255).to(torch.uint8)
    names: dict[str, Any] = {"images": list(pictures)}
    with torch.no_grad():
        exec(snippet[1], names)
    assert ("pipeline_tag" in card) == (not options)
    if to == "transformers" and not options:
        model = mrp.load(folder)
        prepared = names["inputs"]["pixel_values"]
        theirs = names["scores" if kind == "mean" else "features"]
        with torch.no_grad():
            tokens = encode(model.backbone, embed(model.backbone, prepared)).tokens
            expected = model.objective.predict(prepared)[1] if kind == "mean" else tokens[:, 0]  # type: ignore[operator]
        assert close(expected, theirs)


def test_the_encoder_of_mae_answers_the_same_at_every_call(make: Make) -> None:
    """ViTMAE, which hides patches anew at each call, is written only where the whole is asked for."""
    transformers = pytest.importorskip("transformers")
    folder = make("mae")
    model = transformers.AutoModel.from_pretrained(exported(folder, "transformers"), add_pooling_layer=False).eval()
    ours = mrp.load(folder)
    with torch.no_grad():
        prepared = ours.module.prepare(images(5))
        first, second = (model(prepared).last_hidden_state for _ in range(2))
        tokens = encode(ours.backbone, embed(ours.backbone, prepared)).tokens
    assert torch.equal(first, second)
    assert close(tokens, first)


@pytest.mark.parametrize(
    ("method", "to", "message"),
    [
        ("simmim", "transformers", "--whole: there is no ViTMAE to write, since its method is not mae"),
        ("mae", "timm", "--whole: is for --to transformers"),
    ],
)
def test_the_whole_of_what_has_none_is_refused(method: str, to: str, message: str, make: Make) -> None:
    with pytest.raises(ConfigError, match=message):
        export(make(method), to, Path("nowhere"), whole=True)
    assert not Path("nowhere").exists()


def test_the_card_shows_commands_and_data_without_the_folders_of_this_machine(make: Make, tmp_path: Path) -> None:
    pictures = tmp_path / "secret" / "my pictures, and more" / "in1k"
    for name in "ab":
        (pictures / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(pictures / name / "0.png")
    table = pictures.parent / "labels of 2026.csv"
    table.write_text("image,class\na/0,x\nb/0,y\n")
    labels = {"table": str(table), "prefix": "/secret/ours"}
    folder = make("mae", data={"train": {"name": "folder", "path": str(pictures)}, "labels": labels})
    command = [
        "pretrain", "demo", "length=4 steps", "init={from: runs/mae, resample: true}",
        "data.labels={table: /secret/my pictures/t.csv, test: '/secret/a/e.csv'}",
        "data.train=/secret/my pictures/in1k",
    ]  # fmt: skip
    (folder / "environment.json").write_text(json.dumps({"starts": [{"command": command}, {"command": command}]}))
    card = (exported(folder, "timm") / "README.md").read_text()
    block = re.search(r"```sh\n(.*?)```", card, re.DOTALL)
    assert block
    (line,) = block[1].splitlines()
    of_table = "data.labels={table: t.csv, test: 'e.csv'}"
    assert shlex.split(line) == ["mrp", *command[:-2], of_table, "data.train=in1k"]
    assert not re.search("secret|my pictures", card)
    assert "train: {name: folder, path: in1k, classes: true}" in card
    assert "table: labels of 2026.csv," in card
    assert "prefix: ours," in card
    model = mrp.load(folder)
    method = model.run.objective.model_copy(update={"name": "/secret/mine.py"})  # as that of a file of one's own
    own = replace(model, run=model.run.model_copy(update={"objective": method}))
    about = card_module.Exported("official", False, "mine", _preprocessing(model), "", None)
    told = card_module.text(own, about)
    assert "trained with **mine.py**" in told
    assert "/secret" not in told


def test_an_image_of_other_sides_goes_to_timm(make: Make) -> None:
    folder = make("mae", size=[16, 24])
    exported(folder, "timm")
    with pytest.raises(ConfigError, match="a grid of 4x6 patches is not square"):
        export(folder, "transformers", folder.with_name("other"), whole=True)


@pytest.mark.parametrize(("size", "share"), [(16, 0.875), (8, 1.0)])
def test_images_that_have_the_size_of_the_model_are_not_cut(make: Make, size: int, share: float) -> None:
    """Evaluation takes them whole; digits are 8 pixels wide."""
    out = exported(make("mae", size=size), "timm")
    assert json.loads((out / "config.json").read_text())["pretrained_cfg"]["crop_pct"] == share
    said = f"(by mrp, one of exactly {size}x{size} is taken whole)"
    assert (said in (out / "README.md").read_text()) is (share < 1)


@pytest.mark.parametrize(("size", "squeezed"), [(16, False), ([16, 24], True)])
def test_a_processor_that_prepares_images_otherwise_than_the_run_is_told_of(
    make: Make, size: Any, squeezed: bool
) -> None:
    """Its features would be those of other images, and no check of the model would show it."""
    out = make("mae", size=size).with_name("out")
    export(make("mae", size=size), "transformers", out)
    said = json.loads((out / "preprocessor_config.json").read_text())
    assert said["do_center_crop"] is not squeezed
    assert ("**The image processor in this folder does not do this**" in (out / "README.md").read_text()) is squeezed


@pytest.mark.parametrize(
    ("method", "backbone", "to", "message"),
    [
        ("data2vec2", {"norm": "post"}, "timm", "backbone.norm: post is what timm has no model for"),
        ("data2vec2", {"norm": "post"}, "transformers", "backbone.norm: post is what transformers has no model for"),
        ("mae", {"norm_eps": 1e-5}, "timm", "backbone.norm_eps: 1e-05 is what timm has no model for"),
        ("mae", {"registers": 2}, "transformers", "backbone.registers: 2 is what transformers has no model for"),
        ("mae", {"class_token": False}, "transformers", "backbone.class_token: false is what transformers has"),
        ("mae", {"patch": [4, 8]}, "transformers", r"backbone.patch: \[4, 8\] is what transformers has no model for"),
        ("mae", {"layer_scale": 0.1}, "official", "backbone.layer_scale is what the official mae has no model for"),
        ("data2vec", {"layer_scale": 0.1}, "official", "backbone.layer_scale with qkv_bias: all is what the official"),
        ("simmim", {"registers": 1}, "official", "backbone.registers: 1 is what the official simmim has no model for"),
        ("mae", {}, "tim", "--to: 'tim' is unknown; did you mean 'timm'"),
    ],
)
def test_what_cannot_be_represented_is_refused_with_the_reason(
    method: str, backbone: dict[str, Any], to: str, message: str, make: Make
) -> None:
    folder = make(method, backbone)
    out = folder.with_name("out")
    with pytest.raises(ConfigError, match=message) as error:
        export(folder, to, out)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["run"], "something was left behind"


def test_positions_that_transformers_has_for_squares_alone_are_refused_on_others(make: Make) -> None:
    folder = make("mae", {"layer_scale": 0.1}, size=(16, 12))
    with pytest.raises(ConfigError, match=r"layer_scale or pool: mean, with positions, on images of \[16, 12\] is"):
        export(folder, "transformers", folder.with_name("out"))


@pytest.mark.parametrize(
    "fault",
    [SafetensorError("I/O error: No space left on device (os error 28)"), OSError(28, "No space left on device")],
)
def test_a_full_disk_is_one_line_that_names_the_folder(
    fault: Exception, make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(*arguments: object) -> str:
        raise fault

    folder = make("mae")
    monkeypatch.setattr("mrp.interop.timm_export.write", write)
    with pytest.raises(SystemExit):
        main(["export", str(folder), "--to", "timm", "--out", str(folder.with_name("out"))])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mrp: error: {folder.with_name('out')}: ")
    assert "No space left on device" in line
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


def test_nothing_is_overwritten(make: Make) -> None:
    folder = make("mae")
    with pytest.raises(ConfigError, match="is there already and not empty"):
        export(folder, "timm", folder)
