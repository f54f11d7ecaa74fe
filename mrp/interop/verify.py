"""An exported folder, loaded with the other side's own call, beside our model: how far their answers are apart."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrp.config import ConfigError
from mrp.interop import official
from mrp.interop.folders import CONFIG
from mrp.interop.graphs import EXPORTED, ONNX, Answers
from mrp.interop.official_export import FILE
from mrp.models.vit import embed, encode

_TOLERANCE = 1e-4  # of the largest answer: beyond this something is wrong, and not only rounded


def difference(to: str, folder: Path, answers: Answers, shape: tuple[int, int, int]) -> float | None:
    """The largest difference relative to the largest answer; None where the other side is not installed."""
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pair = _compared(to, folder, answers.eval(), images)
    if pair is None:
        return None
    ours, theirs = pair
    apart = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-12))
    if not apart <= _TOLERANCE:
        raise ConfigError(f"--to {to}: what was written answers otherwise than the run, by {apart:.1e} of the largest")
    return apart


def _compared(to: str, folder: Path, answers: Answers, images: Tensor) -> tuple[Tensor, Tensor] | None:
    """Our answer and theirs."""
    own = answers(images)[-1]
    normalised = (images - answers.mean) / answers.std
    if to == "timm":
        from timm.models import create_model

        return own, create_model(f"local-dir:{folder}", pretrained=True).eval()(normalised)
    if to == "official":  # the weights themselves, bit by bit
        again = official.load(folder / FILE).encoder()
        state = answers.backbone.state_dict()
        return tuple(torch.cat([held[k].flatten() for k in sorted(again)]) for held in (state, again))  # type: ignore[return-value]
    if to == "torch-export":
        return own, torch.export.load(folder / EXPORTED).module()(images)[-1]
    if to == "onnx" and importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
        return own, torch.from_numpy(session.run(None, {"images": images.numpy()})[-1])
    if to == "transformers" and importlib.util.find_spec("transformers"):
        return _transformers(folder, answers, normalised)
    return None


def _transformers(folder: Path, answers: Answers, images: Tensor) -> tuple[Tensor, Tensor]:
    import transformers

    quiet: Any = transformers.utils.logging.disable_progress_bar
    quiet()
    name = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder).eval()
    if name.endswith("ForImageClassification"):
        return answers(images * answers.std + answers.mean)[-1], model(images).logits
    tokens = encode(answers.backbone, embed(answers.backbone, images)).tokens
    if name == "ViTMAEForPreTraining":
        model.config.mask_ratio = 0.0  # all patches, in their order
        places = torch.arange(tokens.shape[1] - 1).expand(len(images), -1).float()
        return tokens, model.vit(images, noise=places).last_hidden_state
    return tokens, model(images).last_hidden_state
