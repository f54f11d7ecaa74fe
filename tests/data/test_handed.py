"""Objects of Python as data: what they may give, how a run knows them again, and how they reach worker processes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import mrp
from mrp.config import ConfigError
from mrp.data.handed import OBJECTS, handed_over
from mrp.data.mixtures import Mixture
from mrp.data.open import open_source
from mrp.data.source import Partial, Source
from mrp.data.sources import SOURCES
from mrp.data.subset import Subset
from mrp.data.units import units_warning
from mrp.run import load
from tests.data.conftest import SMALL, encoded
from tests.data.test_own_source import STRIPES


def pixels(index: int, channels: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(index).integers(0, 256, (8, 8, channels), np.uint8)


class Squares:
    """As torchvision's datasets are: `targets`, `classes`, and pairs."""

    classes = ("even", "odd")

    def __init__(self, count: int = 32) -> None:
        self.targets = [number % 2 for number in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(pixels(index)).permute(2, 0, 1), self.targets[index]


class Restless(Squares):
    def __getitem__(self, index: int) -> Any:
        return np.random.default_rng().integers(0, 256, (8, 8), np.uint8)


class Renamed(Squares):
    """As with a `target_transform` of torchvision's."""

    def __getitem__(self, index: int) -> Any:
        return pixels(index), torch.tensor(1 - self.targets[index])


class Held(Squares):
    def __init__(self) -> None:
        super().__init__()
        self.open = lambda: 0


def opened(data: Any) -> Source:
    with handed_over({"data": data}) as values:
        return open_source(SOURCES.read(values["data.train"]), "train")


@pytest.mark.parametrize(
    ("item", "wanted"),
    [
        (pixels(1), pixels(1)),
        (pixels(1)[..., 0], pixels(1)),
        (torch.from_numpy(pixels(1, 3)).permute(2, 0, 1), pixels(1, 3)),
        (torch.rand(5, 8, 8).bfloat16(), None),
        (Image.fromarray(pixels(1)[..., 0]), pixels(1)),
        (Image.fromarray(pixels(1, 3)), pixels(1, 3)),
        (Image.fromarray(pixels(1, 3)[..., 0].astype(np.uint16) * 257), pixels(1, 3)[..., :1].astype(np.uint16) * 257),
        (Image.fromarray(pixels(1)[..., 0].astype(np.int32) * 257), pixels(1).astype(np.uint16) * 257),
        (Image.fromarray(pixels(1, 4), "RGBA"), pixels(1, 4)[..., :3]),
        (encoded(pixels(1, 3), "PNG"), encoded(pixels(1, 3), "PNG")),
        ({"image": pixels(1), "label": 3}, pixels(1)),
        ((pixels(1), 3), pixels(1)),
    ],
)
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
def test_items_are_images_of_every_kind(item: Any, wanted: Any) -> None:
    found, label = opened([item, item]).read(1)
    assert label == -1, "an object without `labels` has none"
    if wanted is None:
        assert (found.dtype, found.shape) == (np.float32, (8, 8, 5))  # type: ignore[union-attr]
    else:
        assert type(found) is type(wanted)
        assert np.array_equal(found, wanted) if isinstance(wanted, np.ndarray) else found == wanted  # type: ignore[arg-type]


def test_floats_in_other_units_than_those_of_the_recipe_are_warned_of() -> None:
    images, data = np.random.default_rng(0).random((2, 8, 8, 3), np.float32), load("demo", ["data.channels=3"]).data
    assert units_warning(opened(images), data) is None
    assert units_warning(opened((images * 255).astype(np.uint8)), data) is None
    said = units_warning(opened(images * 255), data)
    assert said is not None
    assert said.startswith("warning: data.train: the first image has pixels from 0.")
    assert "give data.mean and data.std in their units" in said
    assert units_warning(Mixture([opened(images * 255), opened(images)], [1, 1]), data) == said
    own = data.model_copy(update={"mean": (127.0,) * 3, "std": (70.0,) * 3})
    assert units_warning(opened(images * 255), own) is None
    assert units_warning(opened(np.full_like(images, np.nan)), data) is None
    assert units_warning(opened(255 * images[..., :2]), data) is None  # the training refuses two channels


def test_no_image_is_read_before_its_time_of_a_source_outside_mrp() -> None:
    """It may open what cannot be sent to a worker, when the first one is read."""

    class Lazy(Source):
        labels, identity, classes = np.zeros(1, np.int64), "lazy", ()

        def __len__(self) -> int:
            return 1

        def read(self, index: int) -> Any:
            pytest.fail("was read")

    assert units_warning(Lazy(), load("demo").data) is None
    assert units_warning(Subset(Lazy(), np.array([0])), load("demo").data) is None


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_first_process_alone_says_by_what_an_object_is_known(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    assert len(opened([pixels(1)] * 3).identity) == 64
    assert ("this run knows it by" in capsys.readouterr().err) == (rank == "0")


def test_a_run_trains_on_it_in_workers_and_goes_on_with_the_same_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = mrp.pretrain("demo", *SMALL, "machine.workers=1", data=Squares(), folder=tmp_path / "run")
    assert "this run knows it by its length, labels and 32 of its images" in capsys.readouterr().err
    written = yaml.safe_load((folder / "config.yaml").read_text())["data"]
    assert (written["train"], written["test"]) == ({"name": "python", "object": "Squares-1"}, None)
    assert not OBJECTS
    longer = ["length=3 steps", "resume.allow=[length]", "machine.workers=0"]
    with pytest.raises(ConfigError, match=r"this run was made with other training data \(data\.content"):
        mrp.pretrain("demo", *SMALL, *longer, data=Squares(34), folder=folder)
    mrp.pretrain("demo", *SMALL, *longer, data=Squares(), folder=folder)
    found = mrp.probe(folder, data={"train": Squares(), "test": Squares(16)}, evaluators=["knn"])
    assert found.results["trained"]["knn"]["num_test"] == 16
    with pytest.raises(ConfigError, match=r"was an object of Python \(Squares-1\), which is not here; give it again"):
        mrp.probe(folder)


def test_labels_classes_and_identity_are_the_objects() -> None:
    source = opened(Squares())
    assert (source.classes, source.labels.tolist()) == (("even", "odd"), [0, 1] * 16)
    assert source.identity == opened(Squares()).identity != opened(Squares(30)).identity
    said = Squares()
    said.identity = "of the second edition"  # type: ignore[attr-defined]
    assert opened(said).identity == "of the second edition"
    said.classes = np.array(["even", "odd"])  # type: ignore[assignment]
    assert opened(said).classes == ("even", "odd")
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.read(3)[0], source.read(3)[0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((0, 8, 8)), r"data\.train: the object ndarray-1 holds no samples"),
        (["a.png"], r"list-1: sample 0: is a str; give an image of Pillow, an array"),
        ([np.zeros((2, 3, 4, 5))], r"is a ndarray of shape \(2, 3, 4, 5\)"),
        ([np.zeros((2, 3), complex)], "pixels of complex128"),
        (
            [Image.fromarray(np.array([[0, 65_536]], np.int32))],
            r"numbers from 0 to 65536, beyond 16 bits; give an array",
        ),
        ([Image.fromarray(np.array([[-1, 5]], np.int32))], r"has numbers from -1 to 5, beyond 16 bits"),
        ([Partial(pixels(1, 3), np.array([True, False, True]))], r"lacks channels; let the object have an attribute"),
        (Renamed(), r"Renamed-1: sample 0: comes with the label 1, and the object's list of labels says 0; let both"),
        (Restless(), r"Restless-1: sample 0: is another image each time; leave out what is random"),
    ],
)
def test_what_is_no_data_is_one_line(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        assert opened(data).identity
    assert "\n" not in str(error.value)


def test_what_cannot_be_sent_to_workers_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Held-1: cannot be sent to worker processes .* or set machine\.workers=0$"):
        mrp.pretrain("demo", *SMALL, "machine.workers=1", data=Held(), folder=tmp_path / "run")
    mrp.pretrain("demo", *SMALL, "machine.workers=0", data=Held(), folder=tmp_path / "run")
    source = opened(Squares())
    state: dict[str, Any] = source.__getstate__()  # type: ignore[assignment]
    source.__dict__.update(state, _sent=b"cnowhere\nThing\n.")
    with pytest.raises(ConfigError, match=r"Squares-1: is not known in worker processes"):
        source.read(0)


def test_a_file_or_a_source_of_ones_own_needs_no_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stripes.py").write_text(STRIPES)
    monkeypatch.chdir(tmp_path)
    data = load("demo", ["data.train=./stripes.py"]).data
    assert data == load("demo", ["data.train={name: ./stripes.py}"]).data
    source = open_source(data.train, "train")  # type: ignore[arg-type]
    assert len(source) == 64
    assert opened(source) is source
    assert open_source("digits", "train").identity == open_source(SOURCES.read("digits"), "train").identity
    with pytest.raises(ConfigError, match=r"'tiff' needs options; write \{name: tiff, path: PATH\}"):
        open_source("tiff", "train")
