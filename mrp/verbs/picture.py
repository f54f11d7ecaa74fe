"""`mrp picture`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrp.verbs import _words

HELP = "draw what models make of images: reconstructions, attention, patch features as colours, class-activation maps"
EXAMPLE = "mrp picture runs/demo --out pictures"

WHAT = ("reconstruction", "attention", "pca", "cam")


def words(parser: argparse.ArgumentParser) -> None:
    """Models, images, what to draw of them."""
    parser.add_argument(
        "paths", nargs="+", metavar="PATH",
        help="checkpoints (a run's folder, one of its checkpoints, weights to import), side by side where there are "
        "several; then images: files, or folders of them (default: test images of the first run)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FOLDER", help="where the pictures go (default: RUN/pictures)")
    parser.add_argument(
        "--what", type=_what, default=WHAT, metavar="A,B", help=f"some of {', '.join(WHAT)} (default: all)"
    )
    parser.add_argument(
        "--ratios", type=_ratios, default=(0.5, 0.75, 0.9), metavar="A,B",
        help="shares of the patches that are hidden for reconstructions (default: .5,.75,.9)",
    )  # fmt: skip
    parser.add_argument("--layer", type=_words.count, metavar="N", help="the layer, counted from 1 (default: the last)")
    parser.add_argument(
        "--count", type=_words.count, default=8, metavar="N",
        help="how many images, evenly spread where there are more (default: 8)",
    )  # fmt: skip
    parser.add_argument("--seed", type=_words.number, default=0, metavar="N", help="seed of the masks (default: 0)")
    _words.add_weights(parser)


def run(options: argparse.Namespace) -> None:
    """Draws the pages, and says what is left out."""
    from mrp import model, probing
    from mrp.config import ConfigError
    from mrp.report import seen, sheets
    from mrp.report.page import short_names

    checkpoints, images = _told_apart(options.paths)
    models = [model.load(path, options.weights) for path in checkpoints]
    named = list(zip(short_names([Path(path) for path in checkpoints]), models, strict=True))
    if images:
        chosen, total = seen.found(images, options.count)
        given, unread = seen.read(chosen)
        if total > len(chosen):
            print(f"{len(chosen)} of {total} images, evenly spread; --count shows more")
    else:
        given, unread = seen.held_out(models[0], options.count), []
    by_model, names, faults = seen.see(named, given, unread)
    order = sheets.Order(by_model, names, options.ratios, options.layer, options.seed)
    folder = Path(options.out) if options.out else probing.results_folder(checkpoints[0], models[0]) / "pictures"
    written, left_out = sheets.draw(order, options.what, folder)
    for line in (*faults, *left_out):
        print(line)
    if not written:
        raise ConfigError("there is nothing to draw: " + "; ".join(left_out))
    for path in written:
        print(f"written to {path}")


def _told_apart(paths: list[str]) -> tuple[list[str], list[Path]]:
    """Returns the checkpoints and the images among the words."""
    from mrp.config import ConfigError
    from mrp.data.tree import EXTENSIONS
    from mrp.interop import runs

    def is_image(word: str) -> bool:
        path = Path(word)
        is_weights = runs.is_ours(path) or (path / "config.json").is_file()
        return word.lower().endswith(EXTENSIONS) or (path.is_dir() and not is_weights)

    are_images = [is_image(word) for word in paths]
    count = (*are_images, True).index(True)
    if not count:
        raise ConfigError(f"{paths[0]}: is no checkpoint, which comes before the images")
    if not all(are_images[count:]):
        late = paths[count + are_images[count:].index(False)]
        raise ConfigError(f"{late}: is no image, and checkpoints come before the images")
    return paths[:count], [Path(word) for word in paths[count:]]


def _what(word: str) -> tuple[str, ...]:
    """Reads some of the things to draw, in the order in which they are drawn."""
    given = word.split(",")
    if unknown := next((one for one in given if one not in WHAT), None):
        raise argparse.ArgumentTypeError(f"'{unknown}' was given; allowed: {', '.join(WHAT)}, with commas between")
    return tuple(one for one in WHAT if one in given)


def _ratios(word: str) -> tuple[float, ...]:
    """Reads shares between 0 and 1."""
    try:
        ratios = tuple(float(one) for one in word.split(","))
    except ValueError:
        ratios = (0.0,)
    if not all(0 < ratio < 1 for ratio in ratios):
        raise argparse.ArgumentTypeError(f"'{word}' was given; allowed: shares between 0 and 1, with commas between")
    return ratios
