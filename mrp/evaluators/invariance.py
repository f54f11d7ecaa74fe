"""How far features move when an image is mirrored, cropped or partly hidden, and what a linear head still sees."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from mrp.data.config import Crop
from mrp.data.order import Ints
from mrp.data.subset import evenly_spaced
from mrp.evaluate import contract, sweep
from mrp.evaluate.config import Heads, Section
from mrp.evaluate.contract import Pause, Result, Setting
from mrp.evaluate.measures import Number, mean_of, share_of, told
from mrp.evaluate.probe import linear_head
from mrp.evaluate.readout import Readout, backbone_of
from mrp.evaluate.sealed import NothingToChoose, Sealed
from mrp.evaluate.table import Table
from mrp.evaluate.views import Changed, Cropped, Mirrored, Occluded


class Config(Section):
    """Options of invariance."""

    # How many test images are measured, evenly spaced; training images where there is no test data.
    images: int = Field(2000, ge=2)
    hidden: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)  # shares of the patches that are painted over
    crops: tuple[float, ...] = (0.75, 0.5, 0.25)  # shares of the image's area that a random crop keeps
    # Where there are labels: measure also how the linear head of whole images does on images with hidden patches.
    probe: bool = True

    @field_validator("hidden", "crops")
    @classmethod
    def _check_shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < share < 1 for share in value):
            raise ValueError(f"{list(value)} was given; allowed: shares between 0 and 1")
        return value


class Evaluator(contract.Evaluator):
    """Compares each image's features with those of the same image under a change; the first process compares.

    Cosines are of features without the mean over images, which all of them share: of plain features, those of different
    images can have 0.99 too. The details have both.
    The head is that of `linear`: chosen and trained on whole training images, before any test image is read.
    """

    version = 2  # patches of floating-point images are hidden, and the others stay as they are

    def __init__(self, config: Config, setting: Setting) -> None:
        self._config, self._setting = config, setting
        source = setting.test_or_train
        self._images = evenly_spaced(source, min(config.images, len(source)))
        self._probes = config.probe and setting.test is not None and bool(setting.train.classes and source.classes)
        if self._probes:
            setting.labelled()

    def measure(self, model: nn.Module, step: int, pause: Pause) -> Result:
        """Measures cosines under every change, and the accuracy of the head on whole and on occluded images."""
        setting, own = self._setting, Readout.own(model)
        readout, head, train = own, None, None
        if self._probes:
            readout = Readout.last(model)
            train = setting.features(setting.train, model, readout, pause)
            head = setting.alone(train, lambda table: linear_head(setting, table, readout, Heads()), pause)
        patch = tuple(backbone_of(model).patch_embed.patch_size)

        def read() -> dict[str, Table | None]:
            views = {"": None, **self._changes((patch[0], patch[1]))}
            return {
                name: setting.features(self._images, model, readout, pause, view=view) for name, view in views.items()
            }

        tables = Sealed(read).open(head or NothingToChoose("cosines need no choice, and the first process has chosen"))
        whole = tables.pop("")
        if whole is None:
            return Result()
        return self._compare(whole, {name: table for name, table in tables.items() if table}, own, head)

    def _changes(self, patch: tuple[int, int]) -> dict[str, Changed]:
        data, config = self._setting.data, self._config
        crops = {share: Crop(scale=(share, share), flip=False) for share in config.crops}
        return {
            "mirrored": Mirrored(data),
            **{f"crop_{100 * share:g}": Cropped(data, crop) for share, crop in crops.items()},
            **{f"hidden_{100 * share:g}": Occluded(data, share, patch) for share in config.hidden},
        }

    def _compare(self, whole: Table, changed: dict[str, Table], own: Readout, head: sweep.Head | None) -> Result:
        features = whole.rows(own.blocks, slice(None))
        mean = features.mean(0)
        others = features.roll(len(features) // 2, 0)  # neighbours would often be of the same class
        numbers, curve = dict[str, Number](), list[dict[str, Any]]()
        if head:
            numbers["accuracy"] = self._accuracy(head, whole)
        for name, table in changed.items():
            seen = table.rows(own.blocks, slice(None))
            numbers[f"{name}_cosine"] = _cosine(features - mean, seen - mean, whole.group_numbers)
            change, _, share = name.partition("_")
            point = {"change": change, "share": float(share) / 100 if share else None}
            point |= {"cosine": numbers[f"{name}_cosine"].value, "with_mean": _cosine(features, seen).value}
            if head and change == "hidden":
                numbers[f"{name}_accuracy"] = self._accuracy(head, table)
                point["accuracy"] = numbers[f"{name}_accuracy"].value
            curve.append(point)
        shown = [name for name in numbers if head is None or name.startswith("hidden") or name == "mirrored_cosine"]
        values, details = told(numbers, shown)
        details |= {"images": len(whole), "curve": curve, "others_with_mean": _cosine(features, others).value}
        return Result(values, details)

    def _accuracy(self, head: sweep.Head, table: Table) -> Number:
        right = head.predict(table, self._setting.possible).eq(self._setting.class_numbers[table.labels])
        return share_of(right, table.group_numbers)


def _cosine(first: Tensor, second: Tensor, groups: Ints | None = None) -> Number:
    return mean_of(F.cosine_similarity(first, second, dim=1), share=False, groups=groups)
