"""Curves as SVG: no extreme is lost, nothing but numbers comes out, and every text is escaped."""

from __future__ import annotations

import html
import json
import math
import re
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mrp.report import confused, curves
from mrp.report.charts import draw, scatter
from mrp.report.frame import HEIGHT, WIDTH
from mrp.report.history import History
from mrp.report.series import Chart, Marks, Series, binned, said, smoothed
from mrp.report.told import Told, summary, what_ran


def parsed(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(draw(chart))


def group(figure: ElementTree.Element, number: int = 0) -> dict[str, Any]:
    """The texts and places of a series that the pointer finds."""
    found = [one for one in figure.iter("g") if "data-at" in one.attrib][number]
    return {key: json.loads(found.attrib[f"data-{key}"]) for key in ("at", "text")}


@pytest.mark.parametrize("count", [1, 2, 39, 41, 200])
def test_smoothing_is_a_centred_mean(count: int) -> None:
    values = np.random.default_rng(0).normal(size=count)
    reach = -(-count // 40)
    expected = [values[max(0, i - reach) : i + reach + 1].mean() for i in range(count)]
    np.testing.assert_allclose(smoothed(values), expected)


def test_a_huge_value_spoils_its_window_alone() -> None:
    values = np.ones(2_000_000)  # with a sum per window this would take minutes
    values[1000] = 1e30
    smooth = smoothed(values)
    assert smooth[0] > 1e20
    assert (smooth[200_000:] == 1).all()


def test_bins_keep_every_extreme_and_every_value_once() -> None:
    random = np.random.default_rng(0)
    x = np.sort(random.choice(10**6, 5000, replace=False)).astype(float)
    y = random.normal(size=5000)
    y[[17, 4321]] = 99.0, -99.0
    at, mean, low, high = binned(x, y)
    assert len(at) <= 200
    assert (high.max(), low.min()) == (99.0, -99.0)
    assert (np.diff(at) > 0).all()
    assert ((low <= mean) & (mean <= high)).all()
    counts = np.diff([*np.unique(np.searchsorted(x, np.linspace(x[0], x[-1], 201)[:-1])), len(x)])
    np.testing.assert_allclose((mean * counts).sum(), y.sum(), rtol=1e-6)


def test_a_million_steps_are_a_small_picture_that_shows_the_spike() -> None:
    x = np.arange(0, 10**6, 10.0)
    y = 1 / (1 + x / 1e5)
    y[70_000] = 5.0
    chart = Chart("Loss fell", "loss", [Series.of("loss", x, y)])
    text = draw(chart)
    assert len(text) < 40_000
    intervals = Series("knn", x, y, y - 0.1, y + 0.1)
    assert (
        len(draw(Chart("Accuracy", "%", [intervals], Marks(evaluations=x.astype(int).tolist()), "measured"))) < 60_000
    )
    heights = [float(one) for one in re.findall(r"[ML][\d.]+ ([\d.]+)", text.partition('class="band"')[2])]
    assert min(heights) < 30  # the spike is the top of the picture
    assert "Line: means of bins of log points" in text


@pytest.mark.parametrize(
    "values",
    [[2.0], [2.0, 2.0], [math.nan, 1.0, math.inf], [1e-9, 1e5, 3.0], [0.0, 0.0], list(range(500)), [-3.0, 4.0]],
)
@pytest.mark.parametrize("kind", ["noisy", "exact", "measured"])
def test_everything_drawn_is_a_number_inside_the_picture(values: list[float], kind: Any) -> None:
    marks = Marks(resumes=[1], incidents=[1], spikes=[1], evaluations=list(range(len(values))))
    chart = Chart("title", "unit", [Series.of("a", range(len(values)), values)], marks, kind)
    text = draw(chart)
    assert "nan" not in text.replace("are not finite", "")
    assert "inf" not in text.replace("not finite", "")
    for across, up in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", text):
        assert 0 <= float(across) <= WIDTH
        assert 0 <= float(up) <= HEIGHT
    assert len(group(parsed(chart))["at"]) == len(group(parsed(chart))["text"]) > 0


def test_values_of_which_none_is_finite_are_no_picture() -> None:
    assert draw(Chart("title", "unit", [Series.of("a", [1, 2], [math.nan, math.inf])])) == ""


def test_the_value_under_the_pointer_is_the_exact_one_with_its_interval() -> None:
    low, high = np.array([40.0, 50.0]), np.array([50.0, 60.0])
    series = Series("knn", np.array([100.0, 2000.0]), np.array([45.0, 55.5]), low, high)
    assert group(parsed(Chart("t", "%", [series], kind="measured")))["text"] == [
        "step 100: 45 (40 to 50)", "step 2,000: 55.5 (50 to 60)",
    ]  # fmt: skip


def test_several_lines_have_names_that_do_not_meet_and_a_legend() -> None:
    series = [Series.of(f"run {n}", [0, 1], [0, 1 + n / 1000]) for n in range(8)]
    figure = parsed(Chart("t", "u", series))
    heights = sorted(float(one.attrib["y"]) for one in figure.iter("text") if one.attrib.get("class") == "name")
    assert len(heights) == 8
    assert min(np.diff(heights)) >= 13.9
    assert heights[-1] <= HEIGHT
    keys = [one.attrib["data-of"] for one in figure.iter("span")]
    assert keys == [one.name for one in series]
    classes = {one.attrib["class"] for one in figure.iter("g") if "data-at" in one.attrib}
    assert len(classes) == 8  # each differs by colour, dashes or both


def test_a_run_without_values_leaves_its_look_to_nobody_else() -> None:
    figure = parsed(Chart("t", "u", [Series.of("a", [], []), Series.of("b", [0, 1], [1, 2])]))
    (only,) = [one for one in figure.iter("g") if "data-at" in one.attrib]
    assert (only.attrib["data-name"], only.attrib["class"]) == ("b", "series c1 d1")


def test_signs_are_explained_where_they_are() -> None:
    series = [Series.of("loss", range(100), np.linspace(1, 0, 100))]
    assert "↻: resumed. ▼: spike." in draw(Chart("t", "u", series, Marks(resumes=[50], spikes=[70])))
    assert "↻" not in draw(Chart("t", "u", series, Marks(incidents=[3])))


def test_what_happened_after_the_last_value_is_inside_the_picture() -> None:
    figure = parsed(Chart("t", "u", [Series.of("loss", [50, 100], [1.0, 0.5])], Marks([150], [170], [], [200])))
    at = [float(one.attrib["x1"]) for one in figure.iter("line") if one.get("class") in ("resume", "evaluation")]
    at += [float(one.attrib["d"][1:].split()[0]) for one in figure.iter("path") if one.get("class") == "incident"]
    assert len(at) == 3
    assert max(at) < WIDTH


def test_what_the_log_of_a_run_says(tmp_path: Path) -> None:
    lines = [
        {"step": 10, "loss": 2.0, "reconstruction": 2.0},
        {"step": 20, "loss": "nan", "reconstruction": "nan", "knn/accuracy": 0.5, "knn/seconds": 1.0},
        {"step": 30, "loss": 1.0, "spike": 9.0, "interrupted": 1.0, "note": "by hand"},
        {"step": 30, "knn/accuracy": 0.6, "knn/seconds": 1.0},  # made up for by the next start
        {"step": 40, "interrupted": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    history = History("run", tmp_path)
    loss = history.curve("loss")
    assert loss is not None
    np.testing.assert_array_equal(loss.x, [10, 20, 30])
    np.testing.assert_array_equal(loss.y, [2.0, math.nan, 1.0])
    assert (history.step, history.marks.spikes, history.marks.evaluations) == (40, [30], [20, 30])
    assert [one.name for one in history.accuracies()] == ["knn"]
    assert history.curve("note") is None
    assert not any("Reconstruction" in chart.title for chart in curves.of_one(curves.TRAINING, history))


def test_the_pointer_tells_what_was_logged_from_what_is_drawn_in_its_place() -> None:
    few = Chart("t", "u", [Series.of("loss", range(40), [0.0] * 39 + [2.0])])
    assert group(parsed(few))["text"][-1] == "step 39: 2, smoothed 1"
    many = Chart("t", "u", [Series.of("loss", range(400), [1.0, 3.0] * 200)])
    assert group(parsed(many))["text"][0] == "step 0: mean 2, 1 to 3"


@pytest.mark.parametrize("values", [[2.30251, 2.30268], [100_000, 100_003], [0.69312, 0.69318], [1e9, 1e9 + 1]])
def test_no_two_ticks_of_a_flat_curve_are_called_the_same(values: list[float]) -> None:
    figure = parsed(Chart("t", "u", [Series.of("loss", [1, 2], values)]))
    ticks = [one.text for one in figure.iter("text") if one.get("text-anchor") == "end" and one.text != "step"]
    assert len({*ticks}) == len(ticks) > 2


def test_long_names_beside_lines_can_be_told_apart() -> None:
    names = [f"mae_vit_base_in1k_seed{number}" for number in (1, 2)]
    figure = parsed(Chart("t", "u", [Series.of(name, [0, 1], [0, 1]) for name in names]))
    assert [one.text for one in figure.iter("text") if one.get("class") == "name"] == ["…seed1", "…seed2"]
    alike = [f"mae_{'x' * 40}{number}" for number in (1, 2)]  # of which one word is too long itself
    figure = parsed(Chart("t", "u", [Series.of(name, [0, 1], [0, 1]) for name in alike]))
    assert [one.text for one in figure.iter("text") if one.get("class") == "name"] == ["…xx1", "…xx2"]


def test_the_end_of_a_noisy_curve_is_compared_by_more_than_one_batch(tmp_path: Path) -> None:
    histories = []
    for name, last in (("a", 9.0), ("b", 1.0)):
        losses = [{"step": step, "loss": 2.0 if step < 40 else last} for step in range(1, 41)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in losses))
        histories.append(History(name, tmp_path / name))
    assert next(curves.of_several(curves.TRAINING, histories)).title == "Loss, at the end: 5.5 (a) and 1.5 (b)"


def test_an_option_that_changes_over_the_run_is_drawn(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 1.0, "objective/mask_ratio": step / 10} for step in (2, 5, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    titles = [chart.title for chart in curves.of_one(curves.TRAINING, History("run", tmp_path))]
    assert "objective.mask_ratio rose from 0.2 to 0.9" in titles
    schedule = {"kind": "linear", "value": 0.2, "end": 0.9, "until": "100 %"}
    (tmp_path / "config.yaml").write_text(json.dumps({"objective": {"name": "/x/mine.py", "mask_ratio": schedule}}))
    assert what_ran(History("run", tmp_path)).startswith("mine.py (mask ratio 0.2 to 0.9, linear) trains")


def test_a_start_that_found_a_complete_run_has_not_resumed_it(tmp_path: Path) -> None:
    starts = [{"step": step, "steps": 440, "device": f"at {step}", "time": "now"} for step in (0, 103, 103, 253, 440)]
    starts[2] |= {"steps": 103, "changed": {"packages.torch": ["1", "2"]}}  # complete until it was made longer
    (tmp_path / "config.yaml").write_text("length: 440 steps\n")
    (tmp_path / "environment.json").write_text(json.dumps({"starts": starts}))
    assert History("run", tmp_path).marks.resumes == [103, 253]
    assert History("run", tmp_path).starts[2]["changed"] == {"packages.torch": ["1", "2"]}
    text = "".join(summary(Told.of(tmp_path)))
    assert "now, resumed 2 times" in text
    assert "at 253, " in text


def test_what_came_after_a_checkpoint_is_not_told_of_it(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 1 / step, "knn/accuracy": step / 10} for step in (2, 4, 6, 8)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    starts = [{"step": step, "steps": 8, "device": f"at {step}"} for step in (0, 3, 4, 5)]
    (tmp_path / "environment.json").write_text(json.dumps({"starts": starts}))
    (tmp_path / "validation.json").write_text(
        json.dumps({"step": 8, "student": {"confusion": [[1]], "classes": [{"name": "a"}]}})
    )
    for name in ("alarms/step-4", "alarms/step-6", "incidents/a", "incidents/b"):
        (tmp_path / name).mkdir(parents=True)
    for name, step in (("a", 3), ("b", 7)):
        (tmp_path / "incidents" / name / "incident.json").write_text(json.dumps({"step": step}))
    whole, early = History("run", tmp_path), History("run", tmp_path, 4)
    assert (whole.step, early.step) == (8, 4)
    assert [float(one.y[-1]) for history in (whole, early) for one in history.accuracies()] == [0.8, 0.4]
    assert (whole.alarms, early.alarms) == ([4, 6], [4])
    assert (whole.marks.resumes, early.marks.resumes) == ([3, 4, 5], [3])
    assert (whole.marks.incidents, early.marks.incidents) == ([3, 7], [3])
    assert whole.classes()
    assert not early.classes()


def test_the_last_accuracy_is_not_called_the_best(tmp_path: Path) -> None:
    lines = [{"step": step, "knn/accuracy": value} for step, value in ((1, 0.9), (2, 0.5))]
    (tmp_path / "config.yaml").write_text("length: 2 steps\n")
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    text = "".join(summary(Told.of(tmp_path)))
    assert "Last accuracies in training: knn 50.0 %, from 90.0 % at step 1." in text
    assert "Best" not in text


def test_a_damaged_record_of_a_start_is_no_mark(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(json.dumps({"starts": [{"step": n} for n in (0, None, "x", 7)]}))
    assert History("run", tmp_path).marks.resumes == [7]


def test_a_configuration_changed_by_hand_still_says_what_ran(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: 3\nobjective: [mae]\nlength: 4 steps\n")
    start = {"step": 4, "packages": 5, "changed": [1]}
    (tmp_path / "environment.json").write_text(json.dumps({"starts": [start]}))
    history = History("run", tmp_path)
    assert "4 steps" in what_ran(history)
    assert (history.starts[0]["packages"], history.starts[0]["changed"]) == ({}, {})


def test_the_command_of_a_run_can_be_copied_into_a_shell(tmp_path: Path) -> None:
    command = ["pretrain", "demo", "length=4 steps", "evaluate={knn: {every: 1 epoch}}"]
    (tmp_path / "config.yaml").write_text("length: 4 steps\n")
    (tmp_path / "environment.json").write_text(json.dumps({"starts": [{"command": command}]}))
    (shown,) = re.findall("<code>(.*?)</code>", "".join(summary(Told.of(tmp_path))))
    assert shlex.split(html.unescape(shown)) == ["mrp", *command]


def test_names_are_escaped() -> None:
    hostile = "<script>\"&'</script>"
    for text in (
        draw(Chart(hostile, hostile, [Series.of(hostile, [0, 1], [1, 2]), Series.of("b", [0, 1], [1, 2])])),
        scatter(hostile, np.arange(3.0), np.arange(3.0), [hostile], [0, 0, 0], hostile),
    ):
        assert "<script" not in text
        ElementTree.fromstring(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.46174, "0.462"),
        (1e-7, "1e-7"),
        (17.38, "17.4"),
        (99.96, "99.96"),
        (1234.6, "1,235"),
        (289.4, "289"),
        (2e9, "2e9"),
    ],
)
def test_numbers_as_people_write_them(value: float, text: str) -> None:
    assert said(value) == text


def test_a_class_with_an_error_is_not_said_to_be_all_right() -> None:
    classes = [{"name": name} for name in "ab"]
    text = "".join(confused.section({"classes": classes, "confusion": [[299, 1], [0, 300]]}))
    assert "a is the hardest class (99.7 %), b the easiest (100.0 %)" in text
