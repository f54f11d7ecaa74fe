"""mrp.load: whichever checkpoint, whichever weights; and the example of the documentation."""

from __future__ import annotations

import contextlib
import json
import pickle
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mrp
from mrp.cli import _read, main
from mrp.config import ConfigError
from mrp.report.told import Told
from mrp.run import run_folder
from tests.interop.conftest import Make, images, make  # noqa: F401 -- the fixture

ROOT = Path(__file__).resolve().parent.parent


def test_it_is_loaded_only_when_asked_for() -> None:
    code = "import sys, mrp; assert 'torch' not in sys.modules; mrp.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        mrp.lode  # noqa: B018


def test_features_and_reconstructions(make: Make) -> None:  # noqa: F811
    model = mrp.load(make("mae"))
    assert (model.step, model.weights, model.missing) == (4, "student", ())
    assert model.features(images()).shape == (3, 32)
    mask, painted = model.reconstruct(images())
    assert mask.shape == (3, 16)
    assert painted.shape == (3, 3, 16, 16)
    assert model.to("cpu").backbone is model.backbone
    with pytest.raises(ValueError, match=r"images of shape \(count, 3, 16, 16\)"):
        model.features(torch.rand(3, 3, 8, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pixels: pixels * 255, r"floats from 0.* to 25.*; divide them by 255"),
        (lambda pixels: (pixels - 0.5) / 0.2, r"floats from -2.* leave out their normalisation"),
        (lambda pixels: (pixels * 255).to(torch.int32), r"torch.int32; convert them to torch.uint8"),
        (lambda pixels: pixels * torch.nan, r"floats from nan"),
    ],
    ids=["255", "normalised", "integers", "nan"],
)
def test_images_on_another_scale_are_refused(change: Any, message: str, make: Make) -> None:  # noqa: F811
    model = mrp.load(make("mae"))
    for ask in (model.features, model.reconstruct):
        with pytest.raises(ValueError, match=message):
            ask(change(images()))


def test_pixels_in_units_of_their_own_are_taken_as_training_took_them(make: Make) -> None:  # noqa: F811
    """They were refused, and 'divide them by 255' would have given wrong features."""
    model = mrp.load(make("mae"))
    before = model.features(images())
    data = model.run.data.model_copy(update={"mean": (280.0,) * 3, "std": (20.0,) * 3})
    model = replace(model, run=model.run.model_copy(update={"data": data}))
    old_mean, old_std = model.module.prepare.mean.clone(), model.module.prepare.std.clone()
    model.module.prepare.mean.fill_(280.0)
    model.module.prepare.std.fill_(20.0)
    kelvin = (images() - old_mean) / old_std * 20 + 280
    assert torch.allclose(model.features(kelvin), before, atol=1e-4)
    with pytest.raises(
        ValueError, match=r"floats from nan to nan, where finite numbers are expected; replace the others"
    ):
        model.features(kelvin * torch.nan)
    data = model.run.data.model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3})  # no units: not normalised
    model = replace(model, run=model.run.model_copy(update={"data": data}))
    with pytest.raises(ValueError, match="divide them by 255"):
        model.features(images() * 255)


def test_images_in_every_format_that_is_taken_give_the_same(make: Make) -> None:  # noqa: F811
    model = mrp.load(make("mae"))
    pixels = (images() * 255).to(torch.uint8)
    for same in (pixels.float() / 255, pixels.double() / 255, (pixels.to(torch.int32) * 257).to(torch.uint16)):
        assert torch.allclose(model.features(same), model.features(pixels), atol=1e-5)


def test_no_images_have_no_features_and_what_is_no_tensor_is_named(make: Make) -> None:  # noqa: F811
    model = mrp.load(make("mae"))
    assert model.features(images(0)).shape == (0, 32)
    with pytest.raises(TypeError, match=r"images are a ndarray, where a tensor is expected; see torch.from_numpy"):
        model.features(images().numpy())  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["mae", "simmim", "data2vec2"])
def test_a_model_can_be_pickled(method: str, make: Make) -> None:  # noqa: F811
    model = mrp.load(make(method))
    again: mrp.Model = pickle.loads(pickle.dumps(model))
    assert torch.equal(again.features(images()), model.features(images()))


