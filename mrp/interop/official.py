"""Checkpoints of the official implementations, read without executing anything that they hold."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ALLOWED = [argparse.Namespace]  # what the official code saves besides tensors; anything else is refused by name

_MAE = [
    (r"decoder_(blocks\..*|norm\..*|embed\..*)", r"decoder.\1"),
    (r"decoder_pred\.(.*)", r"decoder.head.\1"),
    (r"decoder_pos_embed", r"decoder.positions"),
    (r"mask_token", r"decoder.mask_token"),
    (r"((?:cls_token|pos_embed|patch_embed|blocks|norm)(?:\..*)?)", r"backbone.\1"),
]


def read(path: Path) -> dict[str, Any]:
    """A .pth file's content: tensors, numbers, text and argparse's Namespace, nothing that could run."""
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks to load '{named[1]}'" if named else "it is damaged or not a checkpoint"
        raise ValueError(f"{path}: refused: {what}; only tensors, plain data and argparse.Namespace are read") from None


def mae(path: Path) -> dict[str, Tensor]:
    """The weights of an official MAE (or U-MAE) pretraining checkpoint, under the names of `objectives.mae`."""
    content = read(path)
    return rename_mae(content.get("model", content))


def rename_mae(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official names of MAE's parameters as ours; what we do not know is an error, never dropped."""
    renamed = {}
    for name, tensor in weights.items():
        new = next((re.sub(f"^{old}$", ours, name) for old, ours in _MAE if re.fullmatch(old, name)), None)
        if new is None:
            raise ValueError(
                f"'{name}' is not a parameter of MAE as officially released; is this another kind of checkpoint?"
            )
        renamed[new] = tensor
    return renamed
