"""Pictures that need the model: computed once per checkpoint, and kept in the folder of the run's results."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save
from torch import Tensor
from torch.nn import functional

from mrp import progress
from mrp.batch import in_units, of_pixels, three_channels
from mrp.build import open_source
from mrp.checkpoint import checkpoints
from mrp.checkpoint.checkpoints import Checkpoint
from mrp.checkpoint.sealed import MANIFEST
from mrp.config import ConfigError, reading
from mrp.data.augment import View
from mrp.data.loader import EvalLoader
from mrp.data.subset import fixed_sample
from mrp.files import step_name, write_atomically
from mrp.model import NO_DATA, Model, load
from mrp.report import looks
from mrp.run import Run

FOLDER = "pictures"
SHOWN, EMBEDDED, QUERIES, NEAREST = 6, 256, 4, 6  # images; those whose features are compared
_ATTENDED = 4  # images whose attention is shown
_HEADS = 8
_CHECKPOINTS = 6  # that are shown beside each other
_SIDE = 192  # pixels: larger images are shown smaller
_VERSION = 2  # raise it when the same checkpoint could give other pictures
_GREY = 128
_AT_ONCE = 32  # images that go through the model together

Pixels = NDArray[np.uint8]


class HeldOut(NamedTuple):
    """Some test images as the model takes them, and their classes; training images where the run has no others."""

    images: Tensor
    labels: NDArray[np.int64]  # empty where they have none
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Pictures:
    """What was computed of one checkpoint, by name, and why something was not."""

    step: int
    arrays: dict[str, NDArray[Any]]  # images are B H W 3
    without: dict[str, str]  # what there is no picture of: the reason, in a sentence
    classes: tuple[str, ...] = ()


def held_out(run: Run, count: int) -> HeldOut:
    """Returns a fixed choice of images that the run is not trained on, where it names any."""
    source = open_source(run, "test" if run.data.test else "train")
    sample = fixed_sample(source, min(count, len(source)))
    loader = EvalLoader(sample, View(run.data, train=False), batch=len(sample))
    labels = np.asarray(sample.labels, np.int64) if source.classes else np.zeros(0, np.int64)
    return HeldOut(next(iter(loader)).images, labels, tuple(source.classes))


class Drawn(NamedTuple):
    """The pictures of some checkpoints, the newest last, and why others have none."""

    pictures: list[Pictures]
    faults: Sequence[str] = ()


def of_run(folder: Path, only: int | None = None) -> Drawn:
    """Returns the pictures of some of a run's checkpoints, evenly chosen, the newest one included; or of one step."""
    kept = [one for one in checkpoints.listed(folder) if only in (None, one.step)]
    pictures, faults = list[Pictures](), list[str]()
    if kept and only is None and _kept(folder, kept[-1]) is None:
        try:
            newest = checkpoints.newest(folder)  # warns of those that are damaged
        except ConfigError as error:
            return Drawn([], [str(error)])
        kept = [one for one in kept if newest is not None and one.step <= newest.step]
    places = np.unique(np.linspace(0, len(kept) - 1, min(_CHECKPOINTS, len(kept))).astype(int)).tolist()
    for checkpoint in progress.over([kept[place] for place in places], "pictures"):
        try:
            pictures.append(_kept(folder, checkpoint) or _made(folder, checkpoint))
        except ConfigError as error:
            if checkpoint.folder.is_dir():  # else the run, which goes on meanwhile, has dropped it
                faults.append(str(error))
    return Drawn(pictures, faults)


def of_weights(path: Path) -> Pictures:
    """Returns the pictures of anything that can be loaded; nothing is kept."""
    return _compute(load(path))


def _path(folder: Path, checkpoint: Checkpoint) -> Path:
    return folder / FOLDER / f"{step_name(checkpoint.step)}.safetensors"


def _made_from(checkpoint: Checkpoint) -> str:
    """Returns a hash of what decides the pictures."""
    with reading(checkpoint.folder, "restore it, or leave the checkpoint out"):
        manifest = (checkpoint.folder / MANIFEST).read_bytes()
    return hashlib.sha256(manifest + repr((_VERSION, SHOWN, EMBEDDED, _SIDE)).encode()).hexdigest()


def _made(folder: Path, checkpoint: Checkpoint) -> Pictures:
    """Returns the pictures of a checkpoint, and keeps them where the disk lets it."""
    made_from, pictures = _made_from(checkpoint), _compute(load(folder, step=checkpoint.step))
    about = {"made_from": made_from, "without": json.dumps(pictures.without), "classes": json.dumps(pictures.classes)}
    content = save({name: np.ascontiguousarray(one) for name, one in pictures.arrays.items()}, about)
    with contextlib.suppress(OSError):
        path = _path(folder, checkpoint)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, content)
    return pictures


