"""What `mrp probe`, `features`, `compare` and `report` say of data and weights is of these data and these weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mrp import api, probing
from mrp.build import open_source
from mrp.cli import main
from mrp.config import ConfigError
from mrp.evaluate import results
from mrp.evaluate.classes import class_numbers
from mrp.run import load
from tests.trained import NARROW, pretrained

SMALL = [*NARROW, "length=12 steps", "optim.warmup=2 steps", "backbone.depth=2"]
KNN = ["--evaluator", "knn"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(tmp_path_factory.mktemp("probed") / "run", *SMALL)


@pytest.fixture
def digits(tmp_path: Path) -> dict[str, Path]:
    """Thirty training and thirty test images for each class, as files with the same names in both folders."""
    for split in ("train", "test"):
        write(tmp_path / split, split, [str(number) for number in range(10)])
    return {split: tmp_path / split for split in ("train", "test")}


def write(folder: Path, split: str, names: list[str], count: int = 30) -> None:
    source = open_source(load("demo"), split)  # type: ignore[arg-type]
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, index in enumerate(np.flatnonzero(source.labels == label)[:count].tolist()):
            pixels = np.asarray(source.read(index)[0])
            Image.fromarray(pixels[..., 0]).save(folder / name / f"{number:02}.png")


def accuracy(folder: Path) -> float:
    return float(results.read(folder)[-1].result["accuracy"])


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_two_folders_with_the_same_names_are_two_data_sets(run: Path, digits: dict[str, Path], tmp_path: Path) -> None:
    """The names are what a folder's identity knows; what a table is kept under has to know the images."""
    words = [f"data.train={digits['train']}", f"data.test={digits['test']}", "--cache", str(tmp_path / "cache")]
    rows = {}
    for split in ("train", "test"):
        main(["features", str(run), *words, "--split", split, "--out", str(tmp_path / f"{split}.npy")])
        rows[split] = np.load(tmp_path / f"{split}.npy")
    assert not np.array_equal(rows["train"], rows["test"])
    main(["probe", str(run), *words, *KNN])
    found = accuracy(run)
    main(["probe", str(run), *words[:2], "--cache", str(tmp_path / "other"), *KNN])
    assert accuracy(run) == found < 1

    first = digits["test"] / "0" / "00.png"
    Image.fromarray(255 - np.asarray(Image.open(first))).save(first)  # another image under the same name
    main(["features", str(run), *words, "--split", "test", "--out", str(tmp_path / "again.npy")])
    assert not np.array_equal(np.load(tmp_path / "again.npy")[0], rows["test"][0])
    assert np.array_equal(np.load(tmp_path / "again.npy")[1:], rows["test"][1:])
    digits["train"].rename(tmp_path / "elsewhere")  # is not asked for
    main(["features", str(run), *words, "--split", "test", "--out", str(tmp_path / "alone.npy")])
    assert np.array_equal(np.load(tmp_path / "alone.npy"), np.load(tmp_path / "again.npy"))


def test_classes_that_training_does_not_know_are_refused_or_mapped(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"n{number:02}" for number in range(10)]
    write(tmp_path / "train", "train", names)
    write(tmp_path / "same", "test", names)
    write(tmp_path / "numbered", "test", [str(number) for number in range(10)])
    probe = ["probe", str(run), f"data.train={tmp_path / 'train'}", *KNN]
    main([*probe, f"data.test={tmp_path / 'same'}"])
    expected = accuracy(run)
    assert expected > 0.3
    capsys.readouterr()

    numbered = [*probe, f"data.test={tmp_path / 'numbered'}"]
    line = refused(numbered, capsys)
    assert "data.test: 10 of its 10 classes ('0' and 9 more) are none of data.train's 10" in line
    assert "--classes by_index" in line
    main([*numbered, "--classes", "by_index"])
    assert accuracy(run) == expected
    (tmp_path / "map.txt").write_text("".join(f"{number}\tn{number:02}\n" for number in range(10)))
    main([*numbered, "--classes", str(tmp_path / "map.txt")])
    assert accuracy(run) == expected
    (tmp_path / "wrong.txt").write_text("".join(f"{number} n{(number + 1) % 10:02}\n" for number in range(10)))
    main([*numbered, "--classes", str(tmp_path / "wrong.txt")])
    assert accuracy(run) < 0.2
    assert "classes: 'here' was given" not in refused([*numbered, "--classes", str(tmp_path / "none.txt")], capsys)


