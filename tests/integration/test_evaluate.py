"""`mrp evaluate` and the suite `robustness` on miniature test sets of the usual layouts, damaged ones included."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mrp import api
from mrp.build import open_source
from mrp.cli import main
from mrp.config import ConfigError
from mrp.data.source import Source
from mrp.evaluate import answering, results
from mrp.evaluate.tables import Tables
from mrp.interop.folders import save_tensors
from mrp.model import load
from mrp.processes.signals import Interrupted
from mrp.report import compare
from mrp.report.page import Page
from mrp.run import load as load_run
from mrp.suites.corruptions import ALEXNET_ERRORS
from tests.trained import pretrained

SMALL = [
    "supervised_tiny_digits", "length=40 steps", "optim.warmup=5 steps", "backbone.width=192", "backbone.depth=1",
    "backbone.heads=3", "machine.workers=0", "diagnose.every=null", "validation.every=null",
]  # fmt: skip
WORDNET = [f"n{number:08}" for number in range(10)]  # names of classes, as ImageNet's sorted ids
KEPT = (2, 5, 7)  # the classes of the test sets that have only some


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrained(tmp_path_factory.mktemp("trained") / "run", *SMALL)


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run without anything measured; the test is in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "run")
    return Path("run")


@pytest.fixture
def official(run: Path) -> Path:
    """The same classifier as the file of another project, which knows no names of classes."""
    objective = load(run).objective
    tensors = {name.removeprefix("backbone."): tensor for name, tensor in objective.state_dict().items()}
    torch.save({"model": tensors}, "official.pth")
    return Path("official.pth")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test images as ImageNet's val, -V2, -R and -C are laid out; ReaL labels of val."""
    top, source = tmp_path_factory.mktemp("data"), open_source(load_run("demo"), "test")
    number, labels = 0, []
    for label in range(10):
        for position, index in enumerate(np.flatnonzero(source.labels == label)[:6].tolist()):
            number += 1
            labels.append([] if position == 5 else [label, (label + 1) % 10])
            put(top / "val" / WORDNET[label] / f"ILSVRC2012_val_{number:08}.png", source, index)
            put(top / "v2" / str(label) / f"{position}.png", source, index)
            if label in KEPT:
                put(top / "r" / WORDNET[label] / f"{position}.png", source, index, 60)
            for corruption in [*ALEXNET_ERRORS, "spatter"] if position < 1 else []:
                for severity in range(1, 6):
                    strength = severity * (10 + 2 * len(corruption))
                    path = top / "c" / corruption / str(severity) / WORDNET[label] / f"{position}.png"
                    put(path, source, index, strength)
    (top / "real.json").write_text(json.dumps(labels))
    (top / "names.txt").write_text("\n".join(WORDNET))
    return top


def put(path: Path, source: Source, index: int, noise: float = 0) -> None:
    pixels = np.asarray(source.read(index)[0])[..., 0] + np.random.default_rng(index).normal(0, 1, (8, 8)) * noise
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def shown(page: Page) -> dict[tuple[str, str], float]:
    values = {}
    for (row, column), cell in page.cells.items():
        assert row == 0
        assert cell.measure is not None
        values[page.columns[column].data, page.columns[column].title] = cell.measure.value
    return values


def evaluated(weights: Path, *tests: str, **options: Any) -> dict[tuple[str, str], float]:
    found = api.evaluate(weights, "machine.workers=0", tests=tests, **options)
    assert found is not None
    return shown(found.page)


