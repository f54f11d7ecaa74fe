"""Small models of every kind, with weights of which none is what it was built with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mrp.build import build_optimizer, build_step
from mrp.checkpoint.saver import save_now
from mrp.config import Tree, build
from mrp.folder import CONFIG, IDENTITY, claim
from mrp.run import Run

SHAPE = {"width": 32, "depth": 2, "heads": 4, "patch": 4}
MASKED = {"mask_ratio": 0.5}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "mae": {"decoder": {"width": 16, "depth": 1, "heads": 2}},
    "simmim": MASKED | {"mask_unit": 4},
    "data2vec": MASKED | {"smallest_block": 1, "layers": 1},
    "data2vec2": MASKED | {"masks": 2, "layers": 1, "decoder": {"width": 16, "depth": 1, "groups": 4}},
    "classify": {"classes": 5},
}
Make = Callable[..., Path]


def shake(module: torch.nn.Module, seed: int = 5) -> None:
    """Move every weight and statistic, as training would; what is fixed stays."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=True).items():
            fixed = isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad and "teacher" not in name
            if not fixed and name.startswith("objective.") and not name.endswith("positions"):
                tensor += 0.1 * torch.rand(tensor.shape, generator=generator)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A function that writes the folder of a small run that has ended."""

    def made(
        method: str = "mae", backbone: dict[str, Any] | None = None, name: str = "run", average: bool = False,
        size: Any = 16, data: dict[str, Any] | None = None, **objective: Any,
    ) -> Path:  # fmt: skip
        values = {
            "objective": {"name": method, **OBJECTIVES[method], **objective},
            "backbone": SHAPE | (backbone or {}),
            "data": {"train": "digits", "test": "digits", "size": size, "mean": 0.4, "std": 0.2} | (data or {}),
            "batch": 8, "length": "4 steps", "optim": {"lr": 1e-3}, "precision": "fp32",
        }  # fmt: skip
        run = build(Run, Tree(values, {"": "a test"}))
        step, folder = build_step(run), tmp_path / name
        shake(step)
        trained = {k: w.detach() + 1 for k, w in step.named_parameters() if w.requires_grad}
        with claim(folder, run.resolved(), run.identity("a test")):
            about = {file: (folder / file).read_text() for file in (CONFIG, IDENTITY)}
            extra = {"average": trained} if average else {}
            save_now(folder, 4, step, build_optimizer(run.optim, step), {"data": {}}, 3, extra, about)
        return folder

    return made


def images(count: int = 3, size: tuple[int, int] = (16, 16)) -> torch.Tensor:
    """Pixels in [0, 1]."""
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))
