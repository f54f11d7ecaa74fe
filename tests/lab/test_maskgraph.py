"""The mask graph: what is estimated agrees with what can be written down."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mrp.cli import main
from mrp.config import ConfigError
from mrp.lab.maskgraph import experiment as maskgraph
from mrp.lab.maskgraph import graph, toy_world
from mrp.lab.maskgraph.experiment import Options, Result


def toy(images: int, seed: int = 0) -> Result:
    options = Options("toy", ratios=(0.17, 0.5, 0.83), images=images, masks=60, features=2, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maskgraph, "WORLDS", 1)  # the sixty worlds of the real one are counted below
        return maskgraph.run(options)


@pytest.fixture(scope="module")
def small() -> Result:
    return toy(100)


@pytest.fixture(scope="module")
def large() -> Result:
    return toy(320)


def test_the_exact_value_lies_within_the_stated_error(large: Result) -> None:
    inside, compared = large.within()
    assert compared == 3 * len(graph.MEASURES)
    assert inside >= compared - 1, "95 % intervals, widened by the bias"


def off(result: Result, name: str) -> float:
    values = [abs(row.estimates[name].value - row.exact[name]) for row in result.rows if row.exact]
    return sum(values) / len(values)


@pytest.mark.parametrize("name", ["same_class", "same_class_views", "confusable"])
def test_more_images_come_nearer_and_say_so(name: str, small: Result, large: Result) -> None:
    stated = [sum(row.estimates[name].error for row in result.rows) for result in (small, large)]
    assert stated[1] < 0.7 * stated[0]
    assert off(large, name) < 0.02


@pytest.mark.parametrize("name", ["second", "residual"])
def test_more_images_bring_the_spectrum_nearer(name: str, small: Result, large: Result) -> None:
    assert off(large, name) < 0.5 * off(small, name)


def mask_of(*hidden: int) -> Tensor:
    return torch.zeros(6, dtype=torch.bool).index_fill(0, torch.tensor(hidden), True)


def mean(world: toy_world.World, hidden: int, features: int) -> dict[str, float]:
    measured = [toy_world.exact(world, *pair, features)[0] for pair in toy_world.pairs(world.patches, hidden)]
    return {name: sum(values[name] for values in measured) / len(measured) for name in graph.MEASURES}


def test_with_one_patch_as_the_target_a_ratio_and_its_complement_differ() -> None:
    world = toy_world.make(values=2)
    assert mean(world, 5, 1)["residual"] < 0.5 * mean(world, 1, 1)["residual"]


def test_in_every_world_the_sum_falls_and_the_label_error_rises_at_every_step() -> None:
    """They follow by algebra: a smaller view is a function of a larger one, so it says less of the target and class."""
    counts = toy_world.monotone(60, 2)
    assert counts["residual falls"] == counts["label_error rises"] == 60
    assert counts["residual rises"] == counts["label_error falls"] == 0


def test_which_images_share_a_target_does_not_depend_on_the_ratio() -> None:
    world = toy_world.make(values=2)
    shares = [mean(world, hidden, 1)["same_class"] for hidden in range(1, 6)]
    assert shares == pytest.approx([shares[0]] * 5)


def test_patches_that_know_nothing_of_each_other_leave_one_eigenvalue() -> None:
    world = toy_world.make(sharpness=0)
    values, eigenvalues = toy_world.exact(world, mask_of(1, 2, 3), 2, 1)
    assert eigenvalues[0] == pytest.approx(1)
    assert values["residual"] == pytest.approx(0, abs=1e-20)
    assert values["same_class"] == pytest.approx(0.5)
    assert values["label_error"] == pytest.approx(0.5)


def test_the_exact_graph_by_another_way() -> None:
    """Image by image instead of view by view: A through the images that agree on the target."""
    world, mask = toy_world.make(values=2), mask_of(0, 3)
    chance = world.joint.sum(0)
    same_target = world.images[:, None, 3].eq(world.images[None, :, 3]).double()
    same_view = (world.images[:, None, ~mask] == world.images[None, :, ~mask]).all(-1).double()
    edges = chance[:, None] * same_target * chance / (same_target @ chance)[:, None]  # p(image, image+)
    of_class = world.joint / chance
    values = toy_world.exact(world, mask, 3, 1)[0]
    assert values["same_class"] == pytest.approx(float((of_class @ edges @ of_class.T).trace()))
    views = same_view * chance / (same_view @ chance)[:, None]
    eigenvalues = torch.linalg.eigvals(views @ (edges / chance[:, None])).real.sort(descending=True).values
    assert values["second"] == pytest.approx(float(eigenvalues[1]))


def test_noise_is_taken_as_what_it_is() -> None:
    """Four kinds of images of two pixels, one hidden: posteriors of noisy pixels, integrated on a fine grid."""
    kinds, noise = torch.tensor([[0.0, 0.0], [0.4, 1.0], [1.0, 0.3], [1.2, 1.1]]), 0.4
    line = torch.linspace(-3, 4, 4001, dtype=torch.float64)

    def confusion(values: Tensor) -> Tensor:
        density = torch.exp(-((line[:, None] - values.double()) ** 2) / (2 * noise**2))
        density = density / density.sum(0)
        return density.T @ (density / density.sum(1, keepdim=True))  # p(kind+ | kind), through a noisy pixel

    eigenvalues = (
        torch.linalg.eigvals(confusion(kinds[:, 0]) @ confusion(kinds[:, 1])).real.sort(descending=True).values
    )
    labels = torch.arange(800) % 4
    views, generator = kinds[labels], torch.Generator().manual_seed(0)
    draws = torch.randn(views.shape, generator=generator)
    posteriors = [
        graph.distances(views[:, side : side + 1], draws[:, side : side + 1]).log_posterior(noise) for side in (0, 1)
    ]
    values, spectrum = graph.measure(posteriors[0], posteriors[1], labels, 1)
    assert torch.allclose(spectrum[:4], eigenvalues, atol=0.04)
    assert values["same_class"] == pytest.approx(float(confusion(kinds[:, 1]).diagonal().mean()), abs=0.03)


def test_the_noise_leaves_as_many_candidates_as_asked_for() -> None:
    views = torch.randn(200, 20, generator=torch.Generator().manual_seed(2))
    draws = torch.randn(200, 20, generator=torch.Generator().manual_seed(3))
    whole = graph.distances(views, draws)
    shares = whole.log_posterior(graph.calibrate(whole, 5.0)).softmax(1)
    assert float(torch.special.entr(shares).sum(1).mean()) == pytest.approx(math.log(5), rel=1e-3)


def test_an_estimate_counts_sampling_masks_and_bias() -> None:
    whole, halves = torch.tensor([0.5, 0.7]), torch.tensor([[0.6, 0.8], [0.7, 0.9]])
    every, some = graph.estimate(whole, halves, True), graph.estimate(whole, halves, False)
    assert every.value == pytest.approx(0.6 - 0.15)
    assert every.error == pytest.approx(1.96 * 0.1 + 0.15, abs=1e-4)
    assert some.error == pytest.approx(1.96 * math.sqrt(0.1**2 + 0.02 / 2) + 0.15, abs=1e-4)


def test_a_seed_decides_everything() -> None:
    first, again, other = toy(60), toy(60), toy(60, seed=1)
    assert first.rows == again.rows
    assert first.rows != other.rows


def test_it_runs_on_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size", "8", "--unit", "1", "2", "--images", "120", "--masks", "2", "--features", "8"]
    words += ["--candidates", "2", "--ratios", ".25", ".75"]
    main(["lab", "maskgraph", "digits", *words, "--out", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(row["unit"], row["ratio"]) for row in results["rows"]] == [(1, 0.25), (1, 0.75), (2, 0.25), (2, 0.75)]
    assert set(results["choices"]) == {"1", "2"}
    errors = [row["estimates"]["label_error"]["value"] for row in results["rows"]]
    assert errors[0] < errors[1] < 0.9, "digits look alike, and less so in a small view"
    assert errors[2] < errors[3]
    assert results["worlds"] is None
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "measures.png", "spectra.png"}
    assert "which ratio each criterion would choose" in capsys.readouterr().out


def test_the_toy_is_held_against_its_exact_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(maskgraph, "WORLDS", 2)
    main(["lab", "maskgraph", "toy", "--images", "60", "--ratios", ".5", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "the exact values lie within the stated error for" in said
    assert "label_error rises at every step of the ratio: 2 worlds" in said
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("measures.png", "spectra.png"))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"images": 30}, "--images"),
        ({"features": 50}, "--features"),
        ({"ratios": (0.5, 1.0)}, "--ratios"),
        ({"units": (3,)}, "--unit"),
        ({"units": (8,)}, "--unit"),
        ({"noise": 0.0}, "--noise"),
        ({"candidates": 1.0}, "--candidates"),
    ],
)
def test_what_cannot_be_measured_is_one_line(changed: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        maskgraph.run(Options(**{"data": "digits", "images": 60, "size": 8, "features": 4, **changed}))  # type: ignore[arg-type]


def test_data_without_labels_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    with pytest.raises(ConfigError, match="has no labels"):
        maskgraph.run(Options(str(tmp_path), images=60))
