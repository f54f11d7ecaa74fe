"""What all exported folders share: how images are prepared, and how files are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

CONFIG, WEIGHTS = "config.json", "model.safetensors"
OF_TAGS = {"problem_type": "multi_label_classification"}  # in config.json: an image may have several labels, or none


class Preprocessing(NamedTuple):
    """How evaluation prepares an image for the model; it resizes with bicubic interpolation and antialiasing."""

    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]  # of pixels in [0, 1]
    std: tuple[float, ...]
    crop: float | None  # the share of the resized side that the centre crop keeps; None: no crop

    @property
    def covered(self) -> tuple[int, int]:
        """The size that the image is resized to before its centre is cropped."""
        share = self.crop or 1.0
        return int(self.size[0] / share), int(self.size[1] / share)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors under their names, in the form that timm and transformers load."""
    save_file({k: w.detach().cpu().contiguous().clone() for k, w in tensors.items()}, path, {"format": "pt"})


def save_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a small file of settings."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
