"""How much of the objects, and how many of them, class-activation maps cover: the second paper's pictures as numbers.

Pan, Zhou and Yan (ICLR 2023) show maps of encoders that learned by reconstruction next to supervised ones and say that
they cover more regions. Data sets such as CIFAR-10 have no boxes, so what is to be covered is made: a mosaic of four
images at half their size, two of one class and two of others, in which the map of that class should lie on two
quadrants and on both of them. On whole images the map's spread and its connected regions are counted, and a map is put
to the test: where patches are deleted in its order, accuracy must fall faster than where they are deleted at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mrp import api
from mrp.config import ConfigError
from mrp.data.source import Source
from mrp.lab import samples
from mrp.lab.coverage.activation import Classifier, classifier
from mrp.lab.mean import Mean

THRESHOLD = 0.5  # of a map's largest value: what counts as covered
_CUTS = 8  # shares of the patches that are deleted
_RANDOM_ORDERS = 3
MEASURES = {
    "accuracy": "accuracy on whole images",
    "spread": "effective share of patches, exp(entropy) / patches",
    "area": "share of patches above half of the largest",
    "regions": "connected regions above half of the largest",
    "deletion": "accuracy lost to deletion in the map's order, over that in random order",
    "mosaic_accuracy": "mosaics of two classes' images named after the wanted class",
    "focus": "mosaic: share of the map on the two wanted quadrants (chance .5)",
    "object_area": "mosaic: share of the wanted quadrants that is covered",
    "other_area": "mosaic: share of the other quadrants that is covered",
    "objects": "mosaic: wanted quadrants with something covered, of 2",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What to look at, and how closely."""

    runs: tuple[Path, ...]
    images: int = 512
    mosaics: int = 512
    train: int = 5000  # images to which a head is fitted, where there is none
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One run."""

    run: str
    objective: str
    head: str  # "own" or "fitted"
    measures: dict[str, Mean]
    beyond_first: dict[str, Mean]  # difference from the first run, image by image
    deleted: list[float]  # shares of patches
    by_map: list[float]  # accuracy after deletion in the map's order
    at_random: list[float]


@dataclass(frozen=True, slots=True)
class Examples:
    """A few mosaics and each run's maps of them, for a picture."""

    images: Tensor  # B C H W, as read
    maps: dict[str, Tensor]  # B rows columns, up to 1


def run(options: Options, say: Any = print) -> tuple[list[Row], Examples]:
    """Every run, on the same images and mosaics."""
    models = [api.load(folder) for folder in options.runs]
    images, labels = _images(models, options)
    mosaics, wanted, quadrants = mosaic(images, labels, options.mosaics, options.seed)
    rows: list[Row] = []
    first: dict[str, Tensor] = {}
    maps: dict[str, Tensor] = {}
    for model in models:
        judged = classifier(model, options.train)
        values, curves = _whole(judged, images, labels, options.seed)
        more, found = _mosaics(judged, mosaics, wanted, quadrants)
        values |= more
        first = first or values
        rows.append(
            Row(
                run=str(model.folder),
                objective=model.run.name,
                head="own" if judged.head is None else "fitted",
                measures={name: Mean.of(column) for name, column in values.items()},
                beyond_first={name: Mean.of(column - first[name]) for name, column in values.items()},
                deleted=[cut / _CUTS for cut in range(_CUTS + 1)],
                by_map=curves[0],
                at_random=curves[1],
            )
        )
        maps[str(model.folder)] = (found[:8] / found[:8].amax((1, 2), keepdim=True).clamp_min(1e-12)).cpu()
        say(
            f"{model.folder}: "
            + ", ".join(f"{name} {rows[-1].measures[name]}" for name in ("accuracy", "focus", "objects"))
        )
    return rows, Examples(mosaics[:8], maps)


def as_data(options: Options, rows: Sequence[Row]) -> dict[str, Any]:
    """Plain values."""
    settings = {**asdict(options), "runs": [str(folder) for folder in options.runs], "threshold": THRESHOLD}
    return {"options": settings, "measures": MEASURES, "rows": [asdict(row) for row in rows]}


def _images(models: Sequence[api.Model], options: Options) -> tuple[Tensor, Tensor]:
    """Held-out images that all runs know the classes of."""
    run = models[0].run
    source, name = _judged_on(models[0])
    for model in models[1:]:
        same = model.run.data.shape == run.data.shape and model.run.data.channels == run.data.channels
        if not same or _judged_on(model)[0].classes != source.classes:
            raise ConfigError(
                f"{model.folder}: its images or classes are not those of {models[0].folder}; give comparable runs"
            )
    for model in models:
        if any(side % 2 for side in (*model.backbone.patch_embed.grid_size, *run.data.shape)):
            raise ConfigError(f"{model.folder}: mosaics need an even number of patches on either side")
    return samples.read(source, run.data, name, options.images)


def _judged_on(model: api.Model) -> tuple[Source, str]:
    """A run's test data, or its training data where it has no others; and what to call them."""
    if model.run.data.test:
        return model.run.source("test"), f"{model.folder}: data.test"
    return model.run.source("train"), f"{model.folder}: data.train"


