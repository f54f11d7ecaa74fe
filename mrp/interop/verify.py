"""An exported folder, loaded with the other project's own call and compared with our model."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrp.config import ConfigError
from mrp.interop import official
from mrp.interop.folders import CONFIG
from mrp.interop.graphs import EXPORTED, ONNX, Answers
from mrp.interop.official_export import FILE
from mrp.interop.weights import part
from mrp.models.vit import embed, encode

_TOLERANCE = 1e-4  # of the largest answer: more is an error, and not rounding


def difference(to: str, folder: Path, answers: Answers, shape: tuple[int, int, int]) -> float | None:
    """Returns the largest difference relative to the largest answer; None where the other side is not installed."""
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pair = _compared(to, folder, answers.eval(), images)
    if pair is None:
        return None
    ours, theirs = pair
    relative = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-12))
    if not relative <= _TOLERANCE:
        raise ConfigError(
            f"--to {to}: what was written differs from the run by {relative:.1e} of the largest answer, so it was "
            "deleted; please report this"
        )
    return relative


def _compared(to: str, folder: Path, answers: Answers, images: Tensor) -> tuple[Tensor, Tensor] | None:
    """Returns our answer and theirs."""
    ours = answers(images)[-1]
    normalised = (images - answers.mean) / answers.std
    if to == "timm":
        from timm.models import create_model

        return ours, create_model(f"local-dir:{folder}", pretrained=True).eval()(normalised)
    if to == "official":  # the weights themselves, bit by bit
        state, again = answers.backbone.state_dict(), part(official.load(folder / FILE).tensors)
        return torch.cat([state[k].flatten() for k in again]), torch.cat([w.flatten() for w in again.values()])
    if to == "torch-export":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about its own parts
            return ours, torch.export.load(folder / EXPORTED).module()(images)[-1]
    if to == "onnx" and importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
        return ours, torch.from_numpy(session.run(None, {"images": images.numpy()})[-1])
    if to == "transformers" and importlib.util.find_spec("transformers"):
        return _transformers(folder, answers, normalised)
    return None


def _transformers(folder: Path, answers: Answers, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns our answer and theirs to normalised images: scores where there is a head, or else all tokens."""
    import transformers

    disable_progress_bar: Any = transformers.utils.logging.disable_progress_bar
    disable_progress_bar()
    name = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder).eval()
    if name.endswith("ForImageClassification"):
        return answers(images * answers.std + answers.mean)[-1], model(images).logits
    tokens = encode(answers.backbone, embed(answers.backbone, images)).tokens
    if name == "ViTMAEForPreTraining":
        model.config.mask_ratio = 0.0  # all patches, in their order
        order = torch.arange(tokens.shape[1] - 1).expand(len(images), -1).float()
        return tokens, model.vit(images, noise=order).last_hidden_state
    return tokens, model(images).last_hidden_state
