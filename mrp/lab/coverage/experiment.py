"""How much of the objects class-activation maps cover: the pictures of Pan, Zhou and Yan (ICLR 2023) as numbers.

The paper shows maps of encoders that learned by reconstruction beside supervised ones, and says that they cover more
regions. Data sets such as CIFAR-10 have no boxes, so we make something to cover: a mosaic of four images at half their
size, two of one class and two of others. The map of that class should cover its two quadrants, both of them, and not
the others. (To count connected regions would punish coverage: wide maps merge.) Beside gradient times activation stands
Eigen-CAM, which asks for no class. To test whether a map means anything, patches are deleted in its order: accuracy
must fall faster than if they are deleted in random order.
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
from mrp.lab.coverage.activation import Classifier, classifier
from mrp.lab.estimate import Estimate
from mrp.lab.images import held_out, read
from mrp.report.looks import Array, eigen_cam

THRESHOLD = 0.5  # what counts as covered, as a share of a map's largest value
CUTS = 8  # steps in which the patches are deleted
RANDOM_ORDERS = 3
SMALLEST = 1e-12  # avoids a division by zero for empty maps
MEASURES = {
    "accuracy": "accuracy on whole images",
    "spread": "effective share of patches, exp(entropy) / patches",
    "area": "share of patches above half of the largest",
    "deletion": "accuracy lost to deletion in the map's order, over that in random order",
    "mosaic_accuracy": "mosaics of two classes' images named after the wanted class",
    "focus": "mosaic: share of the map on the two wanted quadrants (chance .5)",
    "object_area": "mosaic: share of the wanted quadrants that is covered",
    "other_area": "mosaic: share of the other quadrants that is covered",
    "objects": "mosaic: wanted quadrants with something covered, of 2",
    "eigen_focus": "mosaic, Eigen-CAM: share of the map on the two wanted quadrants (chance .5)",
    "eigen_object_area": "mosaic, Eigen-CAM: share of the wanted quadrants that is covered",
    "eigen_other_area": "mosaic, Eigen-CAM: share of the other quadrants that is covered",
}


@dataclass(frozen=True, slots=True)
class Options:
    """The runs, and how many images to measure them on."""

    runs: Sequence[Path]
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
    measures: dict[str, Estimate]
    beyond_first: dict[str, Estimate]  # the difference from the first run, image by image
    deleted: list[float]  # shares of patches
    by_map: list[float]  # accuracy after these are deleted in the map's order
    at_random: list[float]  # the same in random order


@dataclass(frozen=True, slots=True)
class Examples:
    """A few mosaics and each run's maps of them, for a picture."""

    images: Tensor  # B C H W, as read
    wanted: Tensor  # B 4: which quadrants show the wanted class, row by row
    maps: dict[str, dict[str, Array]]  # by run, and by kind of map: B rows columns


def run(options: Options) -> tuple[list[Row], Examples]:
    """Measures every run on the same images and mosaics."""
    models = [api.load(folder) for folder in options.runs]
    images, labels = _images(models, options.images)
    mosaics, wanted, quadrants = mosaic(images, labels, options.mosaics, options.seed)
    rows: list[Row] = []
    first: dict[str, Tensor] = {}
    examples = Examples(mosaics[:8], quadrants[:8], {})
    for model in models:
        encoder = classifier(model, options.train)
        values, by_map, at_random = _whole(encoder, images, labels, options.seed)
        more, maps = _mosaics(encoder, mosaics, wanted, quadrants)
        values |= more
        first = first or values
        row = Row(
            run=str(model.folder),
            objective=model.run.name,
            head="own" if encoder.head is None else "fitted",
            measures={name: Estimate.over_images(column) for name, column in values.items()},
            beyond_first={name: Estimate.over_images(column - first[name]) for name, column in values.items()},
            deleted=[cut / CUTS for cut in range(CUTS + 1)],
            by_map=by_map,
            at_random=at_random,
        )
        rows.append(row)
        examples.maps[row.run] = {kind: kept[:8] for kind, kept in maps.items()}
        print(f"{row.run}: " + ", ".join(f"{name} {row.measures[name]}" for name in ("accuracy", "focus", "objects")))
    return rows, examples


def as_data(options: Options, rows: Sequence[Row]) -> dict[str, Any]:
    """Returns plain values."""
    settings = {**asdict(options), "runs": [str(folder) for folder in options.runs], "threshold": THRESHOLD}
    return {"options": settings, "measures": MEASURES, "rows": [asdict(row) for row in rows]}


def _images(models: Sequence[api.Model], count: int) -> tuple[Tensor, Tensor]:
    """Returns held-out images, and their labels, which have to be the same classes for all runs."""
    first = models[0]
    source, name = held_out(first.run)
    for model in models:
        data = model.run.data
        same = data.shape == first.run.data.shape and data.channels == first.run.data.channels
        if not same or held_out(model.run)[0].classes != source.classes:
            raise ConfigError(
                f"{model.folder}: its images or classes are not those of {first.folder}; give comparable runs"
            )
        if any(side % 2 for side in (*model.backbone.patch_embed.grid_size, *data.shape)):
            raise ConfigError(f"{model.folder}: mosaics need an even number of patches on either side")
    return read(source, first.run.data, f"{first.folder}: {name}", count)


