"""What every exported folder has in common: how its images are prepared, and how its files are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Preprocessing(NamedTuple):
    """What evaluation makes of an image before the model sees it; bicubic and antialiased throughout."""

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]  # of pixels in [0, 1]
    std: tuple[float, ...]
    crop: float | None  # the share of the resized image's side that its centre keeps; None: resized to the size

    @property
    def covered(self) -> tuple[int, int]:
        """What the image is resized to cover before its centre is taken."""
        share = self.crop or 1.0
        return round(self.size[0] / share), round(self.size[1] / share)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Plain tensors under their names, as both timm and transformers load them."""
    save_file({k: w.detach().cpu().contiguous().clone() for k, w in tensors.items()}, path, {"format": "pt"})


def save_json(path: Path, values: Mapping[str, Any]) -> None:
    """A small file of settings."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