@pytest.mark.parametrize(
    ("test", "how", "line"),
    [
        (("a", "x"), "by_name", "1 of its 2 classes ('x') are none of data.train's 2"),
        (("0", "2"), "by_index", "gives no class of data.train for '2' of data.test's 2 classes; their names"),
        (("p", "q"), "map", "gives no class of data.train for 'q' of data.test's 2 classes; add a line for each"),
        (("p", "q"), "broken", "line 2: is not of the form 'TEST_CLASS TRAINING_CLASS'"),
        (("p", "q"), "nowhere", "nowhere: cannot be read: No such file or directory"),
    ],
)
def test_a_map_of_classes_that_does_not_fit(
    test: tuple[str, ...], how: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("map").write_text("p b\nq c\n")
    Path("broken").write_text("p b\nq\n")
    with pytest.raises(ConfigError) as error:
        class_numbers(("a", "b"), test, how)
    assert line in str(error.value)


def test_numbers_in_names_are_numbers_of_training_classes() -> None:
    """Folders are in the order of text: '10' comes before '2'."""
    train = tuple(f"n{number:02}" for number in range(12))
    test = tuple(sorted(str(number) for number in range(12)))
    assert class_numbers(train, test, "by_index") == [int(name) for name in test]


def test_classes_of_one_name_are_told_apart_where_the_test_data_have_the_same() -> None:
    twins = ("crane", "crane", "heron")  # as two birds and machines are called in lists of ImageNet's classes
    assert class_numbers(twins, twins) == [0, 1, 2]
    assert class_numbers(twins, ("1", "0"), "by_index") == [1, 0]
    with pytest.raises(ConfigError, match="has two classes called 'crane', and those of"):
        class_numbers(twins, ("crane", "heron"))
    assert class_numbers(twins, ("heron",)) == [2]


def test_results_do_not_overwrite_each_other(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "identity.json"):
        (folder / name).write_text((run / name).read_text())
    (folder / "checkpoints").symlink_to(run / "checkpoints")
    main(["probe", str(folder), *KNN, "--evaluator", "few_shot", "--untrained"])
    main(["probe", str(folder), *KNN, "data.fraction=0.5"])
    main(["probe", str(folder), *KNN, "data.fraction=0.5"])  # the same once more
    records = results.read(folder)
    assert [(one.evaluator, one.backbone, one.step, one.data.get("fraction")) for one in records] == [
        ("knn", "trained", 12, None),
        ("few_shot", "trained", 12, None),
        ("knn", "untrained", 0, None),
        ("few_shot", "untrained", 0, None),
        ("knn", "trained", 12, 0.5),
    ]  # fmt: skip
    assert results.latest(folder, "knn")["num_train"] == 1437
    capsys.readouterr()

    main(["compare", str(folder), "--out", str(tmp_path / "compare.png")])
    text = capsys.readouterr().out
    data = [line for line in text.splitlines() if "kNN (k = 20)" in line]
    assert [any(name in row for row in data) for name in ("digits ", "fraction 0.5")] == [True] * 2
    assert len(data) == 2
    with pytest.raises(ConfigError, match="'attentive' has not been measured yet; 'mrp probe"):
        results.latest(folder, "attentive")


def test_a_checkpoint_is_compared_and_drawn_by_itself(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = run / "checkpoints" / "step-00000012"
    main(["probe", str(checkpoint), *KNN])
    main(["compare", str(checkpoint), "--out", str(tmp_path / "compare.png")])
    assert "step-00000012" in capsys.readouterr().out
    main(["report", str(checkpoint)])
    page = (run / "report-00000012.html").read_text()
    assert "Reconstructions of the same held-out images" in page
    assert "<h3>Loss" in page
    assert "nothing has been measured here yet" in refused(["compare", str(tmp_path)], capsys)
    assert "there is no such file or folder" in refused(["compare", str(tmp_path / "none")], capsys)


def weights(model: Any, path: Path) -> Path:
    """The backbone of a run as timm names it, in a file that nothing else stands beside."""
    save_file({name: tensor.contiguous() for name, tensor in model.backbone.state_dict().items()}, path)
    return path


def test_imported_weights_are_probed_compared_and_drawn_or_it_is_said_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shape = [
        "data.size=16",
        "data.channels=3",
        "data.mean=0.4",
        "data.std=0.2",
        "backbone.patch=4",
        "data.augment={name: crop}",
    ]  # as imported weights are evaluated
    main(["pretrain", *SMALL, *shape, "length=2 steps", "optim.warmup=1 steps", "--folder", "run"])
    model = api.load("run")
    main(["export", "run", "--to", "timm", "--out", "timm"])
    data = ["data.train=digits", "data.test=digits", "machine.workers=1"]
    main(["probe", "timm", *data, *KNN])
    (record,) = results.read(Path("runs/probe-timm"))
    assert (record.source, record.result["num_test"]) == (str(tmp_path / "timm"), 360)
    main(["probe", "run", *KNN])
    assert record.result["accuracy"] == pytest.approx(accuracy(Path("run")), abs=3 / 360)
    capsys.readouterr()
    main(["compare", "timm", "run"])
    rows = [line for line in capsys.readouterr().out.splitlines() if "% (" in line]
    assert [line.split()[1] for line in rows] == ["timm", "run"]
    main(["report", "timm"])
    page = Path("runs/probe-timm/report.html").read_text()
    assert "kNN (k = 20)" in page
    assert "Reconstructions: no images were given at import" in page

    main(["probe", "timm", *data, "data.size=24", *KNN])
    resized = results.read(Path("runs/probe-timm"))
    assert [one.data["size"] for one in resized] == [[16, 16], 24]
    main(["features", "run", "data.size=24", "--out", "large.npy"])
    assert np.load("large.npy").shape == (360, 24)
    positions = probing.changed(model, {"data": {"size": 24}}).backbone.pos_embed
    assert positions.shape == (1, 37, 24)
    assert torch.allclose(positions[:, 0], model.backbone.pos_embed[:, 0])
    small, large = (
        table[0, 1:].unflatten(0, (side, side)).movedim(2, 0)[None]
        for table, side in ((model.backbone.pos_embed, 4), (positions, 6))
    )
    expected = torch.nn.functional.interpolate(small, (6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(large, expected, atol=1e-5, rtol=1e-5)


def test_imported_weights_are_evaluated_in_the_precision_of_the_machine(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of weights does not tell a precision, and bf16 is what a GPU is fast in; a run's precision is its own."""
    trained = api.load(run)
    imported = replace(trained, source={"source": "vit.safetensors", "missing": []})
    for on_gpu, model, expected in ((True, trained, "fp32"), (True, imported, "bf16"), (False, imported, "fp32")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda on_gpu=on_gpu: on_gpu)
        evaluated = probing.changed(model, {})
        assert (evaluated.run.precision, evaluated.module.precision) == (expected, expected)
