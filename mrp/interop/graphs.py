"""The backbone as a graph that runs without mrp: ONNX, or torch.export's own format; normalisation is part of it."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mrp.config import ConfigError
from mrp.models.vit import VisionTransformer, embed, encode, pool

ONNX, EXPORTED = "model.onnx", "model.pt2"
_OPSET = 20
_LARGEST = 1_800_000_000  # bytes: an ONNX file cannot hold more than 2 GiB, so larger weights lie beside it
_EXAMPLES = 2  # images to trace with: of one alone, the batch would become a constant


class Answers(nn.Module):
    """Images in [0, 1] to features and, of a classifier, to scores; in float32, as nothing else is in every runtime."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: VisionTransformer, head: nn.Linear | None, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    @property
    def names(self) -> list[str]:
        """What comes out."""
        return ["features"] if self.head is None else ["features", "logits"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """One vector an image, and the scores where there is a head."""
        tokens = embed(self.backbone, (images - self.mean) / self.std)
        features = pool(self.backbone, encode(self.backbone, tokens).tokens)
        return (features,) if self.head is None else (features, self.head(features))


def write_onnx(folder: Path, answers: Answers, shape: tuple[int, int, int]) -> str:
    """Write model.onnx for any number of images; how to run it."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--to onnx needs {' and '.join(missing)}; install them with: pip install 'mrp[export]'")
    with warnings.catch_warnings(), _quiet("torch.onnx"), _spelled_out(answers.backbone):
        warnings.simplefilter("ignore")  # of the exporter's own parts, about each other
        torch.onnx.export(
            answers.eval(), (torch.rand(_EXAMPLES, *shape),), folder / ONNX, input_names=["images"],
            output_names=answers.names, dynamic_shapes={"images": {0: torch.export.Dim("images_count")}},
            dynamo=True, external_data=_bytes(answers) > _LARGEST, opset_version=_OPSET, verbose=False,
        )  # fmt: skip
    return (
        "import onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("FOLDER/{ONNX}")\n'
        f'{", ".join(answers.names)}, = session.run(None, {{"images": images}})  '
        f"# float32 in [0, 1], of shape (count, {', '.join(map(str, shape))}); normalised inside"
    )


def write_exported(folder: Path, answers: Answers, shape: tuple[int, int, int]) -> str:
    """Write model.pt2 for any number of images; how to run it."""
    dynamic = {"images": {0: torch.export.Dim("images_count")}}
    program = torch.export.export(answers.eval(), (torch.rand(_EXAMPLES, *shape),), dynamic_shapes=dynamic)
    torch.export.save(program, folder / EXPORTED)
    return (
        "import torch\n\n"
        f'program = torch.export.load("FOLDER/{EXPORTED}").module()\n'
        f"{', '.join(answers.names)}, = program(images)  "
        f"# float32 in [0, 1], of shape (count, {', '.join(map(str, shape))}); normalised inside"
    )


@contextmanager
def _spelled_out(vit: VisionTransformer) -> Iterator[None]:
    """Attention as products and a softmax: the exporter trips over the fused one where a bias is added."""
    blocks: Any = vit.blocks
    before = [block.attn.fused_attn for block in blocks]
    try:
        for block in blocks:
            block.attn.fused_attn = False
        yield
    finally:
        for block, fused in zip(blocks, before, strict=True):
            block.attn.fused_attn = fused


def _bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


class _quiet:
    """Loggers that only say what went wrong."""

    def __init__(self, *names: str) -> None:
        self._loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self._levels = [logger.level for logger in self._loggers]
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *error: Any) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
