"""The inequalities of U-MAE's theory, on a small run and on decoders whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from mrp import api
from mrp.cli import main
from mrp.config import ConfigError
from mrp.lab.bounds import experiment as bounds
from mrp.lab.bounds import sides
from mrp.lab.claims import theory
from mrp.lab.claims.results import NotCounted
from mrp.lab.estimate import Estimate
from mrp.objectives import mae
from mrp.run import load
from mrp.train import train

SMALL = ["backbone={width: 32, depth: 2, heads: 2, patch: 2}", "length=4 steps", "batch=32", "optim.warmup=1 steps"]


DECODER = "objective.decoder={width: 16, depth: 1, heads: 2}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "mae"
    more = ["checkpoint={every: 2 steps, keep: 5}", "diagnose.every=0 steps", DECODER]
    train(load("demo", [*SMALL, *more]), path)
    return path


def test_every_checkpoint_is_held_against_every_bound(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["lab", "bounds", str(folder), "--images", "24", "--descent", "3", "--out", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["step"] for row in results["rows"]] == [0, 2, 4]
    for row, verdicts in zip(results["rows"], results["verdicts"], strict=True):
        assert verdicts == dict.fromkeys(bounds.GAPS, "holds"), "they are theorems"
        assert row["loss"]["value"] > row["half_disagreement"]["value"] > 0
        assert row["variance"] >= row["variance_given_place"] * 23 / 24
    assert (tmp_path / "bounds.png").stat().st_size > 1000
    assert "L_MAE(constant f) - Var(x2 | place)" in " ".join(capsys.readouterr().out.split())


def test_a_run_with_sigreg_is_not_called_umae(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sigreg = "objective.uniformity={weight: 0.02, kind: sigreg}"
    train(load("demo", [*SMALL, DECODER, sigreg, "length=1 steps", "optim.warmup=0 steps"]), tmp_path / "run")
    main(["lab", "bounds", str(tmp_path / "run"), "--images", "8", "--descent", "1", "--out", str(tmp_path)])
    assert "with LeJEPA's SIGReg of weight 0.02" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(NotCounted, match="has LeJEPA's SIGReg beside MAE's loss"):
        theory.alignment([json.loads((tmp_path / "results.json").read_text())])


class _Places(nn.Module):
    """A decoder that paints the same whatever the encoder says."""

    def __init__(self, painted: Tensor) -> None:
        super().__init__()
        self.painted = painted  # N D

    def forward(self, latent: Tensor, places: Tensor) -> Tensor:
        return self.painted.expand(len(latent), -1, -1) + 0 * latent.sum()


def test_a_decoder_that_knows_only_places_meets_the_bound_of_a_constant_encoder(folder: Path) -> None:
    model = api.load(folder)
    objective = cast(mae.Objective, model.objective)
    pixels = api.held_out(model.run, 48)
    target = bounds.Views.draw(model.module, pixels).target
    objective.decoder = cast(Any, _Places(target.mean(0)))
    row = bounds._measure(0, model.module, pixels, descent=1)
    assert row.means["half_disagreement"].value == 0
    assert row.means["correlation"].value == 0, "it agrees with itself, and says nothing"
    assert row.means["alignment"].value == pytest.approx(-1, abs=1e-5)
    assert row.means["loss"] == row.means["loss_constant"]
    assert abs(row.gaps["theorem_3_6"].value) < row.gaps["theorem_3_6"].error
    for gap in ("direct", "sharper"):
        assert row.gaps[gap].value == pytest.approx(row.means["loss_directions"].value, abs=1e-4)
    assert row.numbers["explained_directions"] == pytest.approx(0, abs=1e-4)


def test_the_sharper_bound_holds_on_every_discrete_world() -> None:
    """Unit vectors u drawn given v: the bound holds exactly, and is at least 1 + L_align."""
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        outputs = torch.nn.functional.normalize(torch.randn(3, 4, 2, generator=generator, dtype=torch.float64), dim=-1)
        targets = torch.nn.functional.normalize(torch.randn(3, 2, generator=generator, dtype=torch.float64), dim=-1)
        chance = torch.rand(3, 4, generator=generator, dtype=torch.float64).softmax(1)  # of an output, given the target
        mean = (chance[..., None] * outputs).sum(1)
        loss = float((chance * (outputs - targets[:, None]).square().sum(-1)).sum(1).mean())
        alignment = -float(mean.square().sum(-1).mean())
        assert loss >= bounds._sharper(alignment) - 1e-12 >= 1 + alignment - 2e-12
    assert bounds._sharper(-1.0) == 0
    assert bounds._sharper(0.0) == bounds._sharper(0.1) == 2, "an estimate may lie on the wrong side of zero"


def test_the_centred_correlation_is_pearsons_where_all_places_count() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(400, 1, 1, generator=generator)
    second = 0.5 * first + torch.randn(400, 1, 1, generator=generator)
    everywhere = torch.ones(400, 1)
    estimate = bounds.centred_correlation(first + 7, second - 3, everywhere)
    expected = float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])
    assert estimate.value == pytest.approx(expected, abs=1e-5)
    assert estimate.error == pytest.approx(1.96 * (1 - expected**2) / 20, rel=0.2)
    half = torch.cat([torch.ones(200, 1), torch.zeros(200, 1)])
    alone = bounds.centred_correlation(first[:200], second[:200], everywhere[:200])
    assert bounds.centred_correlation(first, second, half).value == pytest.approx(alone.value, abs=1e-5)


def test_descent_finds_a_smaller_error_of_the_decoder(folder: Path) -> None:
    model = api.load(folder)
    objective = cast(mae.Objective, model.objective)
    views = bounds.Views.draw(model.module, api.held_out(model.run, 8))
    none, some = (bounds.decoder_error(objective, views, count) for count in (0, 10))
    assert (some < none).all()
    assert all(parameter.grad is None for parameter in objective.parameters())


SQUARED = {
    "maskfeat": ["maskfeat_tiny_digits"],
    "crossmae": ["crossmae_tiny_digits", "objective.decoder={width: 16, depth: 2, heads: 2}", "objective.masks=1"],
    "data2vec2": [
        "data2vec2_tiny_digits", "objective={layers: 2, masks: 2, decoder: {width: 16, depth: 2, groups: 2}}",
    ],
}  # fmt: skip


@pytest.mark.parametrize("method", SQUARED)
def test_the_bounds_hold_for_every_squared_error(method: str, tmp_path: Path) -> None:
    recipe, *words = SQUARED[method]
    train(load(recipe, [*SMALL, "diagnose.every=0 steps", *words]), tmp_path / method)
    result = bounds.run(tmp_path / method, 24, 3)
    assert [row.step for row in result.rows] == [0, 4]
    for row in result.rows:
        assert set(row.verdicts.values()) == {"holds"}
        assert row.means["loss"].value > row.means["half_disagreement"].value > 0
    module = api.load(tmp_path / method).module
    views = bounds.Views.draw(module, api.held_out(api.read(tmp_path / method), 24))
    latent, maps = sides.encode(cast(Any, module.objective), views.images, views.masks[0])
    prediction = sides.decode(cast(Any, module.objective), maps, views.masks[0], views.keys[0])
    everywhere = [torch.arange(16).expand(24, -1)] if method == "crossmae" else []
    official = cast(Any, module.objective).predict(views.images, views.masks[0], *everywhere, views.keys[0])
    torch.testing.assert_close((latent, prediction), official)


def test_only_squared_errors_are_taken(tmp_path: Path) -> None:
    train(load("supervised_tiny_digits", [*SMALL, "length=1 steps", "optim.warmup=0 steps"]), tmp_path / "run")
    with pytest.raises(ConfigError, match="this run is of classify"):
        bounds.run(tmp_path / "run", 8, 1)


def test_verdicts() -> None:
    assert [Estimate(value, 0.1).verdict for value in (0.2, 0.05, -0.2)] == ["holds", "not told apart", "fails"]
    assert Estimate.over_images(torch.tensor([1.0, 3.0])).error == pytest.approx(1.96, abs=1e-3)
    for seeds, quantile in ((2, 12.7062), (10, 2.2622), (11, 2.2281), (31, 2.0423)):  # tables of Student's t
        values = torch.arange(seeds).double()
        assert Estimate.over_seeds(values).error == pytest.approx(quantile * float(values.std()) / seeds**0.5, rel=1e-4)