def test_a_model_is_the_same_whatever_the_caller_has_set_in_torch(make: Make) -> None:  # noqa: F811
    folder, pixels = make("mae"), images()
    expected = mrp.load(folder).features(pixels), mrp.load(folder).reconstruct(pixels)[1]
    with foreign_settings():
        torch.manual_seed(3)
        model = mrp.load(folder)
        drawn = torch.rand(2, device="cpu")
        found = model.features(pixels), model.reconstruct(pixels)[1]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert model.backbone.cls_token.dtype == torch.float32
    assert not model.backbone.cls_token.is_inference()
    with foreign_settings():
        torch.manual_seed(3)
        assert torch.equal(drawn, torch.rand(2, device="cpu"))


@contextlib.contextmanager
def foreign_settings() -> Iterator[None]:
    """What a notebook may have set for its own work, and all that mrp must neither obey nor change."""
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            yield
            assert torch.get_default_dtype() == torch.float64
            assert torch.get_default_device().type == "meta"
            assert torch.is_inference_mode_enabled()
            assert torch.is_autocast_enabled("cpu")
            assert not torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_model_is_shown_in_one_line(make: Make) -> None:  # noqa: F811
    folder = make("mae")
    assert repr(mrp.load(folder)) == f"Model(folder={folder!r}, step=4, weights='student')"


def test_a_checkpoint_is_found_by_folder_and_by_step(make: Make) -> None:  # noqa: F811
    folder = make("mae")
    own = mrp.load(folder).features(images())
    assert torch.equal(mrp.load(folder / "checkpoints" / "step-00000004").features(images()), own)
    assert torch.equal(mrp.load(folder, step=4).features(images()), own)
    assert torch.equal(mrp.load(folder / "checkpoints" / "step-00000004" / "model.safetensors").features(images()), own)
    (folder / "checkpoints" / "latest").write_text("step-00000004\n")
    assert torch.equal(mrp.load(folder / "checkpoints" / "latest").features(images()), own)
    assert Told.of(folder / "checkpoints" / "latest").step == 4
    alone = folder.with_name("step-00000004")
    (folder / "checkpoints" / "step-00000004").rename(alone)  # it explains itself
    assert torch.equal(mrp.load(alone).features(images()), own)


def test_the_teacher_and_the_average_are_other_weights(make: Make) -> None:  # noqa: F811
    folder = make("data2vec", average=True)
    student, teacher, average = (mrp.load(folder, weights=name) for name in ("student", "teacher", "average"))  # type: ignore[arg-type]
    state = student.objective.state_dict()
    for name, tensor in teacher.backbone.state_dict().items():
        expected = state.get(f"teacher.backbone.{name}", state[f"backbone.{name}"])  # what is fixed they share
        assert torch.equal(tensor, expected)
    assert not torch.equal(student.backbone.cls_token, teacher.backbone.cls_token)
    assert torch.equal(average.backbone.cls_token, student.backbone.cls_token + 1)
    assert torch.equal(average.backbone.pos_embed, student.backbone.pos_embed)
    assert mrp.load(folder).weights == "average"
    assert mrp.load(make("data2vec", name="other")).weights == "student"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "teacher"}, "holds no teacher"),
        ({"weights": "average"}, "holds no average"),
        ({"step": 3}, "has no checkpoint of step 3; there are 4"),
    ],
)
def test_what_is_not_there_is_one_line(arguments: dict[str, object], message: str, make: Make) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match=message):
        mrp.load(make("mae"), **arguments)  # type: ignore[arg-type]


def test_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        mrp.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="neither a run of mrp nor a folder of timm or transformers"):
        mrp.load(tmp_path)


def test_no_weights_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "data.test=digits"])
    assert capsys.readouterr().err.startswith("mrp: error: no weights are given; name a run")
    with pytest.raises(ConfigError, match="no weights are given"):
        mrp.judge([], "small")


