"""Settings for evaluators in tests: digits, one process or a pretended one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from mrp.data.config import Config
from mrp.data.source import Source
from mrp.evaluate.contract import Setting, Training
from mrp.evaluate.tables import Tables


class Alone:
    """A rank without the others: what it would reduce or gather is noted."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.process_index, self.num_processes, self.device = rank, world, torch.device("cpu")
        self.is_main_process = rank == 0
        self.noted: list[torch.Tensor] = []
        self.gathered: list[Any] = []

    def reduce(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
        assert how in ("sum", "mean")
        self.noted.append(tensor)
        return tensor

    def gather(self, tensors: Any) -> Any:
        self.gathered.append(tensors)
        return tensors


def setting(
    data: Config, train: Source, test: Source | None, processes: Any = None, batch: int = 8, workers: int = 0,
    folder: Path | None = None, training: Training | None = None,
) -> Setting:  # fmt: skip
    folder = folder or Path(tempfile.mkdtemp())
    return Setting(
        data, train, test, processes or Alone(), batch, workers, folder, Tables(folder / "features"), training=training
    )
