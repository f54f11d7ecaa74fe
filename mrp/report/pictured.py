"""Pictures of checkpoints as parts of a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mrp.report import charts
from mrp.report.document import Markup, picture, tag, wide
from mrp.report.gallery import Pictures
from mrp.report.series import Chart, Series

_MAGNIFIED = 96  # pixels that a small image is shown at, about
_GAP = 6  # pixels between two images
_CLASSES = 10  # whose images are drawn in the plane


def spectrum(pictures: Sequence[Pictures]) -> Chart:
    """Returns how the features' variance is shared out among directions, checkpoint by checkpoint."""
    series = []
    for one in pictures:
        values = one.arrays["spectrum"]
        kept = values > 1e-5 * values[0]  # what is smaller is rounding
        shown = values[kept] / values[0]
        series.append(Series.of(f"step {one.step:,}", np.arange(1, len(shown) + 1), shown))
    variances = pictures[-1].arrays["spectrum"] ** 2
    shares = np.cumsum(variances) / variances.sum()
    half, most = (int(np.searchsorted(shares, share)) + 1 for share in (0.5, 0.99))
    title = (
        f"Half of the features' variance lies in {half} {'direction' if half == 1 else 'directions'}, "
        f"99 % in {most} of {len(variances)}"
    )
    images = len(pictures[-1].arrays["plane"])
    return Chart(
        title, "singular value as a share of the largest", series, kind="exact", horizontal="direction",
        note=f"Features of {images} held-out images, centred.",
    )  # fmt: skip


def reconstructions(pictures: Sequence[Pictures], side: int, normalised: bool) -> Iterator[Markup]:
    """Yields held-out images, and how each checkpoint completes them; `normalised`: whether patches are its targets."""
    drawn = [one for one in pictures if "painted" in one.arrays]
    newest = drawn[-1]
    yield tag("h2", "Reconstructions of the same held-out images")
    yield tag("p", (
        "From left to right: the image, the patches that the model sees, the image completed by each kept checkpoint, "
        "and the last one's prediction of every patch. Visible patches are no part of the loss, so their prediction is "
        "poor."
    ))  # fmt: skip
    if normalised:
        yield tag("p", (
            "The model predicts patches without their mean and contrast; both are taken from the image itself here."
        ), class_="note")  # fmt: skip
    yield strips([
        strip("input", newest.arrays["input"], side), strip("seen", newest.arrays["seen"], side),
        *(strip(f"step {one.step:,}", one.arrays["painted"], side) for one in drawn),
        strip("prediction", newest.arrays["predicted"], side),
    ])  # fmt: skip


def attention(newest: Pictures, side: int) -> Iterator[Markup]:
    """Yields one column per head."""
    maps = newest.arrays["attention"]  # B heads H W 3
    yield tag("h2", f"Attention of the last block, step {newest.step:,}")
    yield tag("p", (
        "Where each head of the class token looks (in a model without one: the mean query): the brighter a patch, the "
        "more of the head's attention it has."
    ))  # fmt: skip
    inputs = newest.arrays["input"][: len(maps)]
    yield strips(
        [strip("input", inputs, side), *(strip(f"head {n + 1}", maps[:, n], side) for n in range(maps.shape[1]))]
    )


def colours(pictures: Sequence[Pictures], side: int) -> Iterator[Markup]:
    """Yields one column per checkpoint."""
    drawn = [one for one in pictures if "colours" in one.arrays]
    yield tag("h2", "Patch features as colours")
    yield tag("p", (
        "The first three principal components of the patches' features as red, green and blue: patches of one colour "
        "are alike to the model. Each checkpoint has components of its own, so compare shapes between them, and not "
        "colours."
    ))  # fmt: skip
    inputs = drawn[-1].arrays["input"]
    columns = [strip("input", inputs, side)]
    for one in drawn:
        columns.append(strip(f"step {one.step:,}", _magnified(one.arrays["colours"], inputs.shape[1:3]), side))
    yield strips(columns)


