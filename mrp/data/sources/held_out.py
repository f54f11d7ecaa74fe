"""A source of which a list holds some images out: training gets the others, and evaluation gets these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from mrp.config import ConfigError, Node, reading
from mrp.data import source
from mrp.data.config import SourceName
from mrp.data.open import open_source
from mrp.data.order import Ints
from mrp.data.storage.cache import Cache
from mrp.data.subset import Part
from mrp.files import write_atomically


class Config(Node):
    """Any source, divided by a list that `mrp adapt` writes: data.test gets the listed images, data.train the rest."""

    name: Literal["held_out"] = "held_out"
    path: SourceName  # the source: a folder of images, shards, or a section
    # Whether the folders of the source may be classes; false: images may lie anywhere, without labels.
    classes: bool = True
    list: str  # the file that says which images are held out, and which are damaged and left out


class Source(Part):
    """The images that are held out (test), or all others that are not damaged (train)."""

    def __init__(self, config: Config, split: Literal["train", "test"], cache: Cache) -> None:
        whole = open_source(config.path, "train", cache, classes=config.classes)
        held_out, damaged = _read(Path(config.list).expanduser(), named(config.path), whole)
        rest = np.setdiff1d(np.arange(len(whole)), np.concatenate([held_out, damaged]))
        super().__init__(whole, held_out if split == "test" else rest)


def named(spec: object) -> str:
    """Returns what a source is called in a line of text: its path, where a section has one."""
    return str(getattr(spec, "path", getattr(spec, "name", spec)))


def write(path: Path, whole: source.Source, held_out: Ints, damaged: Mapping[int, str]) -> None:
    """Writes the list; damaged images are named in it."""
    content = {
        "identity": whole.identity,
        "images": len(whole),
        "damaged": [{"image": n, "where": whole.where(n), "fault": damaged[n]} for n in sorted(damaged)],
        "held_out": held_out.tolist(),
    }
    write_atomically(path, json.dumps(content))


def _read(path: Path, name: str, whole: source.Source) -> tuple[Ints, Ints]:
    with reading(path, "'mrp adapt' writes such a list"):
        text = path.read_bytes()
    try:
        content = json.loads(text)
        held_out = np.array(content["held_out"], np.int64)
        damaged = np.array([one["image"] for one in content["damaged"]], np.int64)
        identity, both = content["identity"], np.concatenate([held_out, damaged])
        if len(both) and not 0 <= both.min() <= both.max() < content["images"]:
            raise ValueError("it names images that are not there")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is not a list that 'mrp adapt' has written ({error}); make it anew") from None
    if identity != whole.identity:
        raise ConfigError(
            f"{path}: says which images of {name} are held out, but that holds other images now; bring those back, or "
            "make another list with 'mrp adapt' and --out FOLDER"
        )
    return held_out, damaged
