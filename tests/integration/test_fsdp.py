"""Two processes that each hold a part of the model train as two that hold all of it, and save what one goes on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from torch import distributed

from mrp.checkpoint import checkpoints
from mrp.run import load
from mrp.train import train
from tests.forked import together

SMALL = [
    "batch=16", "length=4 steps", "optim.warmup=1 steps", "checkpoint.every=2 steps", "backbone.depth=2",
    "backbone.width=16", "backbone.heads=2", "track.every=1", "machine.workers=0", "precision=fp32",
    "diagnose.every=2 steps", "diagnose.images=32", "diagnose.action=warn",
]  # fmt: skip
DECODER = "objective.decoder={width: 16, depth: 1, heads: 2}"
FROZEN = "objective={name: classify, classes: 10, frozen: true}"
MUON = "optim={name: muon, lr: 1e-3, arithmetic: fp32}"
RECIPES = {
    "mae": ["demo", DECODER],
    "accumulated, clipped, averaged": ["demo", DECODER, "machine.micro_batch=4", "optim.clip=0.1", "average.decay=0.9"],
    "umae": ["umae_tiny_digits", DECODER],
    "sigreg": ["mae_sigreg_tiny_digits", DECODER],
    "crossmae": ["crossmae_tiny_digits", DECODER],
    "simmim": ["simmim_tiny_digits"],
    "maskfeat": ["maskfeat_tiny_digits"],
    "data2vec": ["data2vec_tiny_digits", "objective.layers=2"],
    "capi": ["capi_tiny_digits"],
    "ijepa": ["ijepa_tiny_digits"],
    "data2vec2": ["data2vec2_tiny_digits", "objective.layers=2", "objective.masks=2"],
    "supervised": ["supervised_tiny_digits"],
    "probe": ["supervised_tiny_digits", FROZEN, "mix={}", "optim={name: lars, lr: 0.1}"],
    "muon": ["demo", DECODER, "backbone.mlp_ratio=3.0625", MUON],  # fc1 has 49 rows, which are 25 and 24
}
RESUMED = ("accumulated, clipped, averaged", "data2vec", "muon")


def work(jobs: list[tuple[list[str], Path, Path | None]]) -> None:
    """Does all of these, one after another, in the same two processes."""
    for words, folder, start in jobs:
        if start and distributed.get_rank() == 0:
            shutil.copytree(start, folder)
            shutil.rmtree(folder / "checkpoints" / "step-00000004")
        if start:
            distributed.barrier()
        train(load(words[0], words[1:]), folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each recipe whole, sharded, and sharded from the middle of the whole one."""
    place = tmp_path_factory.mktemp("fsdp")
    jobs: list[tuple[list[str], Path, Path | None]] = []
    for name, recipe in RECIPES.items():
        words = [recipe[0], *SMALL, *recipe[1:]]
        jobs.append((words, place / name / "whole", None))
        jobs.append(([*words, "machine.shard=full"], place / name / "sharded", None))
        if name in RESUMED:
            jobs.append(([*words, "machine.shard=full"], place / name / "resumed", place / name / "whole"))
    ended = together(2, work, jobs)
    assert [rank.returncode for rank in ended] == [0, 0], ended
    return place


def curve(folder: Path) -> np.ndarray:
    """Everything that was measured and is not a matter of time or memory."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))
    names = ("loss", "gradient_norm", "features/rank_me", "features/loss")
    return np.array([[line["step"], *(line.get(name, 0.0) for name in names)] for line in lines])


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_sharded_it_trains_as_whole(runs: Path, name: str) -> None:
    whole = curve(runs / name / "whole")
    assert len(whole) == 4
    assert whole[1, 3] > 0
    for other in ("sharded", "resumed") if name in RESUMED else ("sharded",):
        np.testing.assert_allclose(curve(runs / name / other), whole, rtol=1e-5, err_msg=other)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_what_two_saved_in_parts_one_goes_on_from(runs: Path, name: str, tmp_path: Path) -> None:
    shutil.copytree(runs / name / "sharded", tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / "checkpoints" / "step-00000004")
    recipe = RECIPES[name]
    train(load(recipe[0], [*SMALL, *recipe[1:]]), tmp_path / "one")
    np.testing.assert_allclose(curve(tmp_path / "one"), curve(runs / name / "whole"), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_files_are_those_of_an_unsharded_run(runs: Path, name: str) -> None:
    ours, theirs = (checkpoints.numbered(runs / name / way, 2) for way in ("sharded", "whole"))
    groups = {path.stem for path in ours.folder.glob("*.safetensors")}
    assert groups == {path.stem for path in theirs.folder.glob("*.safetensors")}
    for group in groups:
        one, other = ours.tensors(group), theirs.tensors(group)
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert (tensor.shape, tensor.dtype) == (other[key].shape, other[key].dtype)
    weights = theirs.weights()
    assert sum(float((ours.weights()[key] - tensor).abs().mean()) for key, tensor in weights.items()) < 1e-3 * len(
        weights
    )
