"""Images as models see them: chosen among files or held-out ones, read, and cropped as in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mrp.batch import in_units
from mrp.build import open_source
from mrp.config import ConfigError
from mrp.data.augment import View
from mrp.data.batches import stack
from mrp.data.decode import DecodeError, UnfitError
from mrp.data.source import RawImage
from mrp.data.subset import fixed_sample
from mrp.data.tree import EXTENSIONS, files
from mrp.model import NO_DATA, Model


class Given(NamedTuple):
    """An image as it was given."""

    name: str
    data: RawImage


@dataclass(frozen=True)
class Seen:
    """A model, what to call it, and the images as it sees them in evaluation."""

    name: str
    model: Model
    images: Tensor  # B C H W: uint8, uint16 or float32

    @property
    def pixels(self) -> Tensor:
        """The images in [0, 1]."""
        return in_units(self.images)

    @property
    def patch(self) -> tuple[int, int]:
        """Height and width of a patch."""
        height, width = self.model.backbone.patch_embed.patch_size
        return height, width


def found(paths: Sequence[Path], count: int) -> tuple[list[Path], int]:
    """Returns the image files among files and folders, evenly spread where there are more, and how many there are."""
    every: list[Path] = []
    for path in paths:
        inside = sorted(path / name for name, *_ in files(path, "")) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"{path}: holds no images; files that count end in {', '.join(EXTENSIONS)}")
        every += inside
    chosen = np.unique(np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(int))
    return [every[number] for number in chosen], len(every)


def read(paths: Sequence[Path]) -> tuple[list[Given], list[str]]:
    """Returns the content of files, and a line on each that cannot be read."""
    given, faults = [], []
    for path in paths:
        try:
            given.append(Given(path.name, path.read_bytes()))
        except OSError as error:
            faults.append(f"{path}: cannot be read: {error.strerror}; left out")
    return given, faults


def held_out(model: Model, count: int) -> list[Given]:
    """Returns some test images of a run's own; training images where it has no others."""
    if model.run.data.train == NO_DATA:
        raise ConfigError(f"{model.folder}: has no images of its own; give files or folders after it")
    sample = open_source(model.run, "test" if model.run.data.test else "train")
    sample = fixed_sample(sample, min(count, len(sample)))
    return [Given(Path(sample.where(number)).name, sample.read(number)[0]) for number in range(len(sample))]


def see(
    models: Sequence[tuple[str, Model]], given: Sequence[Given], unread: Sequence[str] = ()
) -> tuple[list[Seen], list[str], list[str]]:
    """Returns what each model sees, the names of the images, and a line on each that one of the models cannot see.

    The lines on those that could not be read come first.
    """
    names, faults, crops = [], [*unread], []
    for image in given:
        try:
            row = [View(model.run.data, train=False).decoded(image.data, [0])[0] for _, model in models]
        except (DecodeError, UnfitError) as error:
            faults.append(f"{image.name}: {error}; left out")
        else:
            names.append(Path(image.name).stem)
            crops.append(row)
    if not crops:
        raise ConfigError("none of the images can be read: " + "; ".join(faults))
    columns = zip(models, zip(*crops, strict=True), strict=True)
    seen = [Seen(name, model, stack(x, (len(x), *x[0].shape))) for (name, model), x in columns]
    return seen, names, faults