def test_the_example_runs(make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(sys, "argv", ["features.py", str(make("mae"))])
    runpy.run_path(str(ROOT / "examples" / "features.py"), run_name="__main__")
    assert "features of 8 images: (8, 32)" in capsys.readouterr().out


# The same as the command, for Python

SMALL = {
    "batch": 16, "length": "4 steps", "optim.warmup": "1 steps", "checkpoint": {"every": "2 steps"},
    "backbone": {"depth": 1, "width": 16, "heads": 2}, "objective.decoder": {"width": 16, "depth": 1, "heads": 2},
    "track.every": 1,
}  # fmt: skip
WORDS = [
    "batch=16", "length=4 steps", "optim.warmup=1 steps", "checkpoint.every=2 steps", "backbone.depth=1",
    "backbone.width=16", "backbone.heads=2", "objective.decoder={width: 16, depth: 1, heads: 2}", "track.every=1",
]  # fmt: skip


def left_by(run: Path) -> dict[str, object]:
    """What a run leaves that does not depend on when, where and how fast it ran."""
    weights = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*.safetensors")}
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    texts = {name: (run / name).read_text() for name in ("config.yaml", "identity.json")}
    return weights | {"losses": losses} | texts


def command_error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    return capsys.readouterr().err.removeprefix("mrp: error: ").strip()


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "run"
    assert mrp.pretrain("demo", folder=folder, **SMALL) == folder
    return folder


def test_pretrain_does_what_its_command_does(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["pretrain", "demo", *WORDS, "--folder", str(tmp_path / "run")])
    assert left_by(tmp_path / "run") == left_by(pretrained)
    for words, overrides in (
        (["optim.lr=fast"], {"optim.lr": "fast"}),
        (["optim.betas=[1]"], {"optim": {"betas": [1]}}),
    ):
        with pytest.raises(ConfigError) as caught:
            mrp.pretrain("demo", folder=tmp_path / "other", **overrides)
        assert str(caught.value) == command_error(capsys, "pretrain", "demo", *words)
    assert not (tmp_path / "other").exists()


def test_a_training_is_the_same_whatever_the_caller_has_set_in_torch(pretrained: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    with foreign_settings():
        torch.manual_seed(3)
        mrp.pretrain("demo", folder=tmp_path / "run", **SMALL)
        drawn = torch.rand(2, dtype=torch.float32, device="cpu")
    assert left_by(tmp_path / "run") == left_by(pretrained)
    assert torch.equal(drawn, expected)


def test_a_tilde_is_the_home_folder(pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells leave it in `--folder=~/runs` and Python everywhere: a run was written into a folder called `~`."""
    monkeypatch.setenv("HOME", str(pretrained.parent))
    assert mrp.load("~/run").folder == pretrained
    assert run_folder("demo", "~/run") == pretrained
    assert run_folder("demo") == Path("runs/demo")
    assert _read(["pretrain", "demo", "--folder=~/run"]).folder == str(pretrained)
    with pytest.raises(ConfigError, match=rf"{pretrained.parent}/other"):
        mrp.probe("~/other")


def test_a_second_training_in_the_same_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = threading.Lock()
    monkeypatch.setattr("mrp.session._TRAINING", locked)
    with locked, pytest.raises(ConfigError, match="trains another run already; train each in a process of its own"):
        mrp.pretrain("demo", folder=tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_finetune_does_what_its_command_does(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["batch=16", "length=4 steps", "optim.warmup=1 steps", "validation.every=4 steps", "track.every=1"]
    short = dict(word.split("=") for word in words) | {"batch": 16, "track.every": 1}
    folder = mrp.finetune("finetune_tiny_digits", folder=tmp_path / "one", init=pretrained, backbone=None, **short)
    command = [
        "finetune",
        "finetune_tiny_digits",
        f"init={pretrained}",
        "backbone=",
        *words,
        "--folder",
        str(tmp_path / "two"),
    ]
    main(command)
    assert left_by(tmp_path / "two") == left_by(folder)
    assert (folder / "validation.json").read_bytes() == (tmp_path / "two/validation.json").read_bytes()
    for recipe, wrong in (("finetune_tiny_digits", {}), ("demo", {"init": pretrained, "backbone": None})):
        with pytest.raises(ConfigError) as caught:
            mrp.finetune(recipe, folder=tmp_path / "three", **wrong)
        said = [f"{key}={value or ''}" for key, value in wrong.items()]
        assert str(caught.value) == command_error(capsys, "finetune", recipe, *said)


def test_probe_does_what_its_command_does(pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(pretrained, tmp_path / "run")
    path = mrp.probe(pretrained).path
    main(["probe", str(copy)])
    main(["probe", str(copy), "--evaluator", "knn", "data.fraction=0.5"])
    mrp.probe(pretrained, evaluators=["knn"], **{"data.fraction": 0.5})
    assert json.loads((copy / path.name).read_text()) == json.loads(path.read_text())
    with pytest.raises(ConfigError) as caught:
        mrp.probe(tmp_path / "nowhere")
    assert str(caught.value) == command_error(capsys, "probe", str(tmp_path / "nowhere"))


def test_what_mrp_offers_is_listed_and_loads_nothing() -> None:
    code = "import sys, mrp; print(*dir(mrp)); assert 'torch' not in sys.modules"
    names = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {"Batch", "Model", "Objective", "Output", "finetune", "judge", "load", "pretrain", "probe"} <= set(
        names.split()
    )
