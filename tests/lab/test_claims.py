"""The table of claims: verdicts follow from numbers, and the page that is kept from the numbers that are kept."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from mrp import cli
from mrp.config import ConfigError
from mrp.lab.claims import multiview, page, study, theory
from mrp.lab.claims.claim import Claim, Prediction, Verdict
from mrp.lab.claims.number import Number, difference, over_images, over_seeds
from mrp.lab.claims.results import Results
from mrp.lab.multiview.constants import Constants
from mrp.run import find_recipe
from tests.probed import write_probe

DOCS = Path(__file__).parents[2] / "docs"


def claim(*predictions: Prediction, **more: Any) -> Claim:
    return Claim(id="a", claim="It rises", source="Theorem 1", cost="nothing", predictions=predictions, **more)


def written(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


VALUES = {2.0: True, 1.0: None, 0.0: False}  # whether "above 1" is predicted rightly, if the interval is narrow
HALVES = {None: False, 0.1: True, 5.0: False}  # whether such an interval can decide
SEEDS = {1: False, 2: False, 3: True, 5: True}
EPOCHS = {None: False, 5.0: False, 300.0: True}


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("algebra", ["", "by Jensen"])
def test_every_value_interval_number_of_seeds_and_regime(mirrored: bool, ours: bool, algebra: str) -> None:
    """A refutation needs what a confirmation needs, and nothing else is either of them."""
    sign = -1 if mirrored else 1
    prediction = Prediction("x", "<" if mirrored else ">", sign * 1)
    subject = claim(prediction, regime=(Prediction("epochs", ">", 199),), ours=ours, algebra=algebra)
    decided = []
    for (value, right), (half, narrow), (seeds, enough), (epochs, long) in itertools.product(
        VALUES.items(), HALVES.items(), SEEDS.items(), EPOCHS.items()
    ):
        numbers = {"x": Number(sign * value, half, "", seeds)}
        if epochs is not None:
            numbers["epochs"] = Number(epochs, 0.0, "")
        verdict, reason = subject.verdict(numbers)
        fair = narrow and enough and long and right is not None
        plain = Verdict.SMALL if not fair else Verdict.HOLDS if right else Verdict.FAILS
        if algebra and plain != Verdict.FAILS:
            assert (verdict, reason) == (Verdict.ALGEBRA, algebra)
        elif ours:
            found = {Verdict.HOLDS: "as we predicted", Verdict.FAILS: "not as we predicted"}.get(plain, plain.value)
            assert verdict == Verdict.OURS
            assert reason.startswith(found)
        else:
            assert verdict == plain, (value, half, seeds, epochs)
            assert bool(reason) == (plain != Verdict.HOLDS)
        decided.append(fair)
    assert sum(decided) == 4, "two values, with a narrow interval, at three or five seeds, in the regime"


def test_seeds_that_share_their_test_images_do_not_make_these_more() -> None:
    assert over_images([2.0, 4.0], [1.0, 2.0], "").half == 1.5


@pytest.mark.parametrize("value", [0.2, 1.0])
def test_an_exact_number_decides_alone_if_one_is_asked_for(value: float) -> None:
    exact = {"x": Number(value, 0.0, "exact")}
    assert claim(Prediction("x", ">", 1), seeds=1).verdict(exact)[0] == Verdict.FAILS, "more than is wanted"
    assert claim(Prediction("x", ">", 0.1), seeds=1).verdict(exact)[0] == Verdict.HOLDS
    assert claim(Prediction("x", ">", 0.1)).verdict(exact) == (Verdict.SMALL, "1 of 3 seeds")


def test_one_missed_prediction_decides_and_a_missing_number_is_no_verdict() -> None:
    two = (Prediction("x", ">", 1), Prediction("y", ">", 1))
    good, bad = Number(2.0, 0.1, "5 seeds", 5), Number(0.0, 0.1, "5 seeds", 5)
    assert claim(*two).verdict({"x": good, "y": good}) == (Verdict.HOLDS, "")
    assert claim(*two).verdict({"x": good, "y": bad}) == (Verdict.FAILS, "y is 0 +- 0.100, asked for: > 1")
    assert claim(*two).verdict({"x": bad})[0] == Verdict.FAILS
    assert claim(*two).verdict({"x": good}) == (Verdict.MORE, "nothing")
    assert claim(*two, ours=True).verdict({}) == (Verdict.MORE, "nothing")
    assert claim(never="too hard").verdict({}) == (Verdict.NEVER, "too hard")
    assert claim(algebra="by Jensen").verdict({"x": good}) == (Verdict.ALGEBRA, "by Jensen")


def test_a_sweep_states_the_boundary_and_takes_nothing_away() -> None:
    swept = claim(Prediction("x", ">", 1), elsewhere=(Prediction("mu", ">", 1), Prediction("not looked at", ">", 1)))
    numbers = {"x": Number(2.0, 0.1, "5 seeds", 5), "at mu = 0.1": Number(2.0, 0.1, "", 5)}
    assert swept.verdict(numbers) == (Verdict.HOLDS, "")
    untold = {"at mu = 0.2": Number(1.0, 0.5, "", 5), "at mu = 0.3": Number(0.5, None, "", 5)}
    assert swept.verdict(numbers | untold) == (Verdict.HOLDS, ""), "no interval refutes it there"
    broken = {f"at mu = {mu}": Number(0.5, 0.1, "", 5) for mu in (0.4, 0.8)}
    assert swept.verdict(numbers | untold | broken) == (Verdict.REGIME, "mu = 0.4, 0.8")
    wrong = {"x": Number(0.0, 0.1, "5 seeds", 5)}
    assert swept.verdict(broken | wrong)[0] == Verdict.FAILS, "a boundary mends nothing"


def test_no_interval_is_not_an_interval_of_zero() -> None:
    sure, unsure = Number(2.0, 0.1, "", 5), Number(1.0, None, "", 5)
    assert difference(sure, unsure, "").half is None
    assert difference(unsure, sure, "").half is None
    assert str(unsure) == "1"


def test_intervals() -> None:
    assert over_seeds([1.0], "here").half is None
    two = over_seeds([1.0, 2.0], "here")
    assert (two.value, two.half, two.over) == (1.5, None, "2 seeds, here, 1 and 2")
    three = over_seeds([1.0, 2.0, 3.0], "here")
    assert three.half == pytest.approx(4.302653 / 3**0.5)
    assert difference(Number(1.0, 3.0, ""), Number(3.0, 4.0, ""), "both") == Number(-2.0, 5.0, "both")


def write_study(folder: Path, method: str, seed: int, uniformity: float, accuracy: float, epochs: int = 5) -> None:
    run = folder / "study" / f"{method}-{epochs}-{seed}"
    features = {"uniformity": uniformity, "rank_me": 1 / uniformity, "participation_ratio": 1 / uniformity}
    written(run / "result.json", {f"features/{name}": value for name, value in features.items()})
    interval = {"accuracy": accuracy, "low": accuracy - 0.01, "high": accuracy + 0.01}
    write_probe(run, linear=interval, knn=interval)


def test_a_study_is_compared_seed_by_seed_at_the_longest_training_of_both(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.5, 0.6, 0.7)):
        write_study(tmp_path, "mae", seed, 0.9, accuracy)
        write_study(tmp_path, "umae", seed, 0.05, accuracy + 0.03)
    write_study(tmp_path, "mae", 0, 0.9, 0.8, epochs=10)
    gains = study.probe_gain(Results(tmp_path), "mae", "umae")
    assert gains["gain, linear"].value == pytest.approx(3)
    assert gains["gain, linear"].half == pytest.approx(0, abs=1e-9), "the seeds agree, whatever their level"
    assert gains["gain, linear"].over == "3 seeds, 5 epochs"
    record = page.collect(Results(tmp_path))
    assert record.numbers["uniformity"]["uniformity, without the term / with it"].value == pytest.approx(18)
    assert record.numbers["uniformity"]["uniformity with it"].value == pytest.approx(0.05)
    assert record.numbers["collapse"]["uniformity of MAE"].over == "1 seed, 10 epochs"
    verdicts = {claim.id: record.verdict(claim) for claim in page.CLAIMS}
    short = "outside of the claim's regime: epochs is 5, asked for: > 199"
    assert verdicts["uniformity"] == verdicts["linear"] == (Verdict.SMALL, short)
    assert verdicts["tuned"][0] == verdicts["linear-in1k"][0] == Verdict.MORE
    for seed, accuracy in enumerate((0.5, 0.6, 0.7)):
        write_study(tmp_path, "mae", seed, 0.9, accuracy, epochs=300)
        write_study(tmp_path, "umae", seed, 0.05, accuracy + 0.03, epochs=300)
    record = page.collect(Results(tmp_path))
    verdicts = {claim.id: record.verdict(claim) for claim in page.CLAIMS}
    assert verdicts["uniformity"] == verdicts["linear"] == (Verdict.HOLDS, "")
    assert verdicts["collapse"][0] == Verdict.FAILS


def test_fine_tuning_is_compared_with_training_from_scratch(tmp_path: Path) -> None:
    for seed in range(3):
        write_study(tmp_path, "mae", seed, 0.9, 0.5)
        for place, accuracy in ((".", 0.4), ("untrained", 0.3 + seed / 100)):
            interval = {"accuracy": accuracy, "low": accuracy - 0.01, "high": accuracy + 0.01}
            written(tmp_path / f"study/mae-5-{seed}" / place / "judged-0.1/tuned-2.json", interval)
    gains = study.scratch_gain(Results(tmp_path), ["mae", "umae"])
    assert list(gains) == ["gain of mae"]
    assert gains["gain of mae"].value == pytest.approx(9)
    assert gains["gain of mae"].seeds == 3


def graph_result(data: str) -> dict[str, Any]:
    values = {0.1: 9.0, 0.31: 0.1, 0.74: 0.3, 0.95: 0.2}
    rows = [
        {"ratio": ratio, "masks": 4, "estimates": {"same_class": {"value": value, "error": 0.03}}, "exact": None}
        for ratio, value in values.items()
    ]
    return {"options": {"data": data, "images": 50}, "rows": rows}


def test_a_graph_is_compared_at_the_ratios_nearest_to_those_asked_for() -> None:
    data = graph_result("cifar10/train")
    rises = theory.ratio_change(data, "CIFAR-10", "same_class", "edges", 0.3, 0.75)
    assert list(rises) == ["edges, CIFAR-10"]
    assert rises["edges, CIFAR-10"].value == pytest.approx(0.2)
    assert rises["edges, CIFAR-10"].half == pytest.approx(0.03 * 2**0.5)
    assert theory.ratio_change(data, "CIFAR-10", "same_class", "edges", 0.75, 0.95)["edges, CIFAR-10"].value < 0


def test_the_correlation_of_outputs_is_compared_with_the_start_over_seeds() -> None:
    def run(seed: int) -> dict[str, Any]:
        ends = [(0.0, 2.0 * 3**seed), (0.3 + seed / 100, 0.5 * 3**seed)]  # an untrained loss is any number
        rows = [{"correlation": {"value": one}, "loss": {"value": other}} for one, other in ends]
        return {"run": f"demo-{seed}", "images": 9, "uniformity_weight": 0, "rows": rows}

    numbers = theory.alignment([run(seed) for seed in range(3)])
    assert numbers["correlation, end minus start"].value == pytest.approx(0.31)
    assert numbers["loss, end over start"].value == pytest.approx(0.25)
    (claim,) = [claim for claim in page.CLAIMS if claim.id == "alignment"]
    assert claim.verdict(numbers) == (Verdict.OURS, "as we predicted")


def row_of(folder: Path, statement: str) -> str:
    """The row of a claim on the page that the command writes."""
    cli.main(["lab", "claims", "--results", str(folder), "--out", str(folder / "claims.md")])
    (row,) = [line for line in (folder / "claims.md").read_text(encoding="utf-8").splitlines() if statement in line]
    return row


def test_results_of_toy_size_are_not_counted(tmp_path: Path) -> None:
    cli.main(["lab", "multiview", "--toy", "--out", str(tmp_path / "lab/multiview"), "steps_scratch=5"])
    for statement in ("The same if patches are reconstructed", "Its total error is about 0.5 mu"):
        row = row_of(tmp_path, statement)
        assert "**needs more compute**" in row, row
        assert "results.json: toy or other constants than the defaults (k, d" in row
        assert "not counted" in row
    record = page.from_json(tmp_path / "claims.json")
    assert not record.numbers["features-patches"]
    assert record.not_counted["features-patches"]


def methods_of(value: float) -> dict[str, Any]:
    entry = {"mean": value, "half": 0.0}
    kernels = {"captured": entry, "kernels with two or more": entry}
    accuracy = {"multi-view": entry, "single-view": entry, "total error": entry}
    return {method: {"kernels": kernels, "accuracy": accuracy} for method in ("teacher", "patches", "scratch")}


def test_a_sweep_at_other_constants_is_not_counted_beside_results_at_the_defaults(tmp_path: Path) -> None:
    full = Constants().model_dump(mode="json")
    written(tmp_path / "lab/multiview/results.json", {"constants": full, "methods": methods_of(1.0)})
    small = {"constants": full | {"samples": 100}, "values": [{"value": 0.1} | methods_of(0.5)]}
    written(tmp_path / "lab/multiview/sweep_mu.json", small)
    row = row_of(tmp_path, "The same if patches are reconstructed")
    assert "captured share: 1 (5 seeds, mu = 0.02)" in row
    assert "over mu" not in row
    assert "**holds** (" in row
    assert "sweep_mu.json: toy or other constants than the defaults (samples): not counted" in row
    written(tmp_path / "lab/multiview/sweep_mu.json", small | {"constants": full | {"mu": 0.3, "seeds": 9}})
    row = row_of(tmp_path, "The same if patches are reconstructed")
    assert "over mu, 9 seeds: 0.1: 0.500" in row
    assert "**holds in its regime; breaks at** (mu = 0.1)" in row


def test_the_grid_counts_what_has_settled() -> None:
    def cell(*shares: float, settled: int | None) -> dict[str, Any]:
        entries = [{"captured": {"mean": share, "half": 0.01}} for share in shares]
        rows = [{"steps": steps, "kernels": entry} for steps, entry in zip((90, 270), entries, strict=False)]
        return {"rows": rows, "settled": settled}

    supervised = {"sgd": cell(0.5, 0.6, settled=90), "adam": cell(0.1, 0.3, settled=None)}
    patches = {"sgd": cell(0.2, 0.9, settled=None), "adam": cell(0.1, 0.1, settled=90)}
    diverged = {"rows": [{"steps": 90, "diverged": True}], "settled": None}
    data = {
        "constants": Constants().model_dump(mode="json"),
        "cells": {"supervised": supervised, "patches": patches, "teacher": {"sgd": diverged, "adam": diverged}},
    }
    settled = multiview.optimizers(data, "supervised", "kernels.captured")
    assert {name: number.value for name, number in settled.items()} == {"at optimizer = plain gradient descent": 0.5}
    at = multiview.lengths(data, "supervised", "adam", "kernels.captured")
    assert {name: number.value for name, number in at.items()} == {"at steps = 90": 0.1, "at steps = 270": 0.3}
    assert not multiview.same_optimizer(data, "teacher")
    gains = multiview.same_optimizer(data, "patches")
    assert gains["gain of patches, sgd"].value == pytest.approx(0.3)
    assert gains["gain of patches, sgd"].half == pytest.approx(0.01 * 2**0.5)
    assert gains["settled, patches, sgd"].value == 0
    (contrast,) = [claim for claim in page.CLAIMS if claim.id == "same-optimizer"]
    assert contrast.verdict(gains)[0] == Verdict.SMALL, "patches have not settled"
    patches["sgd"]["settled"] = 90
    assert contrast.verdict(multiview.same_optimizer(data, "patches"))[0] == Verdict.HOLDS


def vit_result(images: str, *tests: str) -> dict[str, Any]:
    size = {"epochs of pretraining": 20, "epochs of training": 15, "images": 1500}
    accuracy = {"test_multi": 1.0} | dict(zip(tests, (0.5, 0.9), strict=False))
    names = ("covered, pattern", "covered, photograph", "covered, noise", "features found, of 2")
    maps = {f"{kind}{name}": 0.25 for kind in ("", "Eigen-CAM, ") for name in names}
    better = {name: value + 0.05 for name, value in accuracy.items()}
    wider = maps | {"covered, photograph": 0.75}
    found = {"scratch": [{"accuracy": accuracy, "maps": maps}] * 3, "mae": [{"accuracy": better, "maps": wider}] * 3}
    found[multiview.ALONE] = found["mae"]
    return {"images": images, "size": size, "found": {"adamw": found, "sgd": found}}


def test_vision_transformers_that_were_hardly_trained_are_not_counted(tmp_path: Path) -> None:
    data = vit_result("rendered", "test_single")
    written(tmp_path / "multiview_vit/results.json", data | {"size": data["size"] | {"epochs of pretraining": 1}})
    row = row_of(tmp_path, "The same on a real ViT")
    assert "**needs more compute**" in row, row
    assert "multiview_vit/results.json: toy (1 epochs of pretraining): not counted" in row
    written(tmp_path / "multiview_vit/results.json", data)
    assert "single-view, from scratch: 0.500, single-view, gain of mae: 0.050" in row_of(
        tmp_path, "The same on a real ViT"
    )
    written(tmp_path / "planted_vit/results.json", data)
    assert "is of rendered images: not counted" in row_of(tmp_path, "The same on photographs")


def test_vision_transformers_are_compared_by_optimizer_and_by_what_is_shown() -> None:
    data = vit_result("planted", "test_pattern", "test_photograph")
    numbers = multiview.vit(data, "planted", {"images": 1500})
    assert numbers["single-view, from scratch"].value == pytest.approx(0.7), "the mean of both kinds"
    assert numbers["only the photograph, from scratch, SGD"].value == pytest.approx(0.9)
    assert numbers["single-view, gain of mae, SGD"].value == pytest.approx(0.05)
    assert numbers["single-view, gain of mae"].seeds == 3
    assert numbers["only the photograph, trained without patterns"].value == pytest.approx(0.95)
    assert not any("alone" in name for name in numbers), "it is no method of pretraining"
    maps = multiview.vit_maps(data, "planted", {})
    assert maps["features covered, gain of mae"].value == pytest.approx(0.25)
    assert maps["noise covered, gain of mae"].value == 0
    assert maps["Eigen-CAM, features covered, from scratch"].value == pytest.approx(0.25)


def test_seen_and_unseen_classes_are_told_apart() -> None:
    def row(method: str, classes: int, tuned: int, unseen: float) -> dict[str, Any]:
        parts = {"seen": {"value": 1.0, "error": 0.0}, "unseen": {"value": unseen, "error": 0.03}}
        parts = {name: part for name, part in parts.items() if name == "unseen" or classes}
        both = {"captured": parts, "single_view": parts}
        return {"world": "open", "method": method, "classes": classes, "tuned": tuned} | both

    rows = [row("teacher", 0, 60, 0.5), row("teacher", 2, 60, 0.2), row("teacher", 5, 60, 0.1)]
    more = [row("teacher", 5, 20, 0.9), row("teacher", 5, 60, 0.9) | {"world": "closed"}]
    data = {"constants": Constants().model_dump(mode="json"), "rows": rows + more}
    numbers = multiview.diversity(data, 0.5)
    assert numbers["captured of seen classes, teacher"].value == 1
    assert numbers["captured of unseen classes, teacher"].value == 0.1
    gain = numbers["single-view of unseen classes, teacher minus no pretraining"]
    assert (gain.value, gain.half, gain.seeds) == (pytest.approx(-0.4), pytest.approx(0.03 * 2**0.5), 5)
    assert numbers["at classes = 2, teacher"].value == 0.2


def coverage_result(*runs: tuple[str, str]) -> dict[str, Any]:
    entry = {"value": 0.6, "error": 0.01}
    names = ("focus", "object_area", "objects", "area")
    same, less = ({"value": value, "error": 0.0} for value in (0.0, -0.2))
    differences = [dict.fromkeys(names, less if index else same) for index in range(len(runs))]
    rows = [
        {"run": run, "objective": objective, "measures": dict.fromkeys(names, entry), "beyond_first": difference}
        for (run, objective), difference in zip(runs, differences, strict=True)
    ]
    return {"options": {"images": 20, "mosaics": 10}, "rows": rows}


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        ([("runs/mae", "mae")], "compares runs/mae with itself"),
        ([("runs/mae", "mae"), ("runs/other", "classify"), ("runs/mae", "mae")], "compares runs/mae with itself"),
        ([("runs/mae", "mae"), ("runs/umae", "mae")], "has to be pretrained and the last one supervised"),
        ([("runs/supervised", "classify"), ("runs/mae", "mae")], "has to be pretrained and the last one supervised"),
    ],
)
def test_a_run_is_not_compared_with_itself(tmp_path: Path, runs: list[tuple[str, str]], reason: str) -> None:
    written(tmp_path / "lab/coverage/results.json", coverage_result(*runs))
    row = row_of(tmp_path, "maps of MRP encoders cover more")
    assert "**needs more compute**" in row, row
    assert reason in row
    assert "not counted" in row


def test_a_pretrained_run_is_compared_with_a_supervised_one(tmp_path: Path) -> None:
    written(tmp_path / "lab/coverage/results.json", coverage_result(("runs/mae", "mae"), ("runs/sl", "classify")))
    assert "more of the known patches covered: 0.200" in row_of(tmp_path, "maps of MRP encoders cover more")


def test_three_seeds_of_maps_have_the_interval_over_seeds(tmp_path: Path) -> None:
    for seed, folder in enumerate(("coverage", "coverage-1", "coverage-2")):
        result = coverage_result((f"runs/mae-{seed}", "mae"), (f"runs/sl-{seed}", "classify"))
        result["rows"][1]["beyond_first"]["object_area"] = {"value": -0.1 * (1 + seed), "error": 0.0}
        written(tmp_path / f"lab/{folder}/results.json", result)
    row = row_of(tmp_path, "maps of MRP encoders cover more")
    assert "more of the known patches covered: 0.200 +- 0.248" in row, row  # Student's 4.303 x 0.1 / 3 ** 0.5
    assert "3 seeds, 20 images, 10 mosaics" in row


def test_one_run_is_not_counted_as_two_seeds(tmp_path: Path) -> None:
    for folder, supervised in (("coverage", "runs/sl-0"), ("coverage-1", "runs/sl-1")):
        result = coverage_result(("runs/mae", "mae"), (supervised, "classify"))
        written(tmp_path / f"lab/{folder}/results.json", result)
    assert "runs/mae is there twice: not counted" in row_of(tmp_path, "maps of MRP encoders cover more")


def test_two_names_of_one_run_are_not_compared(tmp_path: Path) -> None:
    write_study(tmp_path, "mae", 0, 0.9, 0.5)
    (tmp_path / "study/umae-5-0").symlink_to(tmp_path / "study/mae-5-0")
    for statement in ("features are better under a linear probe", "raises the effective rank"):
        row = row_of(tmp_path, statement)
        assert "**needs more compute**" in row, row
        assert "umae-5-0 is the run mae-5-0 itself: not counted" in row


def test_results_of_other_data_or_of_another_method_are_not_counted(tmp_path: Path) -> None:
    written(tmp_path / "lab/maskgraph-cifar10/results.json", graph_result("toy"))
    assert "maskgraph-cifar10/results.json: is of toy: not counted" in row_of(
        tmp_path, "adds edges between classes, counted"
    )
    gap = {"value": 1.0, "error": 0.1}
    row = {"gaps": {"theorem_3_4": gap, "theorem_3_6": gap}, "alignment": gap}
    bounds = {"run": "runs/umae", "images": 9, "uniformity_weight": 0.01, "rows": [row, row]}
    for run in ("mae", "umae", "demo-1"):
        written(tmp_path / f"lab/bounds-{run}/results.json", bounds)
    assert "runs/umae has U-MAE's uniformity beside MAE's loss: not" in row_of(tmp_path, "smaller loss of MAE")


def test_without_results_every_claim_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "here" / "claims.md"
    cli.main(["lab", "claims", "--results", str(tmp_path), "--out", str(out)])
    assert f"written to {out}" in capsys.readouterr().out
    record = page.from_json(out.with_suffix(".json"))
    assert {record.verdict(claim)[0] for claim in page.CLAIMS} == {Verdict.MORE, Verdict.NEVER, Verdict.ALGEBRA}
    text = out.read_text(encoding="utf-8")
    assert text == page.render(record)
    assert all(command in text for claim in page.CLAIMS for command in claim.commands)
    assert "1.5e+19 FLOP, 840 GPU minutes" in text, "what training costs is read from the recipe"


def test_an_earlier_page_stands_in_where_there_are_no_results(tmp_path: Path) -> None:
    for seed in range(3):
        for method, uniformity in (("mae", 0.9), ("umae", 0.05)):
            write_study(tmp_path, method, seed, uniformity, 0.5)
    out = tmp_path / "claims.md"
    cli.main(["lab", "claims", "--results", str(tmp_path), "--keep", str(DOCS / "claims.json"), "--out", str(out)])
    record, earlier = page.from_json(out.with_suffix(".json")), page.from_json(DOCS / "claims.json")
    assert record.numbers["uniformity"] != earlier.numbers["uniformity"]
    assert record.numbers["vit"] == earlier.numbers["vit"]
    assert "uniformity" not in record.kept
    assert record.kept["vit"] == earlier.kept.get("vit", earlier.made)
    assert f"(kept from {record.kept['vit']})" in out.read_text(encoding="utf-8")


def test_the_page_that_is_kept_is_what_the_kept_numbers_come_to() -> None:
    record = page.from_json(DOCS / "claims.json")
    assert set(record.numbers) == {claim.id for claim in page.CLAIMS}
    assert (DOCS / "claims.md").read_text(encoding="utf-8") == page.render(record)


def test_every_prediction_is_about_a_number_that_is_measured() -> None:
    kept = page.from_json(DOCS / "claims.json").numbers
    for claim in page.CLAIMS:
        assert claim.predictions or claim.never or claim.algebra, claim.id
        numbers = {prediction.number for prediction in (*claim.predictions, *claim.regime)}
        numbers |= {claim.board.number} - {""} if claim.board else set()
        assert not kept[claim.id] or numbers <= set(kept[claim.id]), claim.id
        swept = {name.partition(" = ")[0] for name in kept[claim.id] if name.startswith("at ")}
        assert swept <= {f"at {prediction.number}" for prediction in claim.elsewhere}, claim.id
        assert all(find_recipe(name).exists() for name in claim.recipes)
        assert {measure["measure"] for measure in claim.measures} <= set(page.MEASURES)
    assert len({claim.id for claim in page.CLAIMS}) == len(page.CLAIMS) >= 12


@pytest.mark.parametrize("wrong", [["x", "==", 1], ["x", ">", "much"], ["x", ">"]])
def test_only_plain_comparisons_are_read(wrong: list[Any]) -> None:
    with pytest.raises(ValueError, match="predictions"):
        Claim.model_validate({"id": "a", "claim": "It rises", "source": "Theorem 1", "predictions": [wrong]})


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--results", "{tmp}/none"], "there is no folder"),
        (["--results", "{tmp}", "--out", "{tmp}/claims.txt"], "ends in .md"),
        (["--results", "{tmp}", "--out", "{tmp}/claims.md"], "run again: mrp lab multiview"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "lab/multiview/results.json", {"constants": {"seeds": 5}})
    with pytest.raises(SystemExit) as stopped:
        cli.main(["lab", "claims", *(word.format(tmp=tmp_path) for word in words)])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert named in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "claims.md").exists()


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "lab/multiview/results.json"
    written(broken, {}).write_text("{")
    with pytest.raises(ConfigError, match=r"multiview.results\.json: cannot be read"):
        page.collect(Results(tmp_path))
