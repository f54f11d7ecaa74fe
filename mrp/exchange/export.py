"""A model written as a folder that another project loads with its own call."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from mrp.build import open_source
from mrp.config import ConfigError, nearest
from mrp.data.decode import decode
from mrp.exchange import card
from mrp.exchange.folders import check_is_new, new_folder
from mrp.interop import graphs, huggingface_export, official_export, timm_export, verify
from mrp.interop.config import WeightsName
from mrp.interop.folders import Preprocessing
from mrp.interop.heads import linear_head, tells_tags
from mrp.model import Model, class_names, load
from mrp.run import Run

_LOOKED_AT = 16  # images

To = Literal["timm", "transformers", "official", "onnx", "torch-export"]


def export(
    path: str | Path,
    to: str,
    out: Path,
    weights: WeightsName | None = None,
    step: int | None = None,
    whole: bool = False,
) -> float | None:
    """Writes a model's folder; returns how far its answers are from mrp's, or None where this cannot be measured."""
    if to not in get_args(To):
        raise ConfigError(f"--to: '{to}' is unknown{nearest(to, get_args(To))}; allowed: {', '.join(get_args(To))}")
    if whole and to != "transformers":
        raise ConfigError(f"--whole: is for --to transformers, and --to {to} has one form; leave --whole out")
    check_is_new(out)
    model = load(path, weights, step)
    with new_folder(out) as folder:
        images = _preprocessing(model)
        usage, difference = _write(model, to, folder, images, whole)
        exported = card.Exported(to, whole, out.name, images, usage.replace("FOLDER", out.name), difference)
        (folder / card.FILE).write_text(card.text(model, exported), encoding="utf-8")
    return difference


def _write(model: Model, to: str, folder: Path, images: Preprocessing, whole: bool) -> tuple[str, float | None]:
    """Writes the files for one project; returns how they are used, and how far their answers are from mrp's."""
    objective, missing = model.objective, model.missing
    shape = (images.channels, *images.size)
    head = linear_head(objective, missing)
    answers = graphs.Answers(objective.backbone, head, images.mean, images.std).eval()
    if to == "timm":
        names, of_tags = class_names(model), tells_tags(objective)
        usage = timm_export.write(folder, objective.backbone, head, images, names, of_tags)
    elif to == "transformers":
        usage = huggingface_export.write(folder, objective, images, class_names(model), missing, whole)
    elif to == "official":
        usage = official_export.write(folder, objective, missing)
    elif to == "onnx":
        usage = graphs.write_onnx(folder, answers, shape)
    else:
        usage = graphs.write_exported(folder, answers, shape)
    return usage, verify.difference(to, folder, answers, shape)


def _preprocessing(model: Model) -> Preprocessing:
    data = model.run.data
    kept = None if _are_of_its_size(model.run) else data.frame.kept(data.shape)
    return Preprocessing(data.shape, data.num_channels, data.mean, data.std, kept)


def _are_of_its_size(run: Run) -> bool:
    """Returns whether those images that are looked at have the size of the model: evaluation cuts nothing off them.

    Where they are not at hand, nobody knows, and they are taken for larger ones.
    """
    with suppress(Exception):  # whatever is wrong with them, the weights can be exported
        source = open_source(run, "test" if run.data.test else "train")
        some = np.linspace(0, len(source) - 1, min(len(source), _LOOKED_AT)).astype(int).tolist()
        images = (decode(source.read(number)[0], run.data.num_channels) for number in some)
        return len(source) > 0 and all(tuple(image.shape[1:]) == run.data.shape for image in images)
    return False
