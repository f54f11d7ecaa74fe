"""`mrp shards`: make, check and look at shards."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrp import progress
from mrp.config import ConfigError
from mrp.progress import Bar
from mrp.verbs._words import count as positive

if TYPE_CHECKING:
    from mrp.data.manifest import Manifest


_BATCH = 256  # images, for which the balance of classes is judged

HELP = "make shards of images, check them and look at them: build, index, verify, stats, show"
EXAMPLE = "mrp shards build /data/in1k/train /data/in1k-shards"


def words(parser: argparse.ArgumentParser) -> None:
    """Adds the options of each action."""
    verbs = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = verbs.add_parser("build", help="make shards from folders or archives; the same command again continues")
    build.add_argument("source", help="a folder of images, or an archive of ImageNet-1K or CIFAR")
    build.add_argument("out", help="the folder for the shards")
    build.add_argument(
        "--split", choices=("train", "test"), default="train", help="the split of an archive that holds both"
    )
    build.add_argument(
        "--shard-size", type=positive, default=1000, metavar="N", help="samples per shard (default: 1000)"
    )
    build.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the order in which samples are written (default: 0)"
    )
    build.add_argument("--keep-order", action="store_true", help="write samples in the order of the source")
    build.add_argument(
        "--classes", metavar="FILE", help="only these classes, one name per line; 'imagenet100' comes with mrp"
    )
    build.add_argument(
        "--max-side", type=positive, metavar="N", help="encode images anew whose longer side is longer than N"
    )
    build.add_argument(
        "--raw", type=positive, metavar="SIDE", help="store pixels, not files; the shorter side is at most SIDE"
    )
    build.add_argument(
        "--quality", type=positive, default=90, metavar="Q", help="quality of images encoded anew (default: 90)"
    )
    build.add_argument(
        "--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes (default: one per core)"
    )
    build.add_argument("--devkit", metavar="FILE", help="ImageNet's development kit, which labels the validation tar")
    index = verbs.add_parser("index", help="make manifest and index for webdataset shards made by others")
    index.add_argument("source", help="a folder, or a remote address with a pattern such as train-{0000..0099}.tar")
    index.add_argument("out", nargs="?", help="the folder for manifest and index (default: beside local shards)")
    index.add_argument("--classes", metavar="FILE", help="the names of the labels, one per line")
    verify = verbs.add_parser("verify", help="check every byte against the manifest, or some samples")
    verify.add_argument("--sample", type=positive, metavar="N", help="check only N samples, drawn at random")
    stats = verbs.add_parser("stats", help="counts, sizes, and the mean and standard deviation of the pixels")
    stats.add_argument("--all", action="store_true", help="measure all images, not 10,000")
    show = verbs.add_parser("show", help="draw a page of images")
    show.add_argument("--out", default="contact_sheet.png", metavar="PNG", help="the page (default: contact_sheet.png)")
    show.add_argument("--count", type=positive, default=48, metavar="N", help="how many images (default: 48)")
    show.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the choice of images (default: 0)")
    for verb in (verify, stats, show):
        verb.add_argument("shards", help="a folder of shards")


def run(options: argparse.Namespace) -> None:
    """Does what was asked."""
    place = getattr(options, "shards", "")
    if place and "://" not in place and not Path(place).expanduser().exists():
        raise ConfigError(f"{place}: there is no such folder; give one that 'mrp shards build' has made")
    {"build": _build, "index": _index, "verify": _verify, "stats": _stats, "show": _show}[options.action](options)


def _build(options: argparse.Namespace) -> None:
    from mrp.data.shardtool.build import Options, Plan, build, complete
    from mrp.data.shardtool.imagenet import open_original, shortfall
    from mrp.data.subset import select

    if not 1 <= options.quality <= 100:
        raise ConfigError(f"--quality: {options.quality} was given; allowed: 1 to 100")
    if options.raw and options.max_side:
        raise ConfigError("--raw and --max-side: both say how large images become; give one of them")
    source = open_original(options.source, options.split, Path(options.devkit) if options.devkit else None)
    seed = None if options.keep_order else options.seed
    made = Options(options.shard_size, seed, options.max_side, options.quality, options.raw)
    plan = Plan(select(source, options.source, options.classes, None), made, Path(options.out))
    if (lacking := shortfall(source)) is not None:
        progress.put(f"warning: {lacking}", sys.stderr)
    if source.left_out:
        progress.put(f"warning: {source.left_out}; rename those that are images", sys.stderr)
    if complete(plan) is not None:
        print(f"{options.out}: is complete, from this source and with these options; nothing was done")
    with Bar("shards") as bar:
        manifest = build(plan, options.workers, bar)
    _report(manifest, Path(options.out))


def _index(options: argparse.Namespace) -> None:
    from mrp.data.shardtool.index import index
    from mrp.data.storage.hub import HubStore
    from mrp.data.storage.open import open_store
    from mrp.data.subset import class_list

    folder, names = _names(options.source)
    remote = "://" in folder
    if remote and not options.out:
        raise ConfigError(f"{folder}: is remote; give a folder for the manifest and the index")
    out = Path(options.out or folder)
    location = "" if out.resolve() == Path(folder).resolve() else folder if remote else str(Path(folder).resolve())
    classes = class_list(options.classes) if options.classes else None
    store = open_store(folder)
    if isinstance(store, HubStore):
        location = store.pinned(names[0])  # shards of a later commit may be others
    with Bar("shards") as bar:
        manifest = index(store, names, out, location, classes, bar)
    _report(manifest, out)
    _warn_of_order(str(out))


def _warn_of_order(shards: str) -> None:
    """Says so if a run with the usual options would see batches of few classes."""
    from mrp.data.balance import balance_warning
    from mrp.data.config import Config
    from mrp.data.mixtures import order

    source = _open(shards)
    batches = order(source, Config(train=shards, size=1), min(_BATCH, len(source)), 0)
    if (warning := balance_warning(source, batches)) is not None:
        print(warning, file=sys.stderr)


def _names(source: str) -> tuple[str, list[str]]:
    """The place of the shards, and their names in order."""
    from mrp.data.shardtool.scan import expand

    if "://" not in source and Path(source).is_dir():
        return source, sorted(path.name for path in Path(source).glob("[!.]*.tar"))
    if source.startswith("pipe:"):
        raise ConfigError(f"{source[:60]}: commands are not run; give a folder or an address")
    folder, _, pattern = source.rpartition("/")
    if not pattern.endswith(".tar"):
        raise ConfigError(f"{source}: neither a folder nor a pattern that ends in .tar, as train-{{0000..0099}}.tar")
    return folder or ".", expand(pattern)


def _report(manifest: Manifest, folder: Path) -> None:
    print(f"{folder}: {manifest.count:,} samples of {len(manifest.classes):,} classes in {len(manifest.shards):,} "
          f"shards, {manifest.bytes / 2**30:.3g} GiB")  # fmt: skip
    if manifest.mean:
        mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (manifest.mean, manifest.std))
        print(f"mean ({mean}), std ({std})")
    for note, count in manifest.notes.items():
        if note not in ("labelled", "unlabelled") and isinstance(count, int) and count:
            print(f"{note}: {count:,}" if not note.startswith("unreadable: ") else note)


def _verify(options: argparse.Namespace) -> None:
    from mrp.data.shardtool.inspect import verify

    if "://" in options.shards:
        raise ConfigError(f"{options.shards}: is remote; verify a folder with its manifest.json and index.bin")
    with Bar("shards") as bar:
        faults = verify(Path(options.shards), options.sample, bar)
    for fault in faults[:-1]:
        print(fault, file=sys.stderr)
    if faults:
        raise ConfigError(f"{faults[-1]}; {len(faults)} faults in all: put back what is damaged")
    print(f"{options.shards}: {f'{options.sample:,} samples are' if options.sample else 'every byte is'} sound")


def _stats(options: argparse.Namespace) -> None:
    from mrp.data.shardtool.inspect import measured, sizes

    shards = _open(options.shards)
    _report(shards.manifest, Path(options.shards))
    rows = sizes(shards)
    width = max(count for _, count in rows)
    print("longer side in pixels:")
    for name, count in rows:
        print(f"  {name:<14} {count:>13,}  {'#' * round(40 * count / width)}")
    mean, std, count = measured(shards, options.all)
    print(f"measured on {count:,} images: mean {list(mean)}, std {list(std)}")


def _show(options: argparse.Namespace) -> None:
    from mrp.data.shardtool.inspect import contact_sheet

    contact_sheet(_open(options.shards), Path(options.out), options.count, options.seed)
    print(f"written to {options.out}")


def _open(place: str) -> Any:
    from mrp.data.config import CacheConfig
    from mrp.data.sources.shards import Config, Source
    from mrp.data.storage.cache import Cache

    return Source(Config(path=place), "train", Cache(CacheConfig()))
