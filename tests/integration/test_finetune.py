"""From pretrained weights to a verdict: the whole path, interrupted, and on several processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrp.build import follow_up
from mrp.checkpoint import checkpoints
from mrp.cli import main
from mrp.run import Run
from tests.forked import launch

TINY = ["backbone.width=16", "backbone.depth=2", "backbone.heads=2"]
FINETUNE = [
    "finetune_tiny_digits", "backbone=null", "backbone.drop_path=0.2", "length=6 steps", "optim.warmup=2 steps",
    "batch=24", "track.every=1", "validation.every=4 steps",
    "checkpoint={every: 2 steps, keep: 9, best: validation/accuracy}",
    "average.decay=0.5", "mix={mixup: 0.8, cutmix: 1, erase: 0.25}",
]  # fmt: skip
LINEAR = [
    "linear_tiny_digits", "backbone=null", "length=6 steps", "optim.warmup=2 steps", "batch=24", "track.every=1",
    "validation.every=4 steps", "checkpoint={every: 2 steps, keep: 9}",
]  # fmt: skip


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    words = ["length=2 steps", "optim.warmup=1 step", "batch=24", "objective.decoder.width=16"]
    main(["pretrain", "demo", *TINY, *words, "--folder", str(folder)])
    return folder


def content(folder: Path) -> dict[str, bytes]:
    found = checkpoints.newest(folder)
    assert found is not None
    assert found.step == 6
    return {path.name: path.read_bytes() for path in found.folder.glob("*.safetensors")} | {
        "validation": (folder / "validation.json").read_bytes()
    }


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("recipe", [FINETUNE, LINEAR], ids=["average", "lars"])
def test_interrupted_and_without_its_origin_it_ends_bit_equal(
    recipe: list[str], pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin, folder, other = tmp_path / "origin", tmp_path / "run", tmp_path / "other"
    shutil.copytree(pretrained, origin)
    words = ["finetune", *recipe, f"init={origin}"]
    main([*words, "--folder", str(folder)])
    printed = capsys.readouterr().out
    assert "on the test data after step 6" in printed
    assert "worst classes: " in printed
    assert "student" in printed
    assert ("average" in printed) == (recipe is FINETUNE)
    shutil.copytree(folder, other)
    for one in checkpoints.listed(other):
        if one.step > 2:
            shutil.rmtree(one.folder)
    (other / "validation.json").unlink()
    shutil.rmtree(origin)
    main([*words, "--folder", str(other)])
    assert content(other) == content(folder)
    assert ("average.safetensors" in content(folder)) == (recipe is FINETUNE)
    for name in ("loss", "lr", "validation/accuracy", "validation/loss"):
        assert [line.get(name) for line in lines(other)] == [line.get(name) for line in lines(folder)]
    judged = [line["step"] for line in lines(folder) if "validation/accuracy5" in line]
    assert judged == [4, 6]
    assert ("validation/average/accuracy" in lines(folder)[-1]) == (recipe is FINETUNE)


@pytest.mark.slow
def test_one_two_and_three_processes_count_the_same(pretrained: Path, tmp_path: Path) -> None:
    """After one step at a learning rate of zero, the weights are those that all started with."""
    (tmp_path / "five.txt").write_text("0\n1\n2\n3\n4\n")
    words = [
        "finetune", "finetune_tiny_digits", "backbone=null", f"init={pretrained}", "length=1 step", "batch=24",
        "optim.warmup=1 step", f"data.classes={tmp_path}/five.txt", "objective.classes=5", "objective.head_std=1",
    ]  # fmt: skip
    found = []
    for number in (1, 2, 3):
        folder = tmp_path / str(number)
        assert launch(number, [*words, "--folder", str(folder)]) == 0
        found.append(json.loads((folder / "validation.json").read_text())["student"])
    images = found[0]["images"]
    assert images % 2
    assert images % 3
    for one in found:
        assert one["confusion"] == found[0]["confusion"]
        assert (one["images"], one["accuracy"], one["accuracy5"]) == (
            images,
            found[0]["accuracy"],
            found[0]["accuracy5"],
        )
        assert one["loss"] == pytest.approx(found[0]["loss"], rel=1e-6)
    assert sum(map(sum, found[0]["confusion"])) == images


def test_it_needs_an_origin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["finetune", "finetune_tiny_digits", "--folder", str(tmp_path / "run")])
    assert left.value.code == 2
    assert "init: the pretrained weights to fine-tune are not given; add init=RUN" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_protocol_is_followed_on_the_data_of_a_run(pretrained: Path) -> None:
    run = follow_up("linear_mae_vit_base_in1k", pretrained, ["precision=fp32"])
    assert (run.data.train, run.data.size, run.data.mean, run.data.test) == ("digits", 8, (0.3,), "digits")
    assert run.data.augment.name == "crop"
    assert getattr(run.objective, "classes") == 10  # noqa: B009 -- of classification alone
    assert (run.batch, run.optim.name, run.optim.peak_lr(run.batch)) == (1024, "lars", pytest.approx(0.4))
    assert (run.backbone.width, run.backbone.depth) == (16, 2)
    assert run.init is not None
    assert run.init.content


def test_a_protocol_is_followed_on_other_data_where_the_run_s_have_no_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "bare.npy", np.zeros((40, 8, 8, 1), np.uint8))
    for name, count in (("train", 100), ("test", 9)):
        np.save(tmp_path / f"{name}.npy", np.zeros((count, 8, 8, 1), np.uint8))
        np.save(tmp_path / f"{name}_labels.npy", np.arange(count) % 3)
    words = ["length=1 step", "optim.warmup=0 steps", "batch=24", "average.decay=0.5", "validation.every=null"]
    data = [f"data.train={tmp_path / 'bare.npy'}", "data.test=null"]
    main(["pretrain", "demo", *TINY, *words, *data, "--folder", str(tmp_path / "run")])
    probe = ["probe", str(tmp_path / "run"), "--protocol", "paper"]
    with pytest.raises(SystemExit):
        main(probe)
    assert "data.train: has no labels, which this recipe learns from; add others" in capsys.readouterr().err

    begun: list[tuple[Run, str]] = []
    monkeypatch.setattr("mrp.train.train", lambda run, folder: begun.append((run, folder.name)))
    for split in ("train", "test"):
        main([*probe, f"data.train={tmp_path / split}.npy", f"data.test={tmp_path / 'test.npy'}"])
    (run, first), (_, second) = begun
    assert (run.batch, getattr(run.objective, "classes")) == (64, 3)  # noqa: B009 -- of classification alone
    assert run.init is not None
    assert run.init.weights == "average"  # as whatever else `mrp probe` measures
    assert first.startswith("paper-00000001-average-")
    assert first != second
