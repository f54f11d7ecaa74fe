"""What every source of data must do, tried on a few of its samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mrp.check.outcome import Failed, Skipped, refuse_misspelt_options, sent_to_worker
from mrp.config import Node, Tree, build
from mrp.data.augment import View
from mrp.data.config import Config as Data
from mrp.data.loader import Loader
from mrp.data.open import open_source
from mrp.data.order import Order
from mrp.data.source import Partial, Source
from mrp.data.sources import SOURCES

_SIDE = 16  # pixels of the images in batches
_BATCH = 4
_KINDS = (np.uint8, np.uint16, np.float32)  # of pixels


def opened(section: Node) -> Source:
    """Returns the training data of a section."""
    return open_source(section, "train")


def samples_are_images(section: Node) -> None:
    """Samples are images, and their labels those of `labels`."""
    source = opened(section)
    if len(source) < 1:
        raise Failed("it holds no samples", "let __len__ count them")
    for index in sorted({0, len(source) // 2, len(source) - 1}):
        image, label = source.read(index)
        if isinstance(image, Partial):
            _check_partial(index, image, source)
            image = image.pixels
        if isinstance(image, np.ndarray) and (image.ndim != 3 or image.dtype not in _KINDS):
            raise Failed(
                f"sample {index} is {image.dtype} of shape {image.shape}",
                "return pixels H x W x C of uint8, uint16 or float32",
            )
        if not isinstance(image, bytes | np.ndarray):
            raise Failed(f"sample {index} is a {type(image).__name__}", "return the bytes of a file, or pixels (H W C)")
        if int(label) != int(source.labels[index]):
            other = source.labels[index]
            raise Failed(f"read({index}) has the label {label} and labels[{index}] is {other}", "mend one")
    if source.classes and not 0 <= int(np.max(source.labels)) < len(source.classes):
        raise Failed(f"a label is {np.max(source.labels)}, of {len(source.classes)} classes", "name every class")
    if odd := sorted({*np.unique(source.tagged).tolist()} - {-1, 0, 1}):
        raise Failed(f"its tagged holds {odd[0]}", "give 1 where an image has a tag, 0 where not, -1 where unknown")


def _check_partial(index: int, image: Partial, source: Source) -> None:
    if not source.partial:
        raise Failed(f"sample {index} is a Partial, and the source's `partial` is False", "set partial = True")
    if image.present.dtype != bool or image.present.shape != image.pixels.shape[2:] or not image.present.any():
        raise Failed(
            f"sample {index} has {image.pixels.shape[2]} channels, of which present is {image.present}",
            "give one bool per channel, of which one at least is True",
        )


def the_identity_is_of_the_data(section: Node) -> None:
    """Its identity is a text, the same each time that it is opened."""
    sources = opened(section), opened(section)
    first, second = (source.identity for source in sources)
    if not isinstance(first, str) or len(first) < 16:
        raise Failed(f"the identity is {first!r}", "make it a sha256 of what the data are")
    if first != second:
        raise Failed(
            "opened twice, it has two identities: no run on it could be resumed",
            "hash what the data are, and neither the time nor an address in memory",
        )


def a_sample_is_the_same_each_time(section: Node) -> None:
    """The same number is the same image each time, whatever was read before."""
    first, second = opened(section), opened(section)
    numbers = sorted({0, 1 % len(first), len(first) // 2, len(first) - 1})
    forwards = [first.read(index) for index in numbers]
    backwards = [second.read(index) for index in reversed(numbers)][::-1]
    for number, (image, _), (other, _) in zip(numbers, forwards, backwards, strict=True):
        if not np.array_equal(_bytes(image), _bytes(other)):
            raise Failed(
                f"sample {number} is another image when others are read before it",
                "let `read` depend on its index alone (np.random.default_rng([seed, index]))",
            )


def it_is_sent_to_workers(section: Node) -> None:
    """It is sent to a worker process, which reads the same."""
    source = opened(section)
    remedy = "open files when they are read, and keep only paths and numbers"
    again = sent_to_worker(source, type(source).__module__, remedy)
    same = np.array_equal(_bytes(again.read(0)[0]), _bytes(source.read(0)[0]))
    if not same or again.identity != source.identity:
        raise Failed("in a worker it is other data", "let it follow from its section alone")
    here, there = _batches(section, source, workers=0), _batches(section, source, workers=1)
    if not torch.equal(here, there):
        raise Failed("a worker process reads other images", "let `read` depend on its index alone")


def processes_share_it(section: Node) -> None:
    """Two processes see in each step what one sees."""
    source = opened(section)
    whole, halves = _batches(section, source), [_batches(section, source, rank=rank, world=2) for rank in (0, 1)]
    both = torch.cat([half.view(2, -1, *half.shape[1:]) for half in halves], dim=1)  # of two steps
    if not torch.equal(both.flatten(0, 1), whole):
        raise Failed("two processes see other images than one", "let `read` depend on its index alone")


def a_misspelt_option_is_one_line(section: Node) -> None:
    """A misspelt option is an error of one line."""
    refuse_misspelt_options(SOURCES, section, "derive Config from mrp.config.Node")


def _batches(section: Node, source: Source, workers: int = 0, rank: int = 0, world: int = 1) -> torch.Tensor:
    """Returns the images of two steps, as training sees them."""
    image = source.read(0)[0]
    image = image.pixels if isinstance(image, Partial) else image
    channels = image.shape[2] if isinstance(image, np.ndarray) else 3
    values: dict[str, Any] = {"size": _SIDE, "channels": channels, "mean": [0.5] * channels, "std": [0.5] * channels}
    data = build(Data, Tree({"train": section, "augment": "resize", **values}, {}))
    batch = min(_BATCH, len(source) // 2 * 2)
    if not batch:
        raise Skipped("it holds one sample, and two processes need two")
    loader = Loader(
        source, Order(len(source), batch, 0), View(data, train=True), group=batch, micro_batch=batch // world,
        rank=rank, world=world, workers=workers,
    )  # fmt: skip
    try:
        return torch.cat([each.images for step in loader.steps(0, 2) for each in step])
    finally:
        loader.close()


def _bytes(image: Any) -> np.ndarray[Any, Any]:
    if isinstance(image, Partial):
        return image.pixels * image.present
    return np.frombuffer(image, np.uint8) if isinstance(image, bytes) else image


CHECKS = (
    samples_are_images, the_identity_is_of_the_data, a_sample_is_the_same_each_time, it_is_sent_to_workers,
    processes_share_it, a_misspelt_option_is_one_line,
)  # fmt: skip
