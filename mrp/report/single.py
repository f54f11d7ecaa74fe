"""The page about one run, one of its checkpoints, or imported weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mrp.config import ConfigError
from mrp.folder import CONFIG
from mrp.report import charts, confused, curves, pictured, render, tagged
from mrp.report.document import Markup, folded, join, page, table, tag
from mrp.report.page import Page
from mrp.report.series import Chart
from mrp.report.told import Told, summary

LIMIT = 5 * 10**6  # bytes of a page
_ROWS = 12  # of results that stand open; a fine-tuned run has one for each validation
_SIDES = (192, 128, 96, 64, 48)  # pixels of an image, tried one after another until the page is small enough


def write(path: Path, again: int | None = None) -> str:
    """Returns the page; images are shown smaller where it would be larger than its limit."""
    told = Told.of(path)
    return fitted(lambda side: page(told.history.name, _body(told, side), again))


def fitted(make: Callable[[int], str]) -> str:
    """Returns a page within the limit: it is made with smaller images until it fits."""
    for side in _SIDES:
        text = make(side)
        if len(text.encode()) <= LIMIT:
            return text
    raise ConfigError(f"the report would have {len(text) / 1e6:.1f} MB, and at most {LIMIT / 1e6:.0f} are written")


def _body(told: Told, side: int) -> Iterator[Markup]:
    missing: list[str] = []
    yield tag("h1", told.history.name)
    yield from summary(told)
    yield from _training(told, missing)
    yield from _features(told, missing)
    yield from _results(told, missing)
    if found := told.tags:
        yield from tagged.section(found)
    yield from _classes(told, missing)
    yield from _pictures(told, side, missing)
    if missing:
        yield tag("h2", "Not here, and what makes it")
        yield tag("ul", *(tag("li", one) for one in missing), class_="missing")
    if told.history.values:
        yield tag("h2", "Configuration")
        text = (told.history.folder / CONFIG).read_text(encoding="utf-8", errors="replace")
        yield folded("every option of the run", tag("pre", text))


def _drawn(drawn: Sequence[Chart]) -> Markup:
    return tag("div", *map(charts.draw, drawn), class_="charts")


def _training(told: Told, missing: list[str]) -> Iterator[Markup]:
    if told.imported:
        missing.append("Curves: these are weights of another project, and their training left no log here.")
        return
    drawn = curves.of_one(curves.TRAINING, told.history)
    if not drawn:
        missing.append(
            join(["Curves: there is no log point yet; ", tag("code", "mrp pretrain"), " goes on and writes them."])
        )
        return
    yield tag("h2", curves.TRAINING.title)
    yield _drawn(drawn)
    if told.verdict is None:
        missing.append("Loader-bound or compute-bound: not recorded; a run that goes on now records it.")


def _features(told: Told, missing: list[str]) -> Iterator[Markup]:
    drawn, tags = (curves.of_one(group, told.history) for group in (curves.FEATURES, curves.TAGS))
    accuracy = curves.accuracies(told.history)
    pictures = [one for one in told.pictures.pictures if "spectrum" in one.arrays]
    if pictures:
        drawn.append(pictured.spectrum(pictures))
    if accuracy is not None:
        drawn.insert(0, accuracy)
    drawn = [*tags, *drawn]
    if drawn:
        yield tag("h2", curves.FEATURES.title)
        yield _drawn(drawn)
    if told.imported:
        return
    if not any(metric.series(told.history) for metric in curves.FEATURES.metrics):
        missing.append(_made_by("Rank, alignment and uniformity over training", curves.FEATURES.command))
    if accuracy is None and not tags:
        evaluate = "evaluate={knn: {every: 5 epochs}, logistic: {every: 10 epochs}}"
        missing.append(_made_by("Accuracy over training", f"mrp pretrain RECIPE '{evaluate}'"))


def _made_by(what: str, command: str) -> Markup:
    return join([f"{what}: ", tag("code", command)])


def _results(told: Told, missing: list[str]) -> Iterator[Markup]:
    results = told.results
    if results is None:
        command = _made_by("Results on held-out images", f"mrp probe {told.path}")
        missing.append(f"Results: {told.damage}." if told.damage else command)
        return
    yield tag("h2", "Results")
    yield from results_table(results)


def results_table(results: Page) -> Iterator[Markup]:
    """Yields what `mrp compare` prints, as a table of the page."""
    shown = render.shown(results)
    rows = [
        [*labels, *(tag("span", render.text_of(one.cell), class_="best" if one.is_best else None) for one in entries)]
        for labels, entries in shown.lines
    ]
    whole = table(shown.header, rows, labels=len(shown.lines[0][0]) if shown.lines else 1)
    yield whole if len(rows) <= _ROWS else folded(f"{len(rows):,} rows", whole)
    for note in render.notes(results, "Bold"):
        yield tag("p", note, class_="note")


def _classes(told: Told, missing: list[str]) -> Iterator[Markup]:
    if found := told.history.classes():
        yield from confused.section(found)
    elif "tags" in (found := told.history.measured("validation")):
        yield from tagged.section(found, "Told by the classifier after")
    elif not told.imported:
        missing.append(_made_by("Classes and their confusions", f"mrp finetune RECIPE init={told.path}"))


def _pictures(told: Told, side: int, missing: list[str]) -> Iterator[Markup]:
    pictures, faults = told.pictures
    missing.extend(f"Pictures: {fault}." for fault in faults)
    if not pictures:
        if not faults:
            missing.append("Pictures: there is no checkpoint yet; the run writes the first one itself.")
        return
    newest = pictures[-1]
    titles = {
        "images": "Pictures", "reconstructions": "Reconstructions", "attention": "Attention",
        "colours": "Patch features", "embedding": "Embedding and neighbours",
    }  # fmt: skip
    missing.extend(f"{titles[name]}: {reason}." for name, reason in newest.without.items())
    if (images := newest.arrays.get("input")) is not None and max(images.shape[1:3]) > side:
        yield tag("p", f"Images are shown at {side} pixels, so that the page stays small.", class_="note")
    if "predicted" in newest.arrays:
        normalised = told.history.section("objective").get("target") == "pixels_norm"
        yield from pictured.reconstructions(pictures, side, normalised)
    if "attention" in newest.arrays:
        yield from pictured.attention(newest, side)
    if "colours" in newest.arrays:
        yield from pictured.colours(pictures, side)
    if "plane" in newest.arrays:
        yield from pictured.embedding(newest, side)
