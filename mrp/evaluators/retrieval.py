"""Queries against a gallery by cosine: whether the nearest images are of the same class, or show the same landmark."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from mrp.config import ConfigError, reading
from mrp.data.order import Ints
from mrp.evaluate import contract, ranking
from mrp.evaluate.config import Section
from mrp.evaluate.contract import Pause, Result, Setting
from mrp.evaluate.images import Box, Images, named
from mrp.evaluate.labels import refuse_tags
from mrp.evaluate.measures import Number, mean_of, share_of, told
from mrp.evaluate.ranking import Landmarks
from mrp.evaluate.readout import Readout
from mrp.evaluate.sealed import NothingToChoose
from mrp.evaluate.views import Whole

KS = (1, 5, 10)
_SHOWN = ("map", "recall1")  # in tables
_NOTHING = NothingToChoose("features are compared as the backbone gives them")
_FORM = '{"imlist": [NAME, ...], "qimlist": [NAME, ...], "gnd": [{"easy": [...], "hard": [...], "junk": [...]}, ...]}'


@dataclass(frozen=True)
class Benchmark:
    """The images of the gallery, the queries with their boxes, and what each query asks for."""

    gallery: tuple[Path, ...]
    queries: tuple[Path, ...]
    boxes: tuple[Box | None, ...]
    wanted: tuple[Landmarks, ...]


class Config(Section):
    """Options of retrieval."""

    gallery: Literal["train", "test"] = "train"  # where images are looked for; test: among the other test images
    queries: int = Field(5000, ge=1)  # how many test images are looked up, evenly spaced
    images: int = Field(100_000, ge=2)  # the most images of the gallery, evenly spaced
    landmarks: str | None = None  # a JSON file of queries and what each should find, instead of labels
    folder: str | None = None  # the folder of the images that `landmarks` names; null: the folder of that file

    @model_validator(mode="after")
    def _check_folder(self) -> Config:
        if self.folder is not None and self.landmarks is None:
            raise ValueError("folder is given without landmarks, which would name images in it; give both")
        return self

    def content(self) -> str:
        """Returns a hash of the list of landmarks and of all images that it names."""
        if self.landmarks is None:
            return ""
        benchmark, path = self.benchmark(), Path(self.landmarks).expanduser()
        images = Images([*benchmark.gallery, *benchmark.queries])
        return hashlib.sha256(path.read_bytes() + images.identity.encode()).hexdigest()

    def benchmark(self) -> Benchmark:
        """Returns what the list of landmarks says."""
        assert self.landmarks is not None
        path = Path(self.landmarks).expanduser()
        return read_landmarks(path, Path(self.folder).expanduser() if self.folder else path.parent)


class Evaluator(contract.Evaluator):
    """Ranks the gallery for each query; the first process ranks, the others help to read the features."""

    def __init__(self, config: Config, setting: Setting) -> None:
        self._config, self._setting = config, setting
        self._device = setting.processes.device
        self._benchmark = None
        if config.landmarks is None:
            self._check_labels()
        else:
            self._benchmark = config.benchmark()
            channels = setting.data.num_channels
            self._gallery = Images(self._benchmark.gallery, channels)
            self._queries = Images(self._benchmark.queries, channels, self._benchmark.boxes)

    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Measures by labels, or by a list of landmarks."""
        readout = Readout.own(model)
        if self._benchmark is not None:
            return self._by_landmarks(self._benchmark, model, readout, pause)
        return self._by_labels(model, readout, pause)

    def _check_labels(self) -> None:
        """Refuses data without labels; classes have to be those of training only where images are looked for there."""
        test = self._setting.test
        if self._config.gallery == "train" or test is None:
            self._setting.labelled()
            return
        refuse_tags(self._setting.folder, "test", test)
        if not test.classes:
            raise ConfigError(f"{self._setting.folder}: data.test has no labels, by which retrieval is judged")

    def _by_labels(self, model: nn.Module, readout: Readout, pause: Pause) -> Result:
        config, setting, (block,) = self._config, self._setting, readout.blocks
        if config.gallery == "train":
            gallery = setting.features(setting.train, model, readout, pause, config.images)
            test = setting.test_features(model, readout, pause, config.queries).open(_NOTHING)
        else:
            assert setting.test is not None
            gallery = test = setting.features(setting.test, model, readout, pause, config.images)
        if gallery is None or test is None:
            return Result()
        rows = np.arange(min(config.queries, len(test))) * len(test) // min(config.queries, len(test))
        itself = torch.from_numpy(rows) if config.gallery == "test" else None
        features, labels = ranking.unit(test.columns[block][rows], self._device), test.labels[torch.from_numpy(rows)]
        average, precision = self._ranked(
            features, labels.to(self._device), ranking.unit(gallery.columns[block], self._device),
            gallery.labels.to(self._device), itself,
        )  # fmt: skip
        values, details = _summary(average, precision, None if (of := test.group_numbers) is None else of[rows])
        details |= {"gallery": config.gallery, "num_queries": len(rows), "num_gallery": len(gallery)}
        every = config.gallery == "train" and len(rows) == len(setting.labelled())
        return Result(values, details, right=precision[:, 0] > 0 if every else None)

    def _ranked(
        self, queries: Tensor, classes: Tensor, gallery: Tensor, labels: Tensor, itself: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns each query's average precision, and its precision among the k nearest, for each k."""
        parts, others = [], len(gallery) - (itself is not None)
        for chunk, scores in ranking.cosines(queries, gallery):
            relevant = classes[chunk, None] == labels
            if itself is not None:  # the image itself comes last and is not relevant, so it counts nowhere
                own = itself[chunk, None].to(scores.device)
                scores.scatter_(1, own, -torch.inf)
                relevant.scatter_(1, own, False)
            precision = ranking.nearest(scores, relevant, [min(k, others) for k in KS])
            parts.append((ranking.average_precisions(scores, relevant).cpu(), precision.cpu()))
        average, precision = (torch.cat(column) for column in zip(*parts, strict=True))
        return average, precision

    def _by_landmarks(self, benchmark: Benchmark, model: nn.Module, readout: Readout, pause: Pause) -> Result:
        setting, (block,) = self._setting, readout.blocks
        view = Whole(setting.data)
        gallery = setting.features(self._gallery, model, readout, pause, view=view)
        queries = setting.features(self._queries, model, readout, pause, view=view)
        if gallery is None or queries is None:
            return Result()
        found: dict[str, list[list[float]]] = {}
        rows = ranking.unit(gallery.columns[block], self._device)
        for chunk, scores in ranking.cosines(ranking.unit(queries.columns[block], self._device), rows):
            orders = scores.argsort(dim=1, descending=True, stable=True).cpu().numpy()
            for order, wanted in zip(orders, benchmark.wanted[chunk], strict=True):
                for protocol, (positive, junk) in wanted.protocols().items():
                    precision, at = ranking.landmark_scores(order, positive, junk, KS)
                    found.setdefault(protocol, []).append([precision, *at])
        numbers: dict[str, Number] = {}
        for protocol, scored in found.items():
            names = [f"{protocol}_map", *(f"{protocol}_precision{k}" for k in KS)]
            for name, column in zip(names, torch.tensor(scored).unbind(1), strict=True):
                if not column.isnan().all():  # otherwise no query asks for anything under this protocol
                    numbers[name] = mean_of(column)
        values, details = told(numbers, [f"{protocol}_map" for protocol in found])
        return Result(values, details | {"num_queries": len(queries), "num_gallery": len(gallery)})


def _summary(average: Tensor, precision: Tensor, groups: Ints | None) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns means over the queries whose class the gallery holds, alone and with intervals."""
    counts = ~average.isnan()
    if not counts.any():
        raise ConfigError("retrieval: no query has another image of its class in the gallery; give more images")
    numbers = {"map": mean_of(average, groups=groups)}
    groups = None if groups is None else groups[counts.numpy()]
    for column, k in enumerate(KS):
        numbers[f"precision{k}"] = mean_of(precision[counts, column], groups=groups)
        numbers[f"recall{k}"] = share_of(precision[counts, column] > 0, groups)
    values, details = told(numbers, _SHOWN)
    return values, details | {"without": int((~counts).sum())}


def read_landmarks(path: Path, folder: Path) -> Benchmark:
    """Returns what a JSON file says with the field names of the published files (which are pickles, never read here).

    `imlist` names the gallery, `qimlist` the queries; `gnd` has for each query the numbers in `imlist` of easy, hard
    and junk images, and perhaps its box `bbx` (left, top, right, bottom).
    """
    with reading(path, "give a JSON file"):
        text = path.read_bytes()
    try:
        content = json.loads(text)
        names, queries, gnd = content["imlist"], content["qimlist"], content["gnd"]
        sizes = len(names), len(queries), len(gnd)
        pairs = [(query, dict(one)) for query, one in zip(queries, gnd, strict=False)]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: is not of the form {_FORM}; a published pickle has to be saved as JSON") from None
    if not min(sizes) or sizes[1] != sizes[2]:
        raise ConfigError(
            f"{path}: has {sizes[0]} images in imlist, {sizes[1]} queries in qimlist and {sizes[2]} entries in gnd; "
            "each query needs one entry"
        )
    wanted = [
        Landmarks(*(_numbers(one.get(key, []), sizes[0], f"{path}: gnd {n}, {key}") for key in Landmarks._fields))
        for n, (_, one) in enumerate(pairs)
    ]
    if not any(len(one.easy) or len(one.hard) for one in wanted):
        raise ConfigError(f"{path}: no query has an easy or hard image, so there is nothing to find; mend gnd")
    return Benchmark(
        tuple(named(folder, name, f"{path}: imlist") for name in names),
        tuple(named(folder, query, f"{path}: qimlist") for query, _ in pairs),
        tuple(_box(one.get("bbx"), f"{path}: gnd {n}, bbx") for n, (_, one) in enumerate(pairs)),
        tuple(wanted),
    )


def _numbers(values: Any, count: int, where: str) -> NDArray[np.int64]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < count for value in values):
        raise ConfigError(f"{where}: is not a list of numbers of images, from 0 to {count - 1}")
    return np.unique(np.array(values, np.int64))


def _box(values: Any, where: str) -> Box | None:
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != 4 or not all(type(value) in (int, float) for value in values):
        raise ConfigError(f"{where}: is not a list of four numbers: left, top, right, bottom")
    left, top, right, bottom = values
    return left, top, right, bottom
