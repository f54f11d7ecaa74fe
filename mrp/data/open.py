"""From what the `data:` section says to a source that can be read."""

from __future__ import annotations

import os
from typing import Literal

import numpy as np
from pydantic import ValidationError

from mrp.config import ConfigError, Node, nearest
from mrp.data.channels import choose
from mrp.data.config import CacheConfig, Config
from mrp.data.labels import labelled, refuse_same_rows
from mrp.data.labeltable import root_of
from mrp.data.mixtures import Mixture
from mrp.data.source import Source, one_line
from mrp.data.sources import RECOGNISED, SOURCES
from mrp.data.storage.cache import Cache
from mrp.data.subset import select
from mrp.outside import SUFFIX

Split = Literal["train", "test"]


def open_data(config: Config, split: Split, cache: Cache) -> Source:
    """Returns the data of a run's `data:` section."""
    spec = config.train if split == "train" else config.test
    where, names = f"data.{split}", config.channels

    found = _labelled(config, split, cache)
    sources = choose(list(found.values()), where, names)
    if not isinstance(spec, tuple):
        return select(sources[0], where, config.classes, config.fraction if split == "train" else None)
    parts = [
        select(source, f"{where}.{number}", part.classes or config.classes, part.fraction or config.fraction)
        for number, (source, part) in enumerate(zip(sources, spec, strict=True))
    ]
    return Mixture(parts, [part.weight for part in spec])


def _labelled(config: Config, split: Split, cache: Cache) -> dict[str, Source]:
    """Returns the sources of a split by their options, with the labels of the table where there is one."""
    spec = config.train if split == "train" else config.test
    assert spec is not None, "whoever asks for test data has looked whether there are any"
    parts: dict[str, str | Node] = (
        {f"data.{split}.{number}": part.source for number, part in enumerate(spec)}
        if isinstance(spec, tuple)
        else {f"data.{split}": spec}
    )
    found = dict[str, Source]()
    for where, one in parts.items():
        found[where] = open_source(one, split, cache, config.channels, classes=config.labels is None)
        if config.labels is not None:
            found[where] = labelled(found[where], config.labels, split, where, root_of(one))
    refuse_same_rows(found.items())
    return found


def open_source(
    spec: str | Node, split: Split, cache: Cache | None = None, channels: int | tuple[str, ...] = (),
    classes: bool = True,
) -> Source:  # fmt: skip
    """Returns the source that a text or a section names; `split` chooses where one name stands for both.

    A section that may name its channels and does not is given the run's `channels`, where these are names. Without
    `classes`, folders are no classes and may lie as they like.
    """
    try:
        config = _recognise(spec, split) if isinstance(spec, str) else spec
        if isinstance(channels, tuple) and channels and getattr(config, "channels", None) == ():
            config = config.model_copy(update={"channels": channels})
        if not classes and getattr(config, "classes", None) is True:
            config = config.model_copy(update={"classes": False})
        source: Source = SOURCES.of(config).Source(config, split, cache or Cache(CacheConfig()))
    except OSError as error:
        raise ConfigError(
            f"{error.filename or spec}: cannot be read: {error.strerror or error}; mend or remove it"
        ) from None
    if (name := getattr(config, "name", "")).endswith(SUFFIX):
        _check(source, name)
    return source


def _check(source: Source, name: str) -> None:
    """Refuses a source of one's own that cannot be what it says: a run would go on, or stop, for a wrong reason."""
    if not isinstance(source.identity, str) or not source.identity:
        raise ConfigError(f"{name}: its identity is {source.identity!r}; give a text, a sha256 of what its data are")
    classes = source.classes
    if len(set(classes)) < len(classes) or not all(isinstance(one, str) for one in classes):
        raise ConfigError(f"{name}: its classes are {one_line(classes)}; give each a name of its own, as text")
    if classes and "labels" in vars(source) and len(source.labels) != len(source):
        raise ConfigError(f"{name}: it has {len(source.labels):,} labels for {len(source):,} images; give each one")
    tags = source.tags
    if classes and tags:
        raise ConfigError(f"{name}: has classes and tags; give one of the two")
    if len(set(tags)) < len(tags) or not all(isinstance(one, str) for one in tags):
        raise ConfigError(f"{name}: its tags are {one_line(tags)}; give each a name of its own, as text")
    if tags and "tagged" in vars(source) and np.shape(source.tagged) != (len(source), len(tags)):
        raise ConfigError(
            f"{name}: its tagged is of shape {np.shape(source.tagged)} for {len(source):,} images and {len(tags)} "
            "tags; give one row per image and one column per tag"
        )
    if tags and "tagged" in vars(source) and not np.isin(source.tagged, (-1, 0, 1)).all():
        raise ConfigError(f"{name}: its tagged holds other numbers than 1 (has it), 0 (has it not) and -1 (unknown)")


def _recognise(text: str, split: Split) -> Node:
    for name in RECOGNISED:
        config: Node | None = SOURCES.find(name).recognise(text)
        if config is not None:
            return config
    if text in SOURCES.names():
        try:
            return SOURCES.read(text)
        except ValidationError:  # it has options that must be given
            raise ConfigError(f"data.{split}: '{text}' needs options; write {{name: {text}, path: PATH}}") from None
    named = f"; 'digits' comes with mrp{nearest(text, ['digits'])}" if os.sep not in text else ""
    start = "" if os.path.isabs(os.path.expanduser(text)) else f" (a relative path starts at {os.getcwd()})"
    raise ConfigError(
        f"data.{split}: '{text}' does not exist; give a folder of images or an archive of CIFAR{start}{named}"
    )