def _kept(folder: Path, checkpoint: Checkpoint) -> Pictures | None:
    """Returns the pictures that were made of a checkpoint; None where there are none of what it holds now."""
    try:
        with safe_open(_path(folder, checkpoint), "numpy") as file:
            about = file.metadata() or {}
            if about.get("made_from") != _made_from(checkpoint):
                return None
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it is no mapping
        return Pictures(checkpoint.step, arrays, json.loads(about["without"]), tuple(json.loads(about["classes"])))
    except Exception:  # it is not there or damaged, and is made anew
        return None


def _compute(model: Model) -> Pictures:
    without: dict[str, str] = {}
    if model.run.data.train == NO_DATA:
        reason = "no images were given at import ('mrp import ... data.train=PATH' names some)"
        return Pictures(model.step, {}, dict.fromkeys(("reconstructions", "attention", "colours", "embedding"), reason))
    try:
        found = held_out(model.run, EMBEDDED)
    except ConfigError as error:
        return Pictures(model.step, {}, {"images": f"the held-out images cannot be read: {error}"})
    arrays: dict[str, NDArray[Any]] = {"labels": found.labels, "input": displayed(found.images[:SHOWN])}
    parts: dict[str, Callable[[Model, HeldOut], Iterator[tuple[str, NDArray[Any]]]]] = {
        "reconstructions": _reconstructions, "attention": _attention, "colours": _colours, "embedding": _embedding,
    }  # fmt: skip
    for name, part in parts.items():
        try:
            arrays |= dict(part(model, found))
        except ConfigError as error:
            without[name] = str(error)
    return Pictures(model.step, arrays, without, found.classes)


def _reconstructions(model: Model, found: HeldOut) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields what the model sees of held-out images, and what it makes of the rest."""
    if not model.objective.paints:
        raise ConfigError(f"{model.run.name} predicts no pixels")
    images = found.images[:SHOWN]
    mask, predicted = model.reconstruct(images)
    hidden = of_pixels(mask, model.backbone.patch_embed.patch_size, images.shape).cpu()
    pixels = _unit(images)
    yield "seen", displayed(torch.where(hidden, _GREY / 255, pixels))
    yield "painted", displayed(torch.where(hidden, predicted.float().cpu(), pixels))
    yield "predicted", displayed(predicted)


def _attention(model: Model, found: HeldOut) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields one heat map per image and head."""
    images = found.images[:_ATTENDED]
    maps = looks.attention(model, images)[:, :_HEADS]  # B heads rows columns
    heads = [_as_bytes(looks.overlay(_unit(images), maps[:, head])) for head in range(maps.shape[1])]
    yield "attention", np.stack([_smaller(head) for head in heads], axis=1)  # B heads H W 3


def _colours(model: Model, found: HeldOut) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields the patches' features as colours, one square per patch."""
    yield "colours", _as_bytes(looks.colours(model, found.images[:SHOWN]))


def _embedding(model: Model, found: HeldOut) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yields where images lie, how many directions their features use, and which ones are nearest to some of them."""
    parts = found.images.split(_AT_ONCE)
    features = torch.cat([model.features(part).float().cpu() for part in parts]).double()
    if not features.isfinite().all():
        raise ConfigError("the features of held-out images are not finite")
    centred = features - features.mean(0)
    if centred.norm() <= looks.ROUNDING * features.norm():
        raise ConfigError("the features of all held-out images are the same: they have collapsed")
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    yield "spectrum", values.numpy()
    yield "plane", (left[:, :2] * values[:2]).numpy()
    directions = functional.normalize(features, dim=1)
    similarity = (directions @ directions.T).fill_diagonal_(-2)
    nearest = similarity.topk(min(NEAREST, len(features) - 1)).indices.numpy()
    yield "nearest", nearest
    wanted = np.concatenate([np.arange(min(QUERIES, len(features)))[:, None], nearest[:QUERIES]], axis=1)
    beside = displayed(found.images[wanted.reshape(-1)])
    yield "beside", beside.reshape(*wanted.shape, *beside.shape[1:])
    yield "beside_numbers", wanted


def displayed(images: Tensor) -> Pixels:
    """Returns images as bytes of three channels, the last axis (B H W 3), small enough for a page."""
    return _smaller(_as_bytes(three_channels(_unit(images)).permute(0, 2, 3, 1).numpy()))


def _unit(images: Tensor) -> Tensor:
    """Returns images in [0, 1]."""
    return in_units(images.detach().cpu())


def _as_bytes(pixels: NDArray[Any]) -> Pixels:
    scaled: Pixels = (np.clip(np.nan_to_num(pixels), 0, 1) * 255).round().astype(np.uint8)
    return scaled


def _smaller(pixels: Pixels) -> Pixels:
    """Returns images (B H W 3) whose longer side is at most what is shown."""
    longest = max(pixels.shape[1:3])
    if longest <= _SIDE:
        return pixels
    size = [max(1, round(side * _SIDE / longest)) for side in pixels.shape[1:3]]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    small = functional.interpolate(images, size, mode="bilinear", antialias=True).round().clamp(0, 255)
    return small.permute(0, 2, 3, 1).to(torch.uint8).numpy()
