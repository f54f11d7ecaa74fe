"""Class-activation maps: what they are, and what is counted on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mrp import api
from mrp.cli import main
from mrp.config import ConfigError
from mrp.evaluate import logistic
from mrp.lab.coverage import experiment as coverage
from mrp.lab.coverage import plots
from mrp.lab.coverage.activation import Classifier, classifier
from mrp.lab.estimate import Estimate
from mrp.run import load
from mrp.train import train

SMALL = [
    "backbone={width: 32, depth: 2, heads: 2, patch: 2}",
    "batch=32",
    "optim.warmup=1 steps",
    "diagnose.every=0 steps",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("runs")
    decoder = "objective.decoder={width: 16, depth: 1, heads: 2}"
    train(load("demo", [*SMALL, "length=2 steps", decoder]), root / "mae")
    train(load("supervised_tiny_digits", [*SMALL, "length=20 steps"]), root / "supervised")
    return root / "mae", root / "supervised"


def test_runs_are_compared_on_the_same_images(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--images", "60", "--mosaics", "20", "--train", "150", "--out", str(tmp_path)]
    main(["lab", "coverage", *map(str, runs), *words])
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(row["objective"], row["head"]) for row in results["rows"]] == [("mae", "fitted"), ("classify", "own")]
    for row in results["rows"]:
        values = {name: item["value"] for name, item in row["measures"].items()}
        assert set(values) == set(coverage.MEASURES)
        assert row["by_map"][0] == row["at_random"][0] == pytest.approx(values["accuracy"])
        assert row["by_map"][-1] == pytest.approx(row["at_random"][-1]), "when all is gone, the order is no matter"
        assert 1 / 16 <= values["spread"] <= 1
        assert 0 <= values["focus"] <= 1
        assert 0 <= values["eigen_focus"] <= 1
        assert 0 < values["eigen_object_area"] + values["eigen_other_area"] <= 2
        assert values["objects"] <= 2
    assert all(item == {"value": 0, "error": 0} for item in results["rows"][0]["beyond_first"].values())
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "coverage.png", "maps.png"}
    assert "accuracy on whole images" in capsys.readouterr().out


class _Still(nn.Module):
    """A block that does nothing."""

    def forward(self, tokens: Tensor, **options: Any) -> Tensor:
        return tokens


def test_a_map_is_what_each_patch_adds_to_the_score(runs: tuple[Path, Path]) -> None:
    model = api.load(runs[0])
    blocks: Any = model.backbone.blocks
    blocks[-1] = _Still()
    model.backbone.norm = nn.Identity()
    generator = torch.Generator().manual_seed(0)
    axes, weights = torch.eye(32, dtype=torch.float64), torch.randn(33, 10, generator=generator, dtype=torch.float64)
    coordinates = logistic.Coordinates(torch.zeros(32, dtype=torch.float64), axes)
    encoder = Classifier(model, logistic.Logistic(coordinates, weights, torch.arange(10), 1.0, 0.0, {}, 0))
    images = encoder.model.module.prepare(api.held_out(model.run, 5))
    seen: list[Tensor] = []
    blocks[-1].register_forward_hook(lambda module, given, output: seen.append(output.detach()))
    encoder.predict(images)
    classes = torch.arange(5)
    parts = (seen[0][:, 1:].double() * weights[:-1].T[classes][:, None]).sum(-1) / 16
    assert torch.allclose(encoder.maps(images, classes).double(), parts.relu(), atol=1e-5)
    assert not blocks[-1]._forward_pre_hooks


def test_mosaics_say_where_the_wanted_class_is() -> None:
    labels = torch.arange(40) % 4
    images = (labels * 50 + 20).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    made, wanted, quadrants = coverage.mosaic(images, labels, 30, seed=0)
    assert made.shape == (30, 3, 8, 8)
    assert (quadrants.sum(1) == 2).all()
    corners = made[:, 0].unflatten(2, (2, 4)).unflatten(1, (2, 4)).float().mean((2, 4)).flatten(1)
    assert torch.equal(corners == (wanted * 50 + 20)[:, None], quadrants)
    again = coverage.mosaic(images, labels, 30, seed=0)
    assert torch.equal(made, again[0])


def test_what_maps_cover_of_known_patches() -> None:
    maps = torch.zeros(3, 4, 4)
    maps[0, :2] = 4.0  # all of the two wanted quadrants
    maps[1, 0, 0], maps[1, 3, 3] = 2.0, 1.0  # one patch of a wanted one, and one of another at half of the largest
    wanted = torch.tensor([[True, True, False, False], [True, False, True, False], [False, True, True, False]])
    found = {name: values.tolist() for name, values in coverage.on_quadrants(maps, wanted).items()}
    assert found["focus"] == pytest.approx([1, 2 / 3, 0.5]), "an empty map is neither right nor wrong"
    assert found["object_area"] == [1, 1 / 8, 0]
    assert found["other_area"] == [0, 1 / 8, 0]
    assert found["objects"] == [2, 1, 0]


def test_a_title_says_what_was_found() -> None:
    def row(run: str, wanted: float, other: float) -> coverage.Row:
        measures = {"object_area": Estimate(wanted, 0.01), "other_area": Estimate(other, 0.01)}
        return coverage.Row(run, "mae", "own", measures, {}, [], [], [])

    assert plots.finding([row("runs/mae", 0.148, 0.159), row("runs/sl", 0.07, 0.04)]) == (
        "The maps of a class cover: mae 15% of the wanted quadrants and 16% of the others; sl 7% of the wanted "
        "quadrants and 4% of the others"
    )


def test_the_effective_share_of_known_maps() -> None:
    maps = torch.tensor([[1.0, 1, 1, 1], [0, 0, 5, 0], [2, 2, 0, 0]])
    assert coverage.effective_share(maps).tolist() == pytest.approx([1, 0.25, 0.5])


def test_what_cannot_be_compared_is_one_line(runs: tuple[Path, Path], tmp_path: Path) -> None:
    train(load("demo", [*SMALL, "length=1 steps", "optim.warmup=0 steps", "data.size=16"]), tmp_path / "larger")
    with pytest.raises(ConfigError, match="are not those of"):
        coverage.run(coverage.Options((runs[0], tmp_path / "larger")))
    with pytest.raises(ConfigError, match="raise --train"):
        classifier(api.load(runs[0]), 4)
    with pytest.raises(ConfigError, match="too few for mosaics"):
        coverage.mosaic(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 2]), 2, 0)