def _magnified(pixels: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Returns squares instead of single pixels, as large as an image."""
    times = max(1, round(shape[0] / pixels.shape[1]))
    return pixels.repeat(times, axis=1).repeat(times, axis=2)


def embedding(newest: Pictures, side: int) -> Iterator[Markup]:
    """Yields where images lie in two dimensions, and the nearest neighbours of some."""
    plane, labels = newest.arrays["plane"], newest.arrays["labels"]
    variances = newest.arrays["spectrum"] ** 2
    note = f"PCA to two dimensions, which hold {100 * variances[:2].sum() / variances.sum():.0f} % of the variance"
    yield tag("h2", f"Embedding of {len(plane)} held-out images, step {newest.step:,}")
    if len(labels):
        title = _of_neighbours(newest)
        counts = np.bincount(labels[labels >= 0], minlength=1)
        there = int((counts > 0).sum())
        drawn = np.sort(np.argsort(counts, kind="stable")[::-1][: min(_CLASSES, there)])
        kept = np.isin(labels, drawn)
        names = [newest.classes[n] if n < len(newest.classes) else str(n) for n in drawn]
        note += "; names stand at the medians of their classes."
        note += f" Only the {_CLASSES} most frequent of {there} classes are drawn." if there > _CLASSES else ""
        groups = np.searchsorted(drawn, labels[kept]).tolist()
    else:
        title, names = "Features of images, without classes", ["image"]
        kept, groups = np.ones(len(plane), bool), [0] * len(plane)
    yield tag("div", charts.scatter(title, plane[kept, 0], plane[kept, 1], names, groups, note), class_="charts one")
    if (beside := newest.arrays.get("beside")) is None:
        return
    yield tag("h3", "Nearest neighbours by cosine, among these images")
    numbers = newest.arrays["beside_numbers"]
    for row, images in zip(numbers, beside, strict=True):
        yield strips([
            strip(_neighbour(newest, int(row[0]), int(number), place), pixels[None], side)
            for place, (number, pixels) in enumerate(zip(row, images, strict=True))
        ])  # fmt: skip


def _of_neighbours(newest: Pictures) -> str:
    """Returns how often the nearest image is of the same class."""
    labels, nearest = newest.arrays["labels"], newest.arrays["nearest"]
    known = labels >= 0
    agree = float((labels[nearest[:, 0]] == labels)[known].mean()) if known.any() else 0.0
    shares = np.unique(labels[known], return_counts=True)[1] / max(1, known.sum())
    by_chance = f"by chance {100 * float((shares**2).sum()):.0f} %"
    return f"The nearest image is of the same class for {100 * agree:.0f} % ({by_chance})"


def _neighbour(newest: Pictures, query: int, number: int, place: int) -> str:
    labels = newest.arrays["labels"]
    name = ""
    if len(labels) and 0 <= labels[number] < len(newest.classes):
        name = newest.classes[labels[number]]
        name = name if len(name) <= 12 else f"{name[:11]}…"
    if place == 0:
        return f"image: {name}" if name else "image"
    sign = "" if not name else " ✓" if labels[number] == labels[query] else " ✗"
    return f"{name}{sign}" if name else f"nearest {place}"


def strips(columns: Sequence[Markup]) -> Markup:
    """Returns columns of images beside each other."""
    return wide(tag("div", *columns, class_="strips"))


def strip(name: str, images: NDArray[np.uint8], side: int) -> Markup:
    """Returns a column of images with its name; small images are magnified, so that each pixel stays a sharp square."""
    longest = max(images.shape[1:3])
    times = max(1, _MAGNIFIED // longest)
    images = _shrunk(images, side) if longest > side else images.repeat(times, axis=1).repeat(times, axis=2)
    opaque = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=255)
    spaced = np.pad(opaque, ((0, 0), (0, _GAP), (0, 0), (0, 0)))  # between two images the page is seen
    column = spaced.reshape(-1, *spaced.shape[2:])[:-_GAP]
    alt = f"{name}: {len(images)} images, one below another" if len(images) > 1 else name
    return tag("figure", tag("figcaption", name), picture(column, alt, lossless=times > 1))


def _shrunk(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    height, width = (max(1, round(size * side / max(images.shape[1:3]))) for size in images.shape[1:3])
    return np.stack([np.asarray(Image.fromarray(one).resize((width, height))) for one in images])
