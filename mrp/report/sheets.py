"""What models make of images, as pages: reconstructions, attention, patch features, class-activation maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from mrp import methodkit as kit
from mrp import progress
from mrp.batch import of_pixels, three_channels
from mrp.config import ConfigError
from mrp.models.vit import grid
from mrp.report import looks
from mrp.report.pictures import GREY, Column, write_page
from mrp.report.seen import Seen

T = TypeVar("T")

SCALED = "Each map is scaled to its own largest value: black is nothing, yellow the most."
CONTRAST = 2.5  # deviations of a normalised patch that are shown as black and as white
_MASKED, _TRUTH = "masked", "truth, normalised per patch"  # titles of what several models may have been given
_SMALL = 112  # pixels of the longer side where there is a cell for every head


@dataclass(frozen=True)
class Order:
    """What is to be drawn, of which images, for which models."""

    seen: Sequence[Seen]
    names: Sequence[str]  # of the images
    ratios: Sequence[float]
    layer: int | None
    seed: int


class _Columns(list[Column]):
    """The columns of a page: what models are given stands there once, and what they make of it once for each."""

    def __init__(self, order: Order) -> None:
        super().__init__()
        self._several = len(order.seen) > 1
        self._given: dict[str, Tensor] = {}

    def give(self, one: Seen, title: str, images: Tensor) -> None:
        """Adds what a model is given, unless the column before it with this title shows the same."""
        before, self._given[title] = self._given.get(title), images
        if before is None:
            self.append(Column(title, images))
        elif not torch.equal(before, images):
            self.add(one, title, images)

    def add(self, one: Seen, title: str, images: Tensor, captions: Sequence[str] = ()) -> None:
        """Adds what a model makes of images, under its name where there are several."""
        self.append(Column(f"{one.name}: {title}" if self._several else title, images, captions))


class Page(NamedTuple):
    """A page before it is drawn."""

    heading: str
    columns: list[Column]
    rows: list[str]


def draw(order: Order, what: Sequence[str], folder: Path) -> tuple[list[Path], list[str]]:
    """Writes a page for each thing to see, and returns the files, and a line on everything that a model cannot show."""
    written, left_out = [], list[str]()
    for name in progress.over(what, "pictures"):
        notes: list[str] = []
        page = PAGES[name](order, notes)
        left_out += [f"{name}: {note}" for note in notes]
        if page is not None:
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / f"{name}.png")
            write_page(page.columns, written[-1], f"{page.heading} {_crops(order)}", page.rows)
    return written, left_out


def _crops(order: Order) -> str:
    """Returns what part of the images is seen."""
    shapes = {data.shape: data.frame.kept(data.shape) for data in (one.model.run.data for one in order.seen)}
    said = ", ".join(
        f"{'the whole image' if kept is None else 'the centre'} at {height} x {width}"
        for (height, width), kept in shapes.items()
    )
    return f"Images as in evaluation: {said}."


def _reconstruction(order: Order, notes: list[str]) -> Page | None:
    able = [one for one in order.seen if _paints(one, notes)]
    painted = [(one, per_ratio) for one in able if any(per_ratio := _painted(one, order, notes))]
    if not painted:
        return None
    columns, borrowers = _Columns(order), []
    for one, per_ratio in painted:
        columns.give(one, "input", _interleaved([one.pixels] * len(order.ratios)))
        titles = list(next(filter(None, per_ratio)))
        borrowers += [one.name] if _TRUTH in titles else []
        for title in titles:
            images = [one.pixels.new_ones(one.pixels.shape) if x is None else x[title] for x in per_ratio]
            add = columns.give if title in (_MASKED, _TRUTH) else columns.add
            add(one, title, _interleaved(images))
    rows = [f"{name}\n{100 * ratio:g} % hidden" for name in order.names for ratio in order.ratios]
    heading = (
        "Reconstructions: what the model makes of the visible patches alone; grey patches are hidden from it. "
        "At visible patches the losses of MAE and SimMIM ask nothing of a prediction, so it is noise there."
    )
    if borrowers:
        who = "This model" if len(order.seen) == 1 else " and ".join(borrowers)
        heading += (
            f" {who}: patches are predicted less their own mean, over their own deviation. The raw prediction is that "
            f"(grey is the mean, black and white are {CONTRAST:g} deviations), and what has colours and brightness "
            "takes them from the hidden image itself."
        )
    return Page(heading, columns, rows)


def _paints(one: Seen, notes: list[str]) -> bool:
    if not one.model.objective.paints:
        notes.append(f"{one.name}: {one.model.run.name} predicts no pixels")
    elif one.model.missing_part is not None:
        notes.append(f"{one.name}: was imported without '{one.model.missing_part}'")
    else:
        return True
    return False


def _painted(one: Seen, order: Order, notes: list[str]) -> list[dict[str, Tensor] | None]:
    """Returns, for each ratio, columns by their titles; None where so much cannot be hidden."""
    painted: list[dict[str, Tensor] | None] = []
    prepare, pixels = one.model.module.prepare, one.pixels
    batch = one.model.batch(one.images, order.seed)
    for ratio in order.ratios:
        try:
            made = one.model.reconstruction(batch, ratio)
        except ConfigError as error:
            notes.append(f"{one.name}: {str(error).removeprefix('objective.')}")
            painted.append(None)
            continue
        hidden = of_pixels(made.mask, one.patch, pixels.shape)
        prediction = prepare.undo(made.images)
        columns = {_MASKED: pixels.masked_fill(hidden, GREY)}
        if made.bare is None:
            columns["raw prediction"] = prediction
            columns["prediction pasted where hidden"] = prediction.where(hidden, pixels)
        else:
            columns[_TRUTH] = _deviations(_normalised(batch.images, one))
            columns["raw prediction, normalised per patch"] = _deviations(made.bare)
            columns["de-normalised: uses the image's own statistics"] = prediction
            columns["the same pasted where hidden"] = prediction.where(hidden, pixels)
        painted.append(columns)
    return painted


def _normalised(images: Tensor, one: Seen) -> Tensor:
    patches = kit.patchify(images, one.patch)
    mean, deviation = kit.patch_statistics(patches)
    return kit.unpatchify((patches - mean) / deviation, one.patch, grid(one.model.backbone))


def _deviations(images: Tensor) -> Tensor:
    return 0.5 + images / (2 * CONTRAST)


def _interleaved(images: Sequence[Tensor]) -> Tensor:
    """Returns several versions of the same images in one column: those of the first image first, in one size."""
    size = tuple(images[0].shape[2:])
    return torch.stack([functional.interpolate(version, size) for version in images], dim=1).flatten(0, 1)


def _attention(order: Order, notes: list[str]) -> Page | None:
    found = _each(order, notes, lambda one: looks.attention(one.model, one.images, order.layer))
    if not found:
        return None
    most = max(maps.shape[1] for _, maps in found)
    per_model = [_heads(one, maps, most) for one, maps in found]
    columns = []
    for number, title in enumerate(("input", *(f"head {head}" for head in range(1, most + 1)), "mean of heads")):
        shown, captions = zip(*(columns[number] for columns in per_model), strict=True)
        columns.append(Column(title, _interleaved(shown), [one for row in zip(*captions, strict=True) for one in row]))
    names = [f"{name}\n{one.name}" if len(found) > 1 else name for name in order.names for one, _ in found]
    looking = {
        "the class token" if one.model.backbone.has_class_token else "the mean of the patches' queries"
        for one, _ in found
    }
    heading = f"Attention of {' or '.join(sorted(looking))} to each patch, {_block(order)}, head by head. {SCALED}"
    tokens = {one.model.backbone.num_prefix_tokens + one.model.backbone.patch_embed.num_patches for one, _ in found}
    even = f"; an even share would be {100 / tokens.pop():.1f} %" if len(tokens) == 1 else ""
    return Page(f"{heading} The number is the largest share that a patch gets{even}.", columns, names)


def _heads(one: Seen, maps: looks.Array, most: int) -> list[tuple[Tensor, list[str]]]:
    """Returns the input, a cell for each of so many heads, empty where there are fewer, and one for their mean."""
    pixels = three_channels(_reduced(one.pixels))
    blank = torch.ones_like(pixels), [""] * len(pixels)

    def cell(shares: looks.Array) -> tuple[Tensor, list[str]]:
        return _overlaid(pixels, shares), [f"max {100 * peak:.1f} %" for peak in shares.max((1, 2))]

    heads = [cell(maps[:, head]) for head in range(maps.shape[1])]
    return [(pixels, blank[1]), *heads, *[blank] * (most - len(heads)), cell(maps.mean(1))]


def _pca(order: Order, notes: list[str]) -> Page | None:
    found = _each(order, notes, lambda one: looks.colours(one.model, one.images, order.layer))
    if not found:
        return None
    columns = _Columns(order)
    for one, colours in found:
        columns.give(one, "input", one.pixels)
        cells = torch.from_numpy(colours).permute(0, 3, 1, 2)
        columns.add(one, "patch features", functional.interpolate(cells, tuple(one.pixels.shape[2:])))
    heading = (
        f"Patch features {_block(order)} as colours: their first three principal components over all images are "
        "red, green and blue. Patches of one colour are alike to the model; colours of two models have nothing in "
        "common."
    )
    return Page(heading, columns, list(order.names))


def _cam(order: Order, notes: list[str]) -> Page | None:
    def maps(one: Seen) -> tuple[looks.Array, looks.Explained]:
        asked = one.model, one.images
        return looks.eigen_cam(*asked, order.layer), looks.gradient_cam(*asked, layer=order.layer)

    found = _each(order, notes, maps)
    if not found:
        return None
    columns = _Columns(order)
    for one, (eigen, gradient) in found:
        columns.give(one, "input", one.pixels)
        columns.add(one, "Eigen-CAM", _overlaid(one.pixels, eigen))
        alike = len({*gradient.what}) == 1
        title = f"gradient x activation{f' of the {gradient.what[0]}' if alike else ', likeliest class'}"
        columns.add(one, title, _overlaid(one.pixels, gradient.maps), () if alike else gradient.what)
    heading = (
        f"Class-activation maps {_block(order)}. Eigen-CAM is the first principal component of each image's patch "
        f"features and asks for no class; gradient x activation is what each patch adds to a score. {SCALED}"
    )
    return Page(heading, columns, list(order.names))


PAGES: dict[str, Callable[[Order, list[str]], Page | None]] = {
    "reconstruction": _reconstruction, "attention": _attention, "pca": _pca, "cam": _cam,
}  # fmt: skip


def _each(order: Order, notes: list[str], look: Callable[[Seen], T]) -> list[tuple[Seen, T]]:
    """Returns what a look at each model gives, and notes the models that it cannot be had of."""
    results = []
    for one in order.seen:
        try:
            results.append((one, look(one)))
        except ConfigError as error:
            notes.append(f"{one.name}: {error}")
    return results


def _block(order: Order) -> str:
    return "in the last block" if order.layer is None else f"in block {order.layer}"


def _overlaid(pixels: Tensor, maps: looks.Array) -> Tensor:
    return torch.from_numpy(looks.overlay(pixels, maps)).permute(0, 3, 1, 2)


def _reduced(pixels: Tensor) -> Tensor:
    """Returns the images no larger than the cells of many columns."""
    longest = max(pixels.shape[2:])
    if longest <= _SMALL:
        return pixels
    height, width = (max(1, round(side * _SMALL / longest)) for side in pixels.shape[2:])
    return functional.interpolate(pixels, (height, width), mode="area")
