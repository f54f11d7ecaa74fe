"""A source of a user's own: one file outside of the package, and no other edit."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import yaml

from mrp.build import open_source
from mrp.cli import main
from mrp.config import ConfigError
from mrp.data.augment import View
from mrp.data.batches import Batches, EvaluationPlan, Result
from mrp.data.source import Source
from mrp.data.subset import select
from mrp.data.workers import WorkerError
from mrp.exchange import card
from mrp.run import load
from tests.data.conftest import SMALL, jpeg

DOCUMENT = Path(__file__).parents[2] / "docs" / "own-parts.md"

STRIPES = '''
"""Stripes, computed and not stored."""
import hashlib
from typing import Literal
import numpy as np
from mrp.config import Node
from mrp.data import source

class Config(Node):
    name: Literal["stripes"] = "stripes"
    count: int = 64

class Source(source.Source):
    classes = ("across", "along")

    def __init__(self, config, split, cache):
        self.count = config.count
        self.labels = [number % 2 for number in range(self.count)]
        self.identity = hashlib.sha256(f"{self.count} {split}".encode()).hexdigest()

    def __len__(self):
        return self.count

    def read(self, index):
        row = (np.arange(8) * (index + 1) % 256).astype(np.uint8)
        image = np.broadcast_to(row[:, None] if index % 2 else row, (8, 8))
        return np.ascontiguousarray(image[..., None]), index % 2
'''
WORDS = ["demo", "data.test=null", *SMALL]


@pytest.fixture
def stripes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "stripes.py").write_text(STRIPES)
    monkeypatch.chdir(tmp_path)
    return "./stripes.py"


def test_a_run_trains_on_it_and_goes_on_from_another_folder(
    stripes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["pretrain", *WORDS, f"data.train={{name: {stripes}, count: 48}}", "machine.workers=1", "--folder", "run"])
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["data"]["train"] == {"name": str(tmp_path / "stripes.py"), "count": 48}
    monkeypatch.chdir("/")
    folder = str(tmp_path / "run")
    main(["pretrain", f"{folder}/config.yaml", "length=3 steps", "resume.allow=[length]", "--folder", folder])


def test_it_is_a_source_like_any_other(stripes: str) -> None:
    source = open_source(load("demo", [f"data.train={{name: {stripes}}}"]), "train")
    assert (len(source), source.classes) == (64, ("across", "along"))
    assert source.where(3) == f"{Path.cwd() / 'stripes.py'}: sample 3"
    assert (len(source.shard_sizes), source.replacement(0), source.content) == (0, None, source.identity)
    half = select(source, "data.train", None, 0.5)
    assert np.bincount(half.labels).tolist() == [16, 16]
    again = pickle.loads(pickle.dumps(half))
    assert again.identity == half.identity
    mixed = load("demo", [f"data.train=[{{source: {{name: {stripes}}}, weight: 1}}, {{source: digits, weight: 1}}]"])
    assert len(open_source(mixed, "train")) == 64 + 1437


@pytest.mark.skipif(not DOCUMENT.is_file(), reason="an installed package has no documentation")
def test_the_example_of_the_documentation_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = DOCUMENT.read_text().partition("# listed.py\n")[2].partition("```")[0]
    (tmp_path / "listed.py").write_text(block)
    rows = [[str(tmp_path / f"{number}.jpg"), number % 2] for number in range(4)]
    for number, (path, _) in enumerate(rows):
        Path(path).write_bytes(jpeg(number))
    (tmp_path / "files.json").write_text(json.dumps(rows))
    monkeypatch.chdir(tmp_path)
    words = ["data.train={name: ./listed.py, path: files.json}", "data.fraction=0.5"]
    source = open_source(load("demo", words), "train")
    assert (len(source), source.classes, sorted(source.labels.tolist())) == (2, ("cat", "dog"), [0, 1])
    assert source.read(0)[0] in [jpeg(number) for number in range(4)]


def test_files_of_one_name_in_two_folders_are_two_sources(stripes: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "stripes.py").write_text(STRIPES.replace("index % 2\n", "1 - index % 2\n"))
    sources = [
        open_source(load("demo", [f"data.train={{name: {path}}}"]), "train") for path in (stripes, "./other/stripes.py")
    ]
    again = pickle.loads(pickle.dumps(sources))
    assert [[source.read(0)[1] for source in both] for both in (sources, again)] == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("section", "wanted"),
    [
        ("{name: ./stripes.py, cuont: 3}", "data.train.cuont: unknown key; did you mean 'count'"),
        ("{name: ./gone.py}", "gone.py' does not exist; a relative path starts at the current folder"),
        ("{name: foldr, path: x}", "unknown source 'foldr'; did you mean 'folder'"),
        ("{name: folder, pth: x}", "data.train.pth: unknown key; did you mean 'path'"),
    ],
)
def test_mistakes_are_one_line(stripes: str, section: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as error:
        load("demo", [f"data.train={section}"])
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)


def seen_of(source: Source) -> Result | WorkerError:
    """The first four samples as training sees them, without an augmentation."""
    view = View(load("demo").data, train=True)
    return Batches(source, view, EvaluationPlan(0, 4, 4), None)[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("image[..., 0], 1", "reads uint8 of shape (8, 8); give pixels (height, width, channels) of uint8, uint16 or"),
        ("image / 255, 1", "reads float64 of shape (8, 8, 1); give pixels"),
        ("image.tolist(), 1", "reads a list; give the bytes of an image file, or pixels as an array"),
        ("image", "reads a ndarray; give an image and its label: (image, label)"),
        ("image, '1'", "has the label '1', a str; give the number of its class"),
        ("image, 1.5", "has the label 1.5, a float; give the number of its class"),
        ("image, 2", "has the label 2, and 2 classes have the labels 0 to 1"),
    ],
)
def test_what_no_source_may_read_is_named(stripes: str, given: str, message: str) -> None:
    read = "return np.ascontiguousarray(image[..., None]), index % 2"
    Path(stripes).write_text(STRIPES.replace(read, f"image = image[..., None]; return {given}"))
    found = seen_of(open_source(load("demo", [f"data.train={{name: {stripes}}}"]), "train"))
    assert isinstance(found, WorkerError)
    assert found.message.startswith(f"{Path.cwd() / 'stripes.py'}: sample 0: ")
    assert message in found.message


def test_a_source_may_read_every_image_into_one_array(stripes: str) -> None:
    own = open_source(load("demo", [f"data.train={{name: {stripes}}}"]), "train")
    images = [cast(Any, own.read(number)[0]).copy() for number in range(4)]
    again = "self.same[:] = image[..., None]; return self.same"
    text = STRIPES.replace("return np.ascontiguousarray(image[..., None])", again)
    text = text.replace("self.count = config.count", "self.count = config.count; self.same = np.zeros((8, 8, 1), 'u1')")
    Path(stripes).write_text(text)
    found = seen_of(open_source(load("demo", [f"data.train={{name: {stripes}}}"]), "train"))
    assert isinstance(found, Result)
    assert np.array_equal(found.batch.images.numpy(), np.stack(images).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("instead", "wanted"),
    [
        ("self.identity = None", "its identity is None; give a text, a sha256"),
        ("self.identity = 'x'; self.labels = [0]", "it has 1 labels for 64 images"),
        ("self.identity = 'x'; self.classes = (0, 1)", "its classes are (0, 1); give each a name of its own"),
        ("self.identity = 'x'; self.classes = ('a', 'a')", "its classes are ('a', 'a'); give each a name"),
        ("self.identity = 'x'; self.tags = ('a',)", "has classes and tags; give one of the two"),
        ("self.identity = 'x'; self.classes = (); self.tags = ('a', 'a')", "its tags are ('a', 'a'); give each a name"),
        (
            "self.identity = 'x'; self.classes = (); self.tags = ('a',); self.tagged = np.zeros((64, 2))",
            "its tagged is of shape (64, 2) for 64 images and 1 tags; give one row per image and one column per tag",
        ),
    ],
)
def test_a_source_that_contradicts_itself_is_one_line(stripes: str, instead: str, wanted: str) -> None:
    line = next(line for line in STRIPES.splitlines() if "self.identity" in line)
    Path(stripes).write_text(STRIPES.replace(line.strip(), instead))
    with pytest.raises(ConfigError, match=re.escape(wanted)):
        open_source(load("demo", [f"data.train={{name: {stripes}}}"]), "train")


def test_labels_that_are_lacking_are_no_labels() -> None:
    from mrp.data.source import Source

    class Bare(Source):
        def __len__(self) -> int:
            return 3

        def read(self, index: int) -> tuple[bytes, int]:
            return b"", -1

    assert Bare().labels.tolist() == [-1, -1, -1]
    Bare.classes = ("a",)
    with pytest.raises(ConfigError, match=r"\.py: its Source has classes and no labels; give it both"):
        _ = Bare().labels
    with pytest.raises(ConfigError, match=r"\.py: its Source has no identity; give it a sha256"):
        _ = Bare().identity


def test_a_run_on_a_section_with_a_relative_path_goes_on_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(16):
        path = tmp_path / "images" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(number))
    monkeypatch.chdir(tmp_path)
    words = ["data.train={name: folder, path: images}", "data.channels=3", "machine.workers=0", "--folder", "run"]
    main(["pretrain", *WORDS, "batch=8", *words])
    monkeypatch.chdir("/")
    assert len(open_source(load(tmp_path / "run" / "config.yaml"), "train")) == 16


@pytest.mark.parametrize(
    ("train", "wanted"),
    [("/data/in1k", "in1k"), ("{name: folder, path: /data/in1k}", "in1k"), ("{name: digits}", "digits"),
     ("[{source: digits, weight: 1}]", "several sources")],
)  # fmt: skip
def test_a_card_names_the_data(train: str, wanted: str) -> None:
    assert card._data(cast(Any, SimpleNamespace(run=load("demo", [f"data.train={train}"])))) == wanted