def logits(model: Any, folder: Path, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and labels of a folder's images, without any of the code that is tested."""
    images, labels = [], []
    for path in sorted(folder.glob("*/*.png"), key=lambda path: (path.parent.name, path.name)):
        images.append(np.stack([np.array(Image.open(path))] * model.run.data.num_channels))
        labels.append(names.index(path.parent.name))
    with torch.no_grad():
        prepared = model.module.prepare(torch.from_numpy(np.array(images)))
        scores: torch.Tensor = model.objective.predict(prepared)[1]
    return scores, torch.tensor(labels)


def test_all_numbers_of_one_run_on_its_own_data(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", str(run), "machine.workers=0", "--out", "out"])
    text = capsys.readouterr().out
    assert "classifiers on test" in text
    assert sorted(path.suffix for path in Path("out").iterdir()) == [".json", ".md", ".png", ".tex"]
    source = open_source(load_run("demo"), "test")
    model = load(run)
    images = torch.from_numpy(np.stack([np.asarray(source.read(index)[0]) for index in range(len(source))]))
    with torch.no_grad():
        scores = model.objective.predict(model.module.prepare(images.permute(0, 3, 1, 2)))[1]
    labels = torch.from_numpy(np.asarray(source.labels)).long()
    cells = {cell["measure"]: cell["value"] for cell in json.loads(Path("out/evaluate.json").read_text())["cells"]}
    right = scores.argmax(1) == labels
    assert cells["top-1"] == pytest.approx(float(right.double().mean()))
    assert cells["top-1"] > 0.3
    assert cells["top-5"] == pytest.approx(float((scores.topk(5).indices == labels[:, None]).any(1).double().mean()))
    per_class = [float(right[labels == label].double().mean()) for label in range(10)]
    assert cells["mean per class"] == pytest.approx(np.mean(per_class))
    assert cells["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(scores, labels)), rel=1e-5)


def test_test_sets_of_every_layout(official: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An imported classifier, whose classes are the sorted folders of val."""
    tests = [f"val={data}/val", f"v2={data}/v2,by_index", f"r={data}/r,limited", f"wide={data}/r"]
    main(["evaluate", str(official), *(word for test in tests for word in ("--test", test)), "machine.workers=0",
          "--real", f"{data}/real.json", "--out", "out"])  # fmt: skip
    text = " ".join(capsys.readouterr().out.split())
    assert "Names of the 10 classes: the class folders of val." in text
    assert "Answers are among all classes; on r among the classes of the test set alone." in text
    cells = {(c["data"], c["measure"]): c["value"] for c in json.loads(Path("out/evaluate.json").read_text())["cells"]}
    model = load(official)
    scores, labels = logits(model, data / "val", WORDNET)
    assert cells["val", "top-1"] == pytest.approx(float((scores.argmax(1) == labels).double().mean()))
    assert cells["v2", "top-1"] == cells["val", "top-1"]  # the same images
    listed = json.loads((data / "real.json").read_text())
    right = [int(answer) in one for answer, one in zip(scores.argmax(1), listed, strict=True) if one]
    assert cells["val", "ReaL top-1"] == pytest.approx(np.mean(right))
    scores, labels = logits(model, data / "r", WORDNET)
    among = torch.tensor(KEPT)[scores[:, list(KEPT)].argmax(1)]
    assert cells["r", "top-1"] == pytest.approx(float((among == labels).double().mean()))
    assert cells["wide", "top-1"] == pytest.approx(float((scores.argmax(1) == labels).double().mean()))
    assert cells["r", "top-1"] > cells["wide", "top-1"]


def test_corruptions_are_kept_one_by_one_and_come_to_one_number(
    run: Path, official: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"val={data}/val", f"imagenet_c={data}/c"
    measure, calls = answering._answered, []

    def cut(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 31:
            raise Interrupted
        return measure(*given)

    monkeypatch.setattr(answering, "_answered", cut)
    with pytest.raises(Interrupted):
        evaluated(official, *words)
    assert len(results.read(Path("runs/probe-official.pth"))) == 30
    found = evaluated(official, *words)
    assert len(calls) == 31 + 81 - 30  # what was there is not measured again
    model, errors = load(official), {}
    for corruption in [*ALEXNET_ERRORS, "spatter"]:
        severities = [logits(model, data / "c" / corruption / str(severity), WORDNET) for severity in range(1, 6)]
        errors[corruption] = np.mean([float((s.argmax(1) != labels).double().mean()) for s, labels in severities])
    expected = np.mean([errors[name] / divided for name, divided in ALEXNET_ERRORS.items()])
    assert found["imagenet_c", "mean corruption error (mCE)"] == pytest.approx(expected)
    assert found["imagenet_c", "mean error, 16 corruptions"] == pytest.approx(np.mean(list(errors.values())))
    assert found["imagenet_c", "error, fog"] == pytest.approx(errors["fog"])
    monkeypatch.setattr(answering, "_answered", None)  # nothing is measured again
    assert evaluated(official, *words) == found
    page = compare.page_of([official])  # the corruptions are no columns of their own
    values = {(column.data, column.title): page.cells[0, number].measure for number, column in enumerate(page.columns)}
    kept = values["imagenet_c", "classifier: mean corruption error (mCE)"]
    assert kept is not None
    assert kept.value == pytest.approx(expected)
    assert {data for data, _ in values if data} == {"val", "imagenet_c"}


def test_names_of_classes_from_a_file(official: Path, data: Path) -> None:
    found = evaluated(official, f"r={data}/r,limited", head=data / "names.txt")
    assert found["r", "top-1"] == evaluated(official, f"val={data}/val", f"r={data}/r,limited")["r", "top-1"]
    assert evaluated(official, f"v2={data}/v2,by_index")["v2", "top-1"] > 0.3
    Path("map.txt").write_text("\n".join(f"{number} {name}" for number, name in enumerate(WORDNET)))
    mapped = evaluated(official, f"v2={data}/v2,map.txt", head=data / "names.txt")
    assert mapped == evaluated(official, f"v2={data}/v2,by_index", head=data / "names.txt")


def test_only_some_classes_can_count(run: Path, data: Path) -> None:
    """As for a run on ImageNet-100, which is evaluated on the validation images of all classes."""
    Path("some.txt").write_text("2\n5\n7")
    found = evaluated(run, f"v2={data}/v2", data={"classes": "some.txt"})
    Path("v2").mkdir()
    for label in KEPT:
        shutil.copytree(data / "v2" / str(label), Path("v2", str(label)))
    assert found == evaluated(run, "v2=v2")


def numbered(data: Path) -> list[str]:
    """ImageNet-V2's trap: folders called by numbers, more than ten of them, stand in the order of letters."""
    for number in range(10):
        shutil.copytree(data / "v2" / str(number), Path("trap") / str(number + 5))
    return ["trap=trap"]


def unknown_class(data: Path) -> list[str]:
    shutil.copytree(data / "val", "val")
    shutil.copytree(data / "r", "r")
    Path("r", WORDNET[5]).rename(Path("r", "n99999999"))
    return ["val=val", "r=r"]


def too_few(data: Path) -> list[str]:
    return [f"r={data}/r"]


def damaged(data: Path) -> list[str]:
    shutil.copytree(data / "val", "val")
    Path("val", WORDNET[0], "ILSVRC2012_val_00000001.png").write_bytes(b"no image")
    return ["val=val"]


def out_of_range(data: Path) -> list[str]:
    shutil.copytree(data / "v2", "v2")
    Path("v2/9").rename(Path("v2/10"))
    return ["v2=v2,by_index"]


def not_there(data: Path) -> list[str]:
    return ["val=/none"]


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        (numbered, "trap: its 10 folders are called by numbers, which stand in the order of letters"),
        (unknown_class, "validation on r: 1 of its 3 classes ('n99999999') are none of the classifier's 10"),
        (too_few, "the model tells 10 classes apart, and no test set has as many to say what they are called"),
        (damaged, "ILSVRC2012_val_00000001.png"),
        (out_of_range, "by_index gives no class of the classifier for '10' of data.test's 10 classes"),
        (not_there, "'/none' does not exist"),
    ],
)
def test_each_fault_is_one_line(
    tests: Callable[[Path], list[str]], message: str, official: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for test in tests(data) for word in ("--test", test)]
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(official), *words, "machine.workers=0"])
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in error
    assert error.count("\n") == 1, error