def mosaic(images: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mosaics (M C H W, uint8), the class wanted in each, and which two of the four quadrants have it (M 4 bool)."""
    generator = torch.Generator().manual_seed(seed)
    counts = labels.bincount()
    able = (counts >= 2) & (len(labels) - counts >= 2)
    if not able.any():
        raise ConfigError("--images: too few for mosaics, which need two of a class and two of others; give more")
    usable = able.nonzero()[:, 0]
    wanted = usable[torch.randint(len(usable), (count,), generator=generator)]
    small = F.interpolate(images.float(), scale_factor=0.5, mode="area").round().clamp(0, 255).to(images.dtype)
    rank = torch.rand(count, len(labels), generator=generator)
    mine = rank.masked_fill(labels[None] != wanted[:, None], -1).topk(2).indices  # M 2
    others = rank.masked_fill(labels[None] == wanted[:, None], -1).topk(2).indices
    places = torch.rand(count, 4, generator=generator).argsort(1)  # where each of the four goes
    parts = torch.cat([mine, others], dim=1).gather(1, places.argsort(1))  # M 4: what lies in each quadrant
    tiles = small[parts]  # M 4 C h w
    rows = [torch.cat([tiles[:, left], tiles[:, left + 1]], dim=3) for left in (0, 2)]
    return torch.cat(rows, dim=2), wanted, places.argsort(1) < 2


def _whole(
    judged: Classifier, images: Tensor, labels: Tensor, seed: int
) -> tuple[dict[str, Tensor], tuple[list[float], list[float]]]:
    """The measures on whole images (a number each), and both curves of deletion."""
    prepared = judged.prepare(images)
    maps = judged.maps(prepared, labels)
    covered = maps >= THRESHOLD * maps.amax(1, keepdim=True).clamp_min(1e-12)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.rand(maps.shape, generator=generator).argsort(1)
    order = shuffled.gather(1, maps.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))  # ties at random
    by_map = _deletion(judged, prepared, labels, order)
    at_random = torch.stack(
        [
            _deletion(judged, prepared, labels, torch.rand(maps.shape, generator=generator).argsort(1))
            for _ in range(_RANDOM_ORDERS)
        ]
    ).mean(0)
    values = {
        "accuracy": by_map[:, 0],
        "spread": effective_share(maps),
        "area": covered.double().mean(1),
        "regions": regions(covered.unflatten(1, judged.grid)).double(),
        "deletion": (at_random - by_map)[:, 1:-1].mean(1),
    }
    return values, (by_map.mean(0).tolist(), at_random.mean(0).tolist())


def _deletion(judged: Classifier, prepared: Tensor, labels: Tensor, order: Tensor) -> Tensor:
    """Whether each image is still named rightly (B cuts+1) as more patches, in this order, become the mean colour."""
    rank = order.argsort(1)
    height, width = (side // count for side, count in zip(prepared.shape[2:], judged.grid, strict=True))
    columns = []
    for cut in range(_CUTS + 1):
        gone = (rank < round(cut / _CUTS * rank.shape[1])).unflatten(1, judged.grid)
        pixels = gone.repeat_interleave(height, 1).repeat_interleave(width, 2)
        columns.append(judged.predict(prepared.masked_fill(pixels[:, None], 0.0)) == labels)
    return torch.stack(columns, dim=1).double()


def _mosaics(
    judged: Classifier, mosaics: Tensor, wanted: Tensor, quadrants: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """The measures on mosaics (a number each), and their maps."""
    prepared = judged.prepare(mosaics)
    maps = judged.maps(prepared, wanted).unflatten(1, judged.grid)  # M rows columns
    rows, columns = judged.grid
    covered = maps >= THRESHOLD * maps.amax((1, 2), keepdim=True).clamp_min(1e-12)
    mass, area = (
        tensor.double().unflatten(2, (2, columns // 2)).unflatten(1, (2, rows // 2)).sum((2, 4)).flatten(1)
        for tensor in (maps, covered)
    )  # M 4 each
    patches = rows * columns / 4
    values = {
        "mosaic_accuracy": (judged.predict(prepared) == wanted).double(),
        "focus": (mass * quadrants).sum(1) / mass.sum(1).clamp_min(1e-12),
        "object_area": (area * quadrants).sum(1) / (2 * patches),
        "other_area": (area * ~quadrants).sum(1) / (2 * patches),
        "objects": ((area > 0) & quadrants).double().sum(1),
    }
    return values, maps


def effective_share(maps: Tensor) -> Tensor:
    """On how many of the patches (B N) a map lies, as a share: all of them if it is even, one if it is one."""
    shares = maps.double() / maps.double().sum(1, keepdim=True).clamp_min(1e-300)
    entropy: Tensor = torch.special.entr(shares).sum(1)
    return entropy.exp() / maps.shape[1]


def regions(covered: Tensor) -> Tensor:
    """How many connected regions (by sides, not corners) each picture (B rows columns, bool) has."""
    numbers = torch.arange(1, covered[0].numel() + 1).view(covered.shape[1:])
    label = torch.where(covered, numbers, 0)
    while True:
        padded = F.pad(label, (1, 1, 1, 1))
        around = [padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]]
        spread = torch.where(covered, torch.stack([label, *around]).amax(0), 0)
        if torch.equal(spread, label):
            return (covered & (label == numbers)).sum((1, 2))
        label = spread
