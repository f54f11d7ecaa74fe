"""What passes between the data, the objectives and the loop: one batch in, one output out."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

FULL_SCALE = {torch.uint8: 255.0, torch.uint16: 65535.0}  # floating-point pixels have units of their own


def in_units(images: Tensor) -> Tensor:
    """Returns pixels as float32: those of whole numbers from 0 to 1, floating-point ones as they are."""
    return images.float() / FULL_SCALE.get(images.dtype, 1.0)


def three_channels(images: Tensor) -> Tensor:
    """Returns images (B C H W) as colours: the first channel as grey where they are not three."""
    return images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)


def of_pixels(mask: Tensor, patch: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
    """Returns the mask of each pixel (B 1 H W) from that of each patch (B N), for images of a shape (..., H, W)."""
    patches = mask.reshape(len(mask), 1, shape[-2] // patch[0], shape[-1] // patch[1])
    return patches.repeat_interleave(patch[0], 2).repeat_interleave(patch[1], 3)


@dataclass(slots=True)
class Batch:
    """A micro-batch: images, and the keys from which all randomness of each sample is derived."""

    images: Tensor  # B C H W: uint8, uint16 or float from the loader; float32 inside an objective
    keys: Tensor  # B int64: hash(seed, epoch, sample, view)
    labels: Tensor | None = None  # B; B classes once mixed; B tags where the data have tags: 1, 0, NaN for unknown
    valid: Tensor | None = None  # B bool: False for filler rows of a rank that has run out in evaluation
    step: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    places: Tensor | None = None  # B int64, in training: where the global batch has each image's sample
    present: Tensor | None = None  # B C bool: the channels that an image has, where the data may lack some

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Returns the same batch on a device."""
        moved: Batch = pytree.tree_map_only(Tensor, lambda x: x.to(device, non_blocking=non_blocking), self)
        return moved

    def pin_memory(self) -> Batch:
        """Returns the same batch in page-locked memory; torch's loader calls this."""
        pinned: Batch = pytree.tree_map_only(Tensor, lambda x: x.pin_memory(), self)
        return pinned

    def with_images(self, images: Tensor) -> Batch:
        """Returns the same batch with other images."""
        return replace(self, images=images)


@dataclass(slots=True)
class Output:
    """What an objective returns for one micro-batch."""

    loss: Tensor  # scalar, with gradient
    metrics: dict[str, Tensor] = field(default_factory=dict)  # detached scalars
    per_sample: dict[str, Tensor] = field(default_factory=dict)  # B each, detached
    features: Tensor | None = None  # B D, detached
    scores: Tensor | None = None  # B classes, detached: of a classifier, how likely each class is its answer


@dataclass(frozen=True, slots=True)
class Division:
    """How a global batch is divided over processes, and each process's share into micro-batches; counted in images."""

    batch: int
    group: int  # images that are divided over the processes together: what acts on each other, or the whole batch
    processes: int
    micro_batch: int
    accumulation: int
    views: int  # images per sample; those of one sample are never parted


def _register(cls: type[Any]) -> None:
    assert is_dataclass(cls)
    names = tuple(item.name for item in fields(cls))
    pytree.register_pytree_node(
        cls,
        lambda value: ([getattr(value, name) for name in names], None),
        lambda children, _: cls(*children),
        serialized_type_name=f"mrp.{cls.__name__}",
    )


_register(Batch)
_register(Output)
