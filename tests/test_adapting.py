"""Which recipe follows from weights and images, and which images are held out; that a plan is never made twice."""
# ruff: noqa: F811 -- fixtures that are imported

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrp.adapting import LIST, PLAN, rules
from mrp.adapting.plan import make as plan
from mrp.adapting.plan import result
from mrp.adapting.rules import Choice, Start, recipe
from mrp.check import sources
from mrp.cli import main
from mrp.config import ConfigError, compose
from mrp.data.augment import View
from mrp.data.config import CacheConfig
from mrp.data.open import open_data, open_source
from mrp.data.storage.cache import Cache
from mrp.data.survey import Survey
from mrp.optim.config import Average
from mrp.run import load
from tests.interop.conftest import Make, make  # noqa: F401 -- the fixture

IMAGES = 240
BROKEN = ("a/007.png", "b/100.png", "c/200.png")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of small images, of which three are damaged and two are copies of others."""
    root = tmp_path_factory.mktemp("own") / "images"
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).normal(60 + 60 * (number % 3), 40, (20, 20, 3)).clip(0, 255)
        path = root / "abc"[number * 3 // IMAGES] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    (root / BROKEN[0]).write_bytes(b"")
    (root / BROKEN[1]).write_bytes(b"no image at all")
    (root / BROKEN[2]).write_bytes((root / BROKEN[2]).read_bytes()[:200])
    for copy in ("a/copy.png", "c/copy.png"):
        shutil.copy(root / "b" / "090.png", root / copy)
    return root


def sections(choices: list[Choice] | None) -> dict[str, Any]:
    assert choices is not None
    return {one.key: one.value for one in choices}


def test_weights_that_are_whole_go_on_with_their_own_loss_at_a_quarter_of_their_rate(
    images: Path,
    tmp_path: Path,
    make: Make,
) -> None:
    run = make(uniformity={"weight": 0.02})
    chosen = sections(plan(str(run), str(images), tmp_path / "out"))
    assert chosen["objective"]["name"] == "mae"
    assert chosen["objective"]["uniformity"]["weight"] == 0.02
    assert chosen["optim"]["lr"] == {"kind": "cosine", "value": 2.5e-4, "warmup": "10 %"}
    assert chosen["init"] == {"from": str(run), "weights": "student"}
    assert (chosen["data"]["size"], chosen["data"]["mean"]) == (16, [0.4] * 3)
    read = load(tmp_path / "out" / PLAN)  # the file says the same
    assert (read.batch, str(read.length), read.backbone.width) == (16, "200 epochs", 32)
    before = load(run / "config.yaml")
    assert before.optim.per is None  # the rate that its batch was trained with
    assert read.optim.peak_lr(16) == pytest.approx(before.optim.peak_lr(before.batch) / 4 * 16 / before.batch)


@pytest.mark.parametrize("to", ["official", "timm"])
def test_weights_of_others_are_imported_and_an_encoder_alone_gets_a_new_decoder(
    to: str,
    images: Path,
    tmp_path: Path,
    make: Make,
) -> None:
    main(["export", str(make("mae")), "--to", to, "--out", str(tmp_path / "theirs")])
    source = tmp_path / "theirs" / ("checkpoint.pth" if to == "official" else "")
    words = ["backbone.heads=4", "objective.decoder.heads=2"] if to == "official" else []
    choices = plan(str(source), str(images), tmp_path / "out", words=words)
    chosen, why = sections(choices), {one.key: one.why for one in choices}
    assert chosen["init"]["from"] == str(tmp_path / "out" / "before")
    if to == "official":
        assert chosen["objective"]["decoder"] == {"width": 16, "depth": 1, "heads": 2}
        assert chosen["optim"]["lr"]["value"] == 1.5e-4 / 4  # of the published recipe
        assert "layer_decay" not in chosen["optim"]
    else:
        assert "no decoder" in why["objective"]
        assert chosen["objective"]["decoder"] == {"width": 32, "depth": 4, "heads": 1}
        assert chosen["optim"]["layer_decay"] == 0.75
        assert chosen["optim"]["lr"]["value"] == 1.5e-4
        assert chosen["data"]["mean"] == [0.4] * 3  # of timm's config.json
        assert "augment" not in chosen["data"]  # that file says how models are evaluated: whole images are no crops
    load(tmp_path / "out" / PLAN)


def test_a_published_rate_is_that_of_its_batch() -> None:
    assert [(rules._published(name)["lr"], rules._published(name)["per"]) for name in ("mae", "data2vec", "ijepa")] == [
        (1.5e-4, 256), (2e-3, 2048), (1e-3, 2048),
    ]  # fmt: skip


def test_an_average_that_would_hardly_move_is_made_shorter(make: Make) -> None:
    """The verdict compares averages: one over 10,000 steps would be the weights before, after 195."""
    start = Start.of(make("mae"))
    for decay, planned in ((0.9999, 0.94872), (0.9, 0.9)):
        run = start.model.run.model_copy(update={"average": Average(decay=decay)})
        averaged = replace(start, model=replace(start.model, run=run))
        words = ["length=195 steps", "batch=16"]
        chosen = recipe(averaged, 1000, {"train": "digits", "test": "digits"}, np.ones((1, 2), np.int64), words=words)
        assert sections(chosen)["average"] == {"decay": pytest.approx(planned)}


def test_weights_of_another_kind(images: Path, tmp_path: Path, make: Make) -> None:
    classifier, run = make("classify", name="classifier"), make("mae")
    one = plan(str(classifier), str(images), tmp_path / "one")
    assert sections(one)["objective"]["name"] == "mae"
    two = plan(str(run), str(images), tmp_path / "two", method="simmim")
    assert sections(two)["objective"] == {"name": "simmim", "mask_unit": 4}
    with pytest.raises(ConfigError, match="--method: classify learns from labels"):
        plan(str(run), str(images), tmp_path / "three", method="classify")
    assert not (tmp_path / "three" / PLAN).exists()


def test_what_mae_cannot_serve_is_said_and_the_next_method_taken(tmp_path: Path, make: Make) -> None:
    """Of one patch MAE can hide nothing, and neither can SimMIM."""
    start = Start.of(make("classify", {"patch": 16}))
    with pytest.raises(ConfigError, match=r"mask_ratio: 0.75 of 1 patches leaves 0 visible"):
        recipe(start, 1000, {"train": "digits", "test": "digits"}, np.ones((1, 2), np.int64))


@pytest.mark.parametrize(("patch", "size", "unit"), [(16, 224, 32), (14, 224, 14), (16, 240, 16), (4, 32, 4)])
def test_simmim_hides_squares_of_32_pixels_where_they_fit(patch: int, size: int, unit: int) -> None:
    assert rules._unit((patch, patch), (size, size)) == unit


@pytest.mark.parametrize(
    ("images_", "length", "batch"),
    [(300, "200 epochs", 16), (3_000, "200 epochs", 64), (20_000, "100 epochs", 512), (300_000, "10 epochs", 1024)],
)
def test_length_and_batch_follow_from_the_number_of_images(
    images_: int,
    length: str,
    batch: int,
    make: Make,
) -> None:
    start, shapes = Start.of(make("mae")), np.full((1, 2), 16)
    for processes, expected in ((1, batch), (3, batch // 3 * 3)):
        chosen = sections(recipe(start, images_, {"train": "digits"}, shapes, processes))
        assert (chosen["length"], chosen["batch"]) == (length, expected)


def test_the_command_line_wins_over_the_rules(images: Path, tmp_path: Path, make: Make) -> None:
    words = ["length=40 steps", "optim.lr.value=1e-5", "data.size=32", "seed=3"]
    choices = plan(str(make("mae")), str(images), tmp_path / "out", words=words)
    chosen, why = sections(choices), {one.key: one.why for one in choices}
    assert chosen["init"]["resample"] is True
    assert chosen["checkpoint"]["every"] == "4 steps"
    assert chosen["seed"] == 3
    assert why["optim"].endswith("changed on the command line")
    assert load(tmp_path / "out" / PLAN).data.size == 32
    with pytest.raises(ConfigError, match=r"optim.lrr"):
        plan(str(tmp_path / "run"), str(images), tmp_path / "typo", words=["optim.lrr=1"])


def test_held_out_images_are_chosen_by_content_and_damaged_ones_left_out(
    images: Path,
    tmp_path: Path,
    make: Make,
) -> None:
    plan(str(make("mae")), str(images), tmp_path / "out")
    told = json.loads((tmp_path / "out" / LIST).read_text())
    assert [Path(one["where"]).relative_to(images).as_posix() for one in told["damaged"]] == list(BROKEN)
    run = load(tmp_path / "out" / PLAN)
    train, test = (open_source(getattr(run.data, split), split) for split in ("train", "test"))
    names = [{source.where(number) for number in range(len(source))} for source in (train, test)]
    assert not names[0] & names[1]
    assert len(names[0]) + len(names[1]) == IMAGES + 2 - len(BROKEN)
    assert train.classes == test.classes == ("a", "b", "c")
    copies = {str(images / name) for name in ("b/090.png", "a/copy.png", "c/copy.png")}
    assert copies <= names[0] or copies <= names[1]
    for check in sources.CHECKS:
        check(run.data.train)


def test_a_further_image_moves_none_to_the_other_side(images: Path, tmp_path: Path) -> None:
    def held_out(root: Path) -> set[str]:
        source = open_source(str(root), "train")
        return {Path(source.where(int(n))).name for n in Survey.of(source, 3, 2).held_out(0.3)}

    before = held_out(images)
    more = tmp_path / "more"
    shutil.copytree(images, more)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(more / "a" / "000-new.png")
    assert held_out(more) - {"000-new.png"} == before
    assert 40 < len(before) < 110


def test_a_plan_is_made_once_and_for_one_thing(
    images: Path, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = make("mae"), tmp_path / "out"
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS has none
    assert plan(str(run), str(images), out)
    text = (out / PLAN).read_text().replace("batch: 16", "batch: 8")
    (out / PLAN).write_text(text)
    assert plan(str(run), str(images), out) is None
    assert load(out / PLAN).batch == 8  # what was changed by hand stays
    with pytest.raises(ConfigError, match=r"is a plan for .*; give another folder with --out"):
        plan(str(run), str(images / "a"), out)
    assert result(out)["asked"]["data"] == str(images)


def test_images_that_were_exchanged_are_refused(images: Path, tmp_path: Path, make: Make) -> None:
    own = tmp_path / "own"
    shutil.copytree(images, own)
    plan(str(make("mae")), str(own), tmp_path / "out")
    run = load(tmp_path / "out" / PLAN)
    (own / "a" / "000.png").unlink()
    with pytest.raises(ConfigError, match="holds other images now"):
        open_source(run.data.train, "train")  # type: ignore[arg-type]
    (tmp_path / "out" / LIST).write_text("{}")
    with pytest.raises(ConfigError, match="is not a list that 'mrp adapt' has written"):
        open_source(run.data.train, "train")  # type: ignore[arg-type]


def test_test_images_of_ones_own_are_taken(images: Path, tmp_path: Path, make: Make) -> None:
    run = str(make("mae"))
    chosen = sections(plan(run, str(images), tmp_path / "one", words=[f"data.test={images / 'a'}"]))
    assert chosen["data"]["test"] == str(images / "a")
    listed = json.loads((tmp_path / "one" / LIST).read_text())  # damaged images are left out all the same
    assert listed["held_out"] == []
    digits = sections(plan(run, "digits", tmp_path / "two"))["data"]
    assert (digits["train"], digits["test"]) == ("digits", "digits")  # which hold test images themselves


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            lambda root: [path.write_bytes(b"") for path in (root / "a").glob("*")],
            r"83 of 242 images cannot be read, such",
        ),
        (lambda root: [shutil.rmtree(root / name) for name in "ab"], r"of its 8\d images 10 are to be held out"),
    ],
    ids=["damaged", "few"],
)
def test_images_that_cannot_serve(
    prepare: Any,
    message: str,
    images: Path,
    tmp_path: Path,
    make: Make,
) -> None:
    own = tmp_path / "own"
    shutil.copytree(images, own)
    prepare(own)
    with pytest.raises(ConfigError, match=message):
        plan(str(make("mae")), str(own), tmp_path / "out")


def test_a_folder_of_something_else_and_training_data_given_twice_are_refused(
    images: Path,
    tmp_path: Path,
    make: Make,
) -> None:
    run = make("mae")
    with pytest.raises(ConfigError, match=r"is not empty and holds no adapt.yaml"):
        plan(str(run), str(images), run)
    with pytest.raises(ConfigError, match=r"data.train: the images to train on are"):
        plan(str(run), str(images), tmp_path / "out", words=["data.train=digits"])
    for itself in (f"data.test={images}", f"data.test={{name: folder, path: {images}}}"):
        with pytest.raises(ConfigError, match=r"data.test: .* has the images to train on; leave it out"):
            plan(str(run), str(images), tmp_path / "out", words=[itself])
    with pytest.raises(ConfigError, match=r"data.channels: weights are compared on images with the channels"):
        plan(str(run), str(images), tmp_path / "out", words=["data.channels=4"])


def test_the_file_is_a_recipe_with_reasons(images: Path, tmp_path: Path, make: Make) -> None:
    choices = plan(str(make("mae")), str(images), tmp_path / "out")
    text = (tmp_path / "out" / PLAN).read_text()
    assert compose(tmp_path / "out" / PLAN).values == sections(choices)
    assert "&id" not in text
    reasons = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
    assert all(one.why in reasons for one in choices)


def test_a_run_that_happens_to_be_called_before_is_not_taken_for_a_part_of_a_plan(
    images: Path, tmp_path: Path, make: Make
) -> None:
    run, out = make("mae"), tmp_path / "out"
    main(["export", str(run), "--to", "timm", "--out", str(tmp_path / "timm")])
    shutil.copytree(run, out / "before")
    with pytest.raises(ConfigError, match="is there already and not empty"):
        plan(str(tmp_path / "timm"), str(images), out)
    assert (out / "before" / "checkpoints").is_dir()
    shutil.rmtree(out / "before")
    plan(str(tmp_path / "timm"), str(images), out)
    (out / PLAN).unlink()  # as if it had been killed before the plan was written
    assert plan(str(tmp_path / "timm"), str(images), out) is not None


def test_channels_are_those_that_the_weights_know_by_name(tmp_path: Path, make: Make) -> None:
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (3, 8, 8), np.uint8)
        for channel, grey in zip(("dapi", "gfp", "rfp"), pixels, strict=True):
            (tmp_path / "cells").mkdir(exist_ok=True)
            Image.fromarray(grey).save(tmp_path / "cells" / f"{number}_{channel}.tif")
    run = make("mae", data={"channels": ["rfp", "dapi"]})
    section = {"name": "tiff", "path": str(tmp_path / "cells"), "files": "{sample}_{channel}.tif"}
    plan(str(run), section, tmp_path / "out")
    assert "&id" not in (tmp_path / "out" / PLAN).read_text()
    data = load(str(tmp_path / "out" / PLAN)).data
    sources = [open_data(data, split, Cache(CacheConfig())) for split in ("train", "test")]
    assert [source.channels for source in sources] == 2 * [("rfp", "dapi")]
    assert sum(len(source) for source in sources) == IMAGES


def test_images_that_need_a_section(
    images: Path, tmp_path: Path, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = make("mae"), tmp_path / "out"
    main(["adapt", str(run), f"{{name: folder, path: '{images}'}}", "--out", str(out), "--plan-only", "--method=mae"])
    again = shlex.split(capsys.readouterr().out.splitlines()[-1], comments=True)
    main([*again[1:], "--plan-only"])
    assert "goes on with" in capsys.readouterr().out, "the command that was printed is that which goes on"
    train, test = (open_source(getattr(load(str(out / PLAN)).data, which), which) for which in ("train", "test"))
    assert len(train) + len(test) == IMAGES + 2 - len(BROKEN)
    with pytest.raises(SystemExit):
        main(["adapt", str(run), "{name: tiff, pth: x}", "--out", str(tmp_path / "two"), "--plan-only"])
    assert re.search(r"DATA: path.*pth", capsys.readouterr().err)


@pytest.mark.parametrize(("checkpoint", "data", "name"), [("run", "", "DATA"), ("", "images", "CHECKPOINT")])
def test_an_empty_word_is_not_the_present_folder(
    checkpoint: str, data: str, name: str, images: Path, tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make("mae")
    (tmp_path / "images").symlink_to(images)
    monkeypatch.chdir(tmp_path / "run" if name == "CHECKPOINT" else images)
    words = [str(tmp_path / word) if word else "" for word in (checkpoint, data)]
    with pytest.raises(SystemExit):
        main(["adapt", *words, "--out", str(tmp_path / "out"), "--plan-only"])
    assert f"{name}: is empty" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("black", [False, True])
def test_a_channel_that_no_image_has_is_taken_to_zero(tmp_path: Path, make: Make, black: bool) -> None:
    """A published encoder says no mean, so the images do; of a channel without content the deviation would be none."""
    pixels, present = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 2), np.uint8), np.ones((IMAGES, 2), bool)
    (pixels if black else present)[..., 1] = 0
    np.save(tmp_path / "cells.npy", pixels)
    np.save(tmp_path / "present.npy", present)
    run = make("mae", data={"train": str(tmp_path / "cells.npy"), "test": None, "channels": 2})
    main(["export", str(run), "--to", "official", "--out", str(tmp_path / "theirs")])
    section = {"name": "arrays", "path": str(tmp_path / "cells.npy"), "present": "present.npy"}
    words = ["backbone.heads=4", "objective.decoder.heads=2"]
    chosen = sections(plan(str(tmp_path / "theirs" / "checkpoint.pth"), section, tmp_path / "out", words=words))["data"]
    assert chosen["mean"] == [pytest.approx(0.5, abs=0.01), 0.0]
    assert chosen["std"] == [pytest.approx(0.29, abs=0.01), 1.0]
    data = load(str(tmp_path / "out" / PLAN)).data
    view, source = View(data, train=True), open_data(data, "train", Cache(CacheConfig()))
    (seen,) = view.decoded(source.read(0)[0], [0])
    assert seen[0].any()
    assert not seen[1].any()
