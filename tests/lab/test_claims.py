"""The table of claims: verdicts follow from numbers, and the page that is kept from the numbers that are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mrp import cli
from mrp.config import ConfigError
from mrp.lab.claims import page as claims_page
from mrp.lab.claims import study as claims_study
from mrp.lab.claims import theory as claims_theory
from mrp.lab.claims.claim import Bound, Claim, Number, Verdict, difference, over_seeds
from mrp.lab.claims.results import Results
from mrp.run import find_recipe

DOCS = Path(__file__).parents[2] / "docs"


def claim(*bounds: Bound, **more: Any) -> Claim:
    return Claim("a", "It rises", "Theorem 1", "mrp demo", "nothing", bounds, lambda results: {}, **more)


def written(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("number", "verdict"),
    [
        (Number(2.0, 0.5, "5 seeds", 5), Verdict.HOLDS),
        (Number(2.0, None, "1 seed"), Verdict.HERE_ONLY),
        (Number(1.2, 0.5, "5 seeds", 5), Verdict.MORE),
        (Number(0.8, 0.5, "5 seeds", 5), Verdict.MORE),
        (Number(0.2, 0.5, "5 seeds", 5), Verdict.FAILS),
        (Number(1.0, 0.0, "exact", 5), Verdict.FAILS),  # more than is wanted, not as much
        (Number(0.2, None, "1 seed"), Verdict.FAILS),
    ],
)
def test_a_verdict_follows_from_the_interval_and_the_seeds(number: Number, verdict: Verdict) -> None:
    assert claim(Bound("x", ">", 1)).judge({"x": number})[0] == verdict
    mirrored = number._replace(value=-number.value)
    assert claim(Bound("x", "<", -1)).judge({"x": mirrored})[0] == verdict


def test_one_missed_prediction_decides_and_a_missing_number_is_no_verdict() -> None:
    two = (Bound("x", ">", 1), Bound("y", ">", 1))
    good, bad = Number(2.0, 0.1, "5 seeds", 5), Number(0.0, 0.1, "5 seeds", 5)
    assert claim(*two).judge({"x": good, "y": good}) == (Verdict.HOLDS, "")
    assert claim(*two).judge({"x": good, "y": bad}) == (Verdict.FAILS, "y is 0 +- 0.100")
    assert claim(*two).judge({"x": bad})[0] == Verdict.FAILS
    assert claim(*two).judge({"x": good}) == (Verdict.NOT_RUN, "nothing")
    assert claim(*two, recipes=("demo",)).judge({})[0] == Verdict.MORE
    assert claim(never="too hard").judge({}) == (Verdict.NEVER, "too hard")


def test_what_fails_elsewhere_holds_here_only() -> None:
    numbers = {"x": Number(2.0, 0.1, "5 seeds", 5), "min": Number(0.5, 0.1, "5 seeds", 5)}
    limited = claim(Bound("x", ">", 1), elsewhere=(Bound("min", ">", 1), Bound("not looked at", ">", 1)))
    assert limited.judge(numbers) == (Verdict.HERE_ONLY, "elsewhere: min is 0.500 +- 0.100")
    assert limited.judge({"x": numbers["x"]}) == (Verdict.HOLDS, "")


def test_intervals() -> None:
    assert over_seeds([1.0], "here").half is None
    two = over_seeds([1.0, 2.0], "here")
    assert (two.value, two.half, two.over) == (1.5, None, "2 seeds, here, 1 and 2")
    three = over_seeds([1.0, 2.0, 3.0], "here")
    assert three.half == pytest.approx(4.303 / 3**0.5)
    assert difference(Number(1.0, 3.0, ""), Number(3.0, 4.0, ""), "both") == Number(-2.0, 5.0, "both")


def study(folder: Path, method: str, seed: int, uniformity: float, accuracy: float, epochs: int = 5) -> None:
    place = folder / "study" / f"{method}-{epochs}-{seed}"
    features = {"uniformity": uniformity, "rank_me": 1 / uniformity, "participation_ratio": 1 / uniformity}
    written(place / "result.json", {f"features/{name}": value for name, value in features.items()})
    judged = {"accuracy": accuracy, "low": accuracy - 0.01, "high": accuracy + 0.01}
    written(place / "probe.json", {"trained": {"linear": judged, "knn": judged}})


def test_a_study_is_compared_seed_by_seed_at_the_longest_training_of_both(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.5, 0.6, 0.7)):
        study(tmp_path, "mae", seed, 0.9, accuracy)
        study(tmp_path, "umae", seed, 0.05, accuracy + 0.03)
    study(tmp_path, "mae", 0, 0.9, 0.8, epochs=10)
    results = Results(tmp_path)
    gains = claims_study.probed("mae", "umae")(results)
    assert gains["gain, linear"].value == pytest.approx(3)
    assert gains["gain, linear"].half == pytest.approx(0, abs=1e-9), "the seeds agree, whatever their level"
    assert gains["gain, linear"].over == "3 seeds, 5 epochs"
    ratio = claims_study.uniformity("mae", "umae")(results)["uniformity, without the term / with it"]
    assert ratio.value == pytest.approx(18)
    assert claims_study.collapse(results)["uniformity of MAE"].over == "1 seed, 10 epochs"
    judged = claims_page.verdicts(claims_page.collect(results))
    assert judged["uniformity"][0] == judged["linear"][0] == Verdict.HOLDS
    assert judged["tuned"][0] == Verdict.NOT_RUN
    assert judged["linear-in1k"][0] == Verdict.MORE


def test_a_graph_is_compared_at_the_ratios_nearest_to_those_asked_for(tmp_path: Path) -> None:
    def row(ratio: float, value: float) -> dict[str, Any]:
        estimate = {"value": value, "error": 0.03}
        return {"ratio": ratio, "masks": 4, "estimates": {"same_class": estimate}, "exact": None}

    rows = [row(0.1, 9.0), row(0.31, 0.1), row(0.74, 0.3), row(0.95, 0.2)]
    written(tmp_path / "lab/maskgraph-cifar10/results.json", {"options": {"images": 50}, "rows": rows})
    rises = claims_theory.change("same_class", "edges", "small", "large")(Results(tmp_path))
    assert list(rises) == ["edges, CIFAR-10"]
    assert rises["edges, CIFAR-10"].value == pytest.approx(0.2)
    assert rises["edges, CIFAR-10"].half == pytest.approx(0.03 * 2**0.5)
    falls = claims_theory.change("same_class", "edges", "large", "too large")(Results(tmp_path))
    assert falls["edges, CIFAR-10"].value == pytest.approx(-0.1)


def test_without_results_every_claim_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "here" / "claims.md"
    cli.main(["lab", "claims", "--results", str(tmp_path), "--out", str(out)])
    assert f"written to {out}" in capsys.readouterr().out
    record = claims_page.from_json(out.with_suffix(".json"))
    kinds = {verdict for verdict, _ in claims_page.verdicts(record).values()}
    assert kinds == {Verdict.NOT_RUN, Verdict.MORE, Verdict.NEVER}
    page = out.read_text(encoding="utf-8")
    assert page == claims_page.render(record)
    assert all(one.command.split("; ")[0] in page for one in claims_page.CLAIMS)
    assert "1.5e+19 FLOP" in page, "what training costs is read from the recipe"


def test_the_page_that_is_kept_is_what_the_kept_numbers_come_to() -> None:
    record = claims_page.from_json(DOCS / "claims.json")
    assert set(record.numbers) == {one.key for one in claims_page.CLAIMS}
    assert (DOCS / "claims.md").read_text(encoding="utf-8") == claims_page.render(record)


def test_every_prediction_is_about_a_number_that_is_measured() -> None:
    kept = claims_page.from_json(DOCS / "claims.json").numbers
    for one in claims_page.CLAIMS:
        assert one.bounds or one.never, one.key
        assert not kept[one.key] or {bound.number for bound in one.bounds} <= set(kept[one.key]), one.key
        assert all(find_recipe(name).exists() for name in one.recipes)
    assert len({one.key for one in claims_page.CLAIMS}) == len(claims_page.CLAIMS) >= 12


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
        claims_page.collect(Results(tmp_path))
