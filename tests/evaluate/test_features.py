"""Extraction: each sample once, in order, on any number of processes, and the module left as it was found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.evaluate.features import Features, extract
from mrp.evaluate.processes import join

SAMPLES = 11
BATCH = 4


class Toy(nn.Module):
    """Stands in for the wrapped module; its dropout tells training from evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 2 * 2, 5, bias=False)
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.Dropout(0.5).eval()
        with torch.no_grad():
            self.linear.weight.copy_(torch.arange(60.0).view(5, 12).sin())

    def forward(self, batch: Batch, features: bool = False) -> Output:
        assert features
        assert not torch.is_grad_enabled()
        return Output(torch.zeros(()), features=self.frozen(self.dropout(self.linear(batch.images.flatten(1)))))


@dataclass(frozen=True)
class Slices:
    """A loader like the real one: a contiguous slice for each rank, as many batches on every rank."""

    rank: int = 0
    world: int = 1

    def __iter__(self) -> Iterator[Batch]:
        each = -(-SAMPLES // self.world)
        stop = min((self.rank + 1) * each, SAMPLES)
        for start in range(self.rank * each, (self.rank + 1) * each, BATCH):
            samples = torch.arange(start, start + BATCH)
            valid = samples < stop
            yield Batch(picture(samples.where(valid, 0)), samples.where(valid, 0) + 100, samples % 3, valid)


def picture(samples: Tensor) -> Tensor:
    return (samples[:, None] + torch.arange(12)).cos().view(-1, 3, 2, 2)


def expected() -> Features:
    samples = torch.arange(SAMPLES)
    with torch.no_grad():
        features = Toy().linear(picture(samples).flatten(1))
    return Features(features, samples % 3, samples + 100)


def check(found: Features) -> None:
    torch.testing.assert_close(found.features, expected().features)
    assert torch.equal(found.labels, expected().labels)
    assert torch.equal(found.keys, expected().keys)


def toy() -> tuple[nn.Module, Accelerator]:
    accelerator = join()
    return Toy().to(accelerator.device), accelerator


def test_one_process() -> None:
    step, accelerator = toy()
    check(extract(step, Slices(), accelerator, SAMPLES))


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "CUDA_VISIBLE_DEVICES": "",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "error", __file__, str(tmp_path)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    for rank in range(2):
        check(Features(**torch.load(tmp_path / f"{rank}.pt")))


def on_two_processes(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    found = extract(accelerator.prepare(Toy()), Slices(rank, 2), accelerator, SAMPLES)
    torch.save({"features": found.features, "labels": found.labels, "keys": found.keys}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_modes_are_restored() -> None:
    step, accelerator = toy()
    modes = [module.training for module in step.modules()]
    assert modes == [True, True, True, False]
    extract(step, Slices(), accelerator)
    assert [module.training for module in step.modules()] == modes
    with pytest.raises(AttributeError):
        extract(step, [None], accelerator)  # type: ignore[list-item]
    assert [module.training for module in step.modules()] == modes


def test_features_are_single_precision() -> None:
    step, accelerator = toy()
    batches = [replace(batch, images=batch.images.bfloat16()) for batch in Slices()]
    assert extract(step.bfloat16(), batches, accelerator).features.dtype == torch.float32


def test_data_without_labels() -> None:
    step, accelerator = toy()
    batches = [replace(batch, labels=None, valid=None) for batch in list(Slices())[:2]]
    assert extract(step, batches, accelerator).labels.tolist() == [-1] * 8


def test_faults_of_the_loader_are_ours() -> None:
    step, accelerator = toy()
    with pytest.raises(AssertionError, match="11 rows for 12 samples"):
        extract(step, Slices(), accelerator, SAMPLES + 1)
    with pytest.raises(AssertionError, match="seen twice"):
        extract(step, [*Slices(), *Slices()], accelerator)


def test_faults_of_the_user() -> None:
    step, accelerator = toy()
    with pytest.raises(ValueError, match="is empty"):
        extract(step, [], accelerator)
    step.linear.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="11 of 11 samples are not finite"):
        extract(step, Slices(), accelerator)


if __name__ == "__main__":
    on_two_processes(Path(sys.argv[1]))