def mosaic(images: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mosaics (M C H W, uint8), the class wanted in each, and which two of its four quadrants show it (M 4)."""
    generator = torch.Generator().manual_seed(seed)
    counts = labels.bincount()
    usable = ((counts >= 2) & (len(labels) - counts >= 2)).nonzero()[:, 0]
    if not len(usable):
        raise ConfigError("--images: too few for mosaics, which need two of a class and two of others; give more")
    wanted = usable[torch.randint(len(usable), (count,), generator=generator)]
    small = F.interpolate(images.float(), scale_factor=0.5, mode="area").round().clamp(0, 255).to(images.dtype)
    rank = torch.rand(count, len(labels), generator=generator)
    same = rank.masked_fill(labels[None] != wanted[:, None], -1).topk(2).indices  # M 2
    others = rank.masked_fill(labels[None] == wanted[:, None], -1).topk(2).indices
    order = torch.rand(count, 4, generator=generator).argsort(1).argsort(1)  # which of the four is in each quadrant
    tiles = small[torch.cat([same, others], dim=1).gather(1, order)]  # M 4 C h w
    rows = [torch.cat([tiles[:, left], tiles[:, left + 1]], dim=3) for left in (0, 2)]
    return torch.cat(rows, dim=2), wanted, order < 2


def _whole(
    encoder: Classifier, images: Tensor, labels: Tensor, seed: int
) -> tuple[dict[str, Tensor], list[float], list[float]]:
    """Returns the measures on whole images (one value each), and accuracy over deletion by the map and at random."""
    prepared = encoder.model.module.prepare(images)
    maps = encoder.maps(prepared, labels)
    area = covered(maps)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.rand(maps.shape, generator=generator).argsort(1)  # so that ties are broken at random
    order = shuffled.gather(1, maps.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    by_map = _deletion(encoder, prepared, labels, order)
    random_orders = [torch.rand(maps.shape, generator=generator).argsort(1) for _ in range(RANDOM_ORDERS)]
    at_random = torch.stack([_deletion(encoder, prepared, labels, order) for order in random_orders]).mean(0)
    values = {
        "accuracy": by_map[:, 0],
        "spread": effective_share(maps),
        "area": area.double().mean(1),
        "deletion": (at_random - by_map)[:, 1:-1].mean(1),
    }
    return values, by_map.mean(0).tolist(), at_random.mean(0).tolist()


def _deletion(encoder: Classifier, prepared: Tensor, labels: Tensor, order: Tensor) -> Tensor:
    """Returns whether each image is classified correctly (B cuts+1) as more patches become the mean colour."""
    rank = order.argsort(1)
    height, width = (side // count for side, count in zip(prepared.shape[2:], encoder.grid, strict=True))
    columns = []
    for cut in range(CUTS + 1):
        deleted = (rank < round(cut / CUTS * rank.shape[1])).unflatten(1, encoder.grid)
        pixels = deleted.repeat_interleave(height, 1).repeat_interleave(width, 2)
        columns.append(encoder.predict(prepared.masked_fill(pixels[:, None], 0.0)) == labels)
    return torch.stack(columns, dim=1).double()


def _mosaics(
    encoder: Classifier, mosaics: Tensor, wanted: Tensor, quadrants: Tensor
) -> tuple[dict[str, Tensor], dict[str, Array]]:
    """Returns the measures on mosaics (one value each), and the maps (M rows columns)."""
    prepared = encoder.model.module.prepare(mosaics)
    maps = {
        "gradient x activation": encoder.maps(prepared, wanted).unflatten(1, encoder.grid).cpu().numpy(),
        "Eigen-CAM": eigen_cam(encoder.model, mosaics),
    }
    asked, eigen = (on_quadrants(torch.from_numpy(each), quadrants) for each in maps.values())
    values = {"mosaic_accuracy": (encoder.predict(prepared) == wanted).double().cpu(), **asked}
    return values | {f"eigen_{name}": value for name, value in eigen.items() if name != "objects"}, maps


def on_quadrants(maps: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Returns what maps of mosaics (M rows columns) cover of the quadrants that are wanted (M 4) and of the others."""
    rows, columns = maps.shape[1:]
    mass, area = (
        values.double().view(-1, 2, rows // 2, 2, columns // 2).sum((2, 4)).flatten(1)
        for values in (maps, covered(maps.flatten(1)))
    )  # M 4 each
    patches = rows * columns / 2  # of two quadrants
    total = mass.sum(1)
    return {  # an empty map prefers no quadrant, as chance does
        "focus": torch.where(total > SMALLEST, (mass * wanted).sum(1) / total.clamp_min(SMALLEST), 0.5),
        "object_area": (area * wanted).sum(1) / patches,
        "other_area": (area * ~wanted).sum(1) / patches,
        "objects": ((area > 0) & wanted).double().sum(1),
    }


def covered(maps: Tensor) -> Tensor:
    """Returns which patches of maps (B N) are above half of the map's largest value; an empty map covers nothing."""
    return maps >= THRESHOLD * maps.amax(1, keepdim=True).clamp_min(SMALLEST)


def effective_share(maps: Tensor) -> Tensor:
    """Returns over what share of the patches a map (B N) is spread: 1 if it is even, 1 / N if it is on one patch."""
    shares = maps.double() / maps.double().sum(1, keepdim=True).clamp_min(1e-300)
    entropy: Tensor = torch.special.entr(shares).sum(1)
    return entropy.exp() / maps.shape[1]
