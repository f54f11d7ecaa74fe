"""`mrp adapt` from end to end on small images: the verdict, what interrupts it, and what ends it before it trains."""
# ruff: noqa: F811 -- fixtures that are imported

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrp import train
from mrp.checkpoint import checkpoints
from mrp.cli import main
from mrp.doctor import speed
from mrp.doctor.speed import Rate, Speed
from mrp.report import verdict
from tests.interop.conftest import Make, make  # noqa: F401 -- the fixture
from tests.test_adapting import images  # noqa: F401 -- the fixture

FAST = Speed(Rate(5000, 4000, 6000, 90), Rate(500, 450, 550, 20), Rate(490, 400, 510, 20), waiting=0.02)
WORDS = ["length=6 steps", "machine.workers=0", "track.every=1"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "measure", lambda case: FAST)
    monkeypatch.setattr(verdict, "EVALUATORS", ("knn", "few_shot"))


def flat(images: Path, folder: Path) -> Path:
    """The same images without class folders."""
    folder.mkdir()
    for path in images.glob("*/*.png"):
        (folder / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    return folder


def weights(folder: Path) -> dict[str, bytes]:
    found = checkpoints.newest(folder)
    assert found is not None
    assert found.step == 6
    return {path.name: path.read_bytes() for path in found.folder.glob("*.safetensors")}


def test_without_labels_features_and_reconstructions_are_compared(
    images: Path,
    make: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(verdict._GEOMETRY, "images", 20)
    command = ["adapt", str(make("mae")), str(flat(images, tmp_path / "flat")), "--out", str(tmp_path / "out"), *WORDS]
    main([*command, "--plan-only"])
    assert "mrp doctor" in capsys.readouterr().out
    assert not (tmp_path / "out" / "after").exists()
    main([*command, "--json"])
    told = json.loads(capsys.readouterr().out)
    found = told["verdict"]
    names = ["effective_rank", "rank_me", "alignment", "log_uniformity", "loss"]
    assert [one["name"].rpartition("/")[2] for one in found["changes"]] == names
    for one in found["changes"]:
        assert one["difference"]["value"] == one["after"] - one["before"]
        assert one["difference"]["low"] <= one["difference"]["value"] <= one["difference"]["high"]
    assert "effective rank on 20 held-out images" in found["sentence"], "of which there are more"
    assert any("There are no labels" in note for note in found["notes"])
    assert "for 6 steps" in told["forecast"]["here"]
    trained = weights(tmp_path / "out" / "after")

    main(command)  # again: nothing is left to do, and the verdict is the same
    shown = capsys.readouterr().out
    assert found["sentence"] in " ".join(shown.split())
    assert weights(tmp_path / "out" / "after") == trained
    main(["pretrain", str(tmp_path / "out" / "adapt.yaml"), "--folder", str(tmp_path / "other")])  # it is a recipe
    assert weights(tmp_path / "other") == trained


def test_a_run_that_was_interrupted_ends_as_an_undisturbed_one(
    images: Path,
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["adapt", str(make("mae")), str(images), *WORDS, "checkpoint.asynchronous=false", "--quiet"]
    main([*command, "--out", str(tmp_path / "undisturbed")])
    update, calls = train.update, 0

    def fails(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return update(*arguments, **options)

    monkeypatch.setattr(train, "update", fails)
    with pytest.raises(SystemExit) as ended:
        main([*command, "--out", str(tmp_path / "out")])
    assert ended.value.code == 130
    newest = checkpoints.newest(tmp_path / "out" / "after")
    assert newest is not None
    assert 0 < newest.step < 6
    main([*command, "--out", str(tmp_path / "out")])
    assert weights(tmp_path / "out" / "after") == weights(tmp_path / "undisturbed" / "after")
    one, two = (json.loads((tmp_path / name / "adapt.json").read_text())["verdict"] for name in ("out", "undisturbed"))
    assert one == two
    assert [change["name"] for change in one["changes"]] == ["knn", "few_shot/1", "few_shot/5", "few_shot/10"]


def test_weights_of_timm_are_judged_as_they_came(
    images: Path,
    make: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["export", str(make("mae")), "--to", "timm", "--out", str(tmp_path / "timm")])
    capsys.readouterr()
    data = flat(images, tmp_path / "flat")
    main(["adapt", str(tmp_path / "timm"), str(data), "--out", str(tmp_path / "out"), *WORDS, "--json"])
    changes = json.loads(capsys.readouterr().out)["verdict"]["changes"]
    assert "validation/loss" not in [one["name"] for one in changes]  # there was no decoder before
    assert (tmp_path / "out" / "before" / "probe.json").is_file()


def test_what_the_doctor_finds_ends_it_before_it_trains(
    images: Path,
    make: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["adapt", str(make("mae")), str(images), "--out", str(tmp_path / "out"), *WORDS]
    with pytest.raises(SystemExit) as ended:
        main([*command, "data.mean=78", "data.std=95"])
    assert ended.value.code == 2
    assert "adapt.yaml: 1 error" in capsys.readouterr().err
    assert not (tmp_path / "out" / "after").exists()


def test_a_recipe_without_weights_has_nothing_to_go_on_from(
    images: Path, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["adapt", str(make("mae")), str(images), "--out", str(tmp_path / "out"), "--quiet"]
    main([*command, "--plan-only"])
    file = tmp_path / "out" / "adapt.yaml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith("init:")]
    file.write_text("\n".join([*lines, "backbone: {width: 32, depth: 2, heads: 4, patch: 4}"]))
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert "adapt.yaml: init: is missing" in capsys.readouterr().err


def test_nothing_is_trained_where_nothing_could_be_measured(
    images: Path, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = flat(images, tmp_path / "flat")
    test = flat(images, tmp_path / "test")
    for path in test.glob("*"):
        path.write_bytes(b"")
    command = ["adapt", str(make("mae")), str(data), "--out", str(tmp_path / "out"), *WORDS, f"data.test={test}"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert "nothing can be measured on the held-out images: geometry is left out" in capsys.readouterr().err
    assert not (tmp_path / "out" / "after").exists()