def test_what_has_no_trained_head_is_refused(run: Path, official: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match=r"official.pth: has no test data of its own; give data.test=PATH"):
        evaluated(official)
    Path("two.txt").write_text("a\nb")
    with pytest.raises(ConfigError, match=r"names 2 classes, but official.pth tells 10 apart"):
        evaluated(official, f"val={data}/val", head="two.txt")
    with pytest.raises(ConfigError, match=r"data.train: nothing is learned"):
        evaluated(run, data={"train": "digits"})
    save_tensors(Path("backbone.safetensors"), load(run).objective.backbone.state_dict())
    with pytest.raises(ConfigError, match="is no classifier, as it has no trained head"):
        evaluated(Path("backbone.safetensors"), f"val={data}/val")
    with pytest.raises(ConfigError, match="is no classifier, as it has no trained head"):
        api.judge("backbone.safetensors", "robustness", imagenet_val=data / "val")


def test_robustness_of_a_classifier_and_of_frozen_features(
    run: Path, official: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"imagenet_val={data}/val", f"imagenet_v2={data}/v2", f"imagenet_r={data}/r",
             f"imagenet_real={data}/real.json"]  # fmt: skip
    main(["judge", str(official), "--suite", "robustness", *words, "machine.workers=0"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Not given: imagenet_train= (for frozen/val, frozen/v2" in text
    assert "on classifier/r, frozen/r among the classes of the test set alone" in text
    page = json.loads(Path("runs/judge-robustness/judge.json").read_text())
    found = {(cell["data"], cell["measure"]): cell["value"] for cell in page["cells"]}
    assert set(found) == {
        ("classifier/val", "classifier"), ("classifier/v2", "classifier"), ("classifier/r", "classifier"),
        ("real", "classifier, ReaL labels"),
    }  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(answering, "_answered", None)  # evaluate and judge share what is kept
        same = evaluated(official, f"val={data}/val", f"r={data}/r,limited", real=data / "real.json")
    assert same["val", "top-1"] == found["classifier/val", "classifier"]
    assert same["r", "top-1"] == found["classifier/r", "classifier"]
    suite = Path(api.__file__).parent / "suites/robustness.yaml"
    light = suite.read_text().replace("  - {evaluator: linear, data: frozen}\n", "")
    Path("light.yaml").write_text(light)
    both = api.judge([official], "light.yaml", "machine.workers=0", *words, imagenet_train=data / "val")
    assert both is not None
    values = shown(both.page)
    assert values["frozen/v2", "kNN (k = 20)"] == values["frozen/val", "kNN (k = 20)"]
    assert values["classifier/val", "classifier"] == found["classifier/val", "classifier"]
    save_tensors(Path("backbone.safetensors"), load(run).objective.backbone.state_dict())
    encoder = api.judge("backbone.safetensors", "light.yaml", "machine.workers=0", *words, imagenet_train=data / "val")
    assert encoder is not None
    assert {data for data, _ in shown(encoder.page)} == {"frozen/val", "frozen/v2", "frozen/r"}
    assert "No classifier, so it is left out of classifier." in encoder.page.notes


def test_classes_are_known_where_the_training_data_are_gone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads((run / "classes.json").read_text()) == list("0123456789")
    monkeypatch.setattr("mrp.model.open_source", None)
    monkeypatch.setattr(Tables, "get", None)  # no features are read either
    assert evaluated(run)["test", "top-1"] > 0.3


@pytest.fixture
def flowers(data: Path, run: Path) -> Path:
    """A data set to transfer to, with train/ and test/; and the suite `transfer` with kNN alone."""
    for split in ("train", "test"):
        shutil.copytree(data / "val", Path("flowers", split))
    for extra in sorted(Path("flowers/test", WORDNET[3]).iterdir())[1:]:
        extra.unlink()  # classes of unequal size
    suite = Path(api.__file__).parent / "suites/transfer.yaml"
    Path("knn.yaml").write_text("\n".join(line for line in suite.read_text().splitlines() if ": linear," not in line))
    return Path("flowers")


def test_transfer_gives_each_class_the_same_weight_where_the_field_does(run: Path, flowers: Path) -> None:
    found = api.judge(run, "knn.yaml", "machine.workers=0", flowers=flowers, dtd=flowers)
    assert found is not None
    values = shown(found.page)
    assert values.keys() == {("flowers", "kNN (k = 20), mean per class"), ("dtd", "kNN (k = 20)")}
    (record,) = results.read(run)  # both have the same content
    outcomes = results.read_outcomes(run, record)
    assert outcomes is not None
    per_class = [outcomes.right[outcomes.classes == label].mean() for label in range(10)]
    assert values["flowers", "kNN (k = 20), mean per class"] == pytest.approx(np.mean(per_class))
    assert values["dtd", "kNN (k = 20)"] == pytest.approx(outcomes.right.mean())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda top: shutil.rmtree(top / "test"),
            "data set 'flowers' of the suite: data.test: 'flowers/test' does not",
        ),
        (
            lambda top: (top / "test" / WORDNET[1]).rename(top / "test/tulip"),
            "1 of its 10 classes ('tulip') are none",
        ),
        (lambda top: (top / "test/empty").mkdir(), "test/empty: a class folder without images"),
        (lambda top: (top / "train" / WORDNET[0] / "a.png").write_bytes(b""), "a.png"),
    ],
)
def test_damaged_data_of_transfer_are_one_line(
    damage: Callable[[Path], Any], message: str, run: Path, flowers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(flowers)
    with pytest.raises(SystemExit) as caught:
        main(["judge", str(run), "--suite", "knn.yaml", f"flowers={flowers}", "machine.workers=0"])
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in error
    assert error.count("\n") == 1, error
