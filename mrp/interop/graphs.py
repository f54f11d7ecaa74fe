"""The backbone as a graph that runs without mrp, in the format of ONNX or of torch.export; it normalises its images."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mrp.config import ConfigError
from mrp.models.vit import Backbone, embed, encode, pool

ONNX, EXPORTED = "model.onnx", "model.pt2"
_OPSET = 20
_LARGEST = 1_800_000_000  # bytes: an ONNX file cannot hold more than 2 GiB, so larger weights go into a second file
_EXAMPLES = 2  # images to trace with: with one image, the size of the batch would become a constant


class Answers(nn.Module):
    """A model from images in [0, 1] to features and, for a classifier, scores; in float32, which every runtime has."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: Backbone, head: nn.Linear | None, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    @property
    def names(self) -> list[str]:
        """The names of the outputs."""
        return ["features"] if self.head is None else ["features", "logits"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns one vector per image, and the scores where there is a head."""
        tokens = embed(self.backbone, (images - self.mean) / self.std)
        features = pool(self.backbone, encode(self.backbone, tokens).tokens)
        return (features,) if self.head is None else (features, self.head(features))


def write_onnx(folder: Path, answers: Answers, shape: tuple[int, int, int]) -> str:
    """Writes model.onnx for any number of images, and returns how to run it."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--to onnx needs {' and '.join(missing)}; install them with: pip install 'mrp-vit[export]'")
    attentions: Any = (part for part in answers.backbone.modules() if hasattr(part, "fused_attn"))
    for attention in attentions:
        attention.fused_attn = False  # products and a softmax: the exporter fails on the fused form with a bias
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about its own parts
        program: Any = torch.onnx.export(
            answers.eval(), (torch.rand(_EXAMPLES, *shape),), input_names=["images"],
            output_names=answers.names, dynamic_shapes={"images": {0: torch.export.Dim("images_count")}},
            dynamo=True, opset_version=_OPSET, verbose=False,
        )  # fmt: skip
        for graph in (program.model.graph, *program.model.functions.values()):
            for node in graph:
                node.metadata_props.clear()  # the lines of code that it is from, by their paths on this machine
        size = sum(tensor.nbytes for tensor in answers.state_dict().values())
        program.save(folder / ONNX, external_data=size > _LARGEST)
    return (
        "import onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("FOLDER/{ONNX}")\n'
        f'{", ".join(answers.names)}, = session.run(None, {{"images": images}})  '
        f"# float32 in [0, 1], of shape (count, {', '.join(map(str, shape))}); normalised inside"
    )


def write_exported(folder: Path, answers: Answers, shape: tuple[int, int, int]) -> str:
    """Writes model.pt2 for any number of images, and returns how to run it."""
    dynamic = {"images": {0: torch.export.Dim("images_count")}}
    program = torch.export.export(answers.eval(), (torch.rand(_EXAMPLES, *shape),), dynamic_shapes=dynamic)
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            node.meta.pop("stack_trace", None)  # as above
    torch.export.save(program, folder / EXPORTED)
    return (
        "import torch\n\n"
        f'program = torch.export.load("FOLDER/{EXPORTED}").module()\n'
        f"{', '.join(answers.names)}, = program(images)  "
        f"# float32 in [0, 1], of shape (count, {', '.join(map(str, shape))}); normalised inside"
    )
