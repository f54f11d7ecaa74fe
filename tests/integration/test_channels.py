"""Five channels of 16 bits, one TIFF per channel, some missing: killed and resumed, and in two processes."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mrp.checkpoint import checkpoints, sealed
from mrp.cli import main
from tests.forked import Started, launch

tifffile = pytest.importorskip("tifffile", reason="an extra: pip install 'mrp-vit[tiff]'")

CHANNELS = ("dapi", "er", "rna", "agp", "mito")
STEPS = 24


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 24 cells of two classes a third lacks one channel or two."""
    folder, generator = tmp_path_factory.mktemp("plate"), np.random.default_rng(0)
    for number in range(24):
        missing = generator.choice(5, number % 3, replace=False) if number % 3 else []
        for channel in set(range(5)) - set(missing):
            path = folder / "ab"[number % 2] / f"{number}_{CHANNELS[channel]}.tif"
            path.parent.mkdir(exist_ok=True)
            tifffile.imwrite(path, generator.integers(0, 65536, (20, 20), np.uint16))
    return folder


def recipe(plate: Path) -> list[str]:
    source = f"{{name: tiff, path: {plate}, files: '{{sample}}_{{channel}}.tif'}}"
    return [
        "pretrain", "demo", f"data.train={source}", "data.test=null", f"data.channels=[{','.join(CHANNELS[::-1])}]",
        "data.mean=0.5", "data.std=0.3", "data.size=16", "data.augment={name: crop, scale: [0.5, 1]}", "batch=8",
        "mix.drop_channels=0.2", f"length={STEPS} steps", "optim.warmup=2 steps", "checkpoint.every=2 steps",
        "backbone.patch=4", "backbone.depth=1", "backbone.width=16", "backbone.heads=2", "objective.decoder.depth=1",
        "track.every=1",
    ]  # fmt: skip


def reached(folder: Path, step: int) -> bool:
    return max(sealed.numbered(folder / "checkpoints"), default=0) >= step


def curve(folder: Path) -> list[tuple[int, float, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines]


def weights(folder: Path) -> dict[str, bytes]:
    found = checkpoints.newest(folder)
    assert found is not None
    assert found.step == STEPS
    machines = {"config.yaml", "MANIFEST.json"}  # how many workers there were is written there
    return {path.name: path.read_bytes() for path in found.folder.iterdir() if path.name not in machines}


@pytest.fixture(scope="module")
def undisturbed(plate: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    main([*recipe(plate), "--folder", str(folder)])
    return folder


@pytest.mark.slow
def test_killed_and_resumed_it_ends_bit_equal(plate: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder, generator, target = tmp_path / "run", random.Random(3), 0
    for kills in range(3):
        workers = ["machine.workers=1"] if kills % 2 else []
        target += generator.randrange(2, 6)
        Started(main, [*recipe(plate), *workers, "--folder", str(folder)]).kill_when(partial(reached, folder, target))
    main([*recipe(plate), "--folder", str(folder)])
    assert weights(folder) == weights(undisturbed)
    assert curve(folder) == curve(undisturbed)


@pytest.mark.slow
def test_two_processes_train_as_one(plate: Path, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    assert launch(2, [*recipe(plate), "--folder", str(folder)]) == 0
    np.testing.assert_allclose(curve(folder), curve(undisturbed), rtol=1e-5)


def test_the_features_are_probed_and_drawn(
    plate: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = recipe(plate)[2].replace("data.train", "data.test")
    main(["probe", str(undisturbed), "--evaluator", "knn", test])
    assert "k = 20" in capsys.readouterr().out
    main(["picture", str(undisturbed), "--out", str(tmp_path)])
    assert (tmp_path / "reconstruction.png").is_file()
