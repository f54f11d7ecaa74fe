"""What every augmentation must do, tried on a few images of noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mrp.check.outcome import Failed, Skipped, refuse_misspelt_options, sent_to_worker
from mrp.config import ConfigError, Node, Tree, build
from mrp.data.augment import View
from mrp.data.augmentations import AUGMENTATIONS
from mrp.data.config import Augment, Change, Config, Frame
from mrp.data.decode import UnfitError

_SIDE = 16  # pixels of what training sees
_KEYS = range(1, 9)


def viewed(section: Node, channels: int = 3, *, train: bool = True) -> View:
    """Returns what is seen through this augmentation alone, or behind the resizing of the whole image."""
    if not isinstance(section, Frame | Change):
        raise Failed(
            "its Config is neither a Frame nor a Change",
            "derive it from mrp.data.config.Change, or from Frame where it chooses the part of an image that is seen",
        )
    chain = section if isinstance(section, Frame) else ("resize", section)
    values = {"train": "digits", "size": _SIDE, "channels": channels, "mean": 0.5, "std": 0.5, "augment": chain}
    return View(build(Config, Tree(values, {})), train)


def _image(channels: int = 3, kind: type[np.generic] = np.uint8) -> Tensor:
    noise = np.random.default_rng(0).random((24, 20, channels))
    return torch.from_numpy((noise * {np.uint8: 255, np.uint16: 65535}.get(kind, 1)).astype(kind)).permute(2, 0, 1)


def images_keep_their_form(section: Augment) -> None:
    """Images of 1, 3 and 5 channels, of 8 and 16 bits and floating-point, keep channels, size and kind."""
    fitting = 0
    for channels, kind in ((3, np.uint8), (1, np.uint8), (5, np.uint8), (3, np.uint16), (5, np.float32)):
        image = _image(channels, kind)
        try:
            view = viewed(section, channels)
            found = [view(image, key) for key in _KEYS]
        except ConfigError as error:  # it says that it is not for these
            said = isinstance(error, UnfitError) or section.unfit(channels, (_SIDE, _SIDE)) is not None
            if "\n" in str(error) or not said:
                raise
            continue
        fitting += 1
        for each in found:
            if tuple(each.shape) != (channels, _SIDE, _SIDE) or each.dtype != image.dtype:
                raise Failed(
                    f"an image of {channels} channels and {image.dtype} becomes {each.dtype} of {tuple(each.shape)}",
                    f"return it as {(channels, _SIDE, _SIDE)} of the same kind of numbers, or raise UnfitError",
                )
            if each.dtype == torch.float32 and not each.isfinite().all():
                raise Failed("numbers are not finite", "look at what it divides by")
    if not fitting:
        raise Failed("there is no kind of image that it is for", "accept images of one kind at least")


def all_follows_from_the_key(section: Augment) -> None:
    """The same key gives the same image each time, whatever was drawn or seen before."""
    image, channels = _fitting(section)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 -- what a careless author draws from
    view = viewed(section, channels)
    forwards = [view(image, key).clone() for key in _KEYS]
    other = viewed(section, channels)
    backwards = [other(image, key) for key in reversed(_KEYS)][::-1]
    for key, first, second in zip(_KEYS, forwards, backwards, strict=True):
        if not torch.equal(first, second):
            raise Failed(
                f"under key {key} an image is seen in two ways",
                "take all numbers from mrp.data.augment.draws(key), and keep nothing between images",
            )


def evaluation_ignores_it(section: Augment) -> None:
    """Evaluation sees the same under every key."""
    image, channels = _fitting(section)
    view = viewed(section, channels, train=False)
    if not torch.equal(view(image, 1), view(image, 2)):
        raise Failed("evaluation sees two images under two keys", "leave `View` as it is")


def it_is_sent_to_workers(section: Augment) -> None:
    """It is sent to a worker process, which sees the same."""
    image, channels = _fitting(section)
    view = viewed(section, channels)
    again = sent_to_worker(view, AUGMENTATIONS.of(section).__name__, "leave __reduce__ to the base class")
    if any(not torch.equal(view(image, key), again(image, key)) for key in _KEYS):
        raise Failed("a worker process sees other images", "let it follow from its section and the key alone")


def a_misspelt_option_is_one_line(section: Augment) -> None:
    """A misspelt option is an error of one line."""
    refuse_misspelt_options(AUGMENTATIONS, section, "leave model_config as it is")


def _fitting(section: Augment) -> tuple[Tensor, int]:
    """Returns an image that it is for."""
    for kind in (np.uint8, np.uint16, np.float32):
        for channels in (3, 1, 5):
            image = _image(channels, kind)
            try:
                viewed(section, channels)(image, 1)
            except ConfigError:
                continue
            return image, channels
    raise Skipped("there is no kind of image that it is for")


CHECKS = (
    images_keep_their_form, all_follows_from_the_key, evaluation_ignores_it, it_is_sent_to_workers,
    a_misspelt_option_is_one_line,
)  # fmt: skip
