"""`mrp runs`: which runs there are, what became of them, and in what they differ."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mrp import ending
from mrp.cli import main
from mrp.config import ConfigError
from mrp.evaluate import results
from mrp.evaluate.results import Record
from mrp.folder import claim
from mrp.monitor.metrics import METRICS, Metrics
from mrp.report import listing as listing_module
from mrp.report.listing import Listing, listing
from mrp.trackers.none import Config


def made(folder: Path, steps: int, accuracy: float, error: Exception | None = None, **options: Any) -> None:
    """Makes the folder of a run of ten steps that has ended after so many."""
    who = {"batch": 8, "length": "10 steps", "optim": {"lr": 0.1}, "data": {"content": "abc"}} | options
    config = {"machine": {"workers": steps}, "data": {"train": f"/data/{who['data']['content']}"}}
    with claim(folder, config, who, steps=10):
        metrics = Metrics(Config(), folder, {}, 0)
        for step in range(1, steps + 1):
            metrics.log(step, {"loss": 1 / step, "knn/accuracy": accuracy * step / steps})
        metrics.close()
        with contextlib.suppress(type(error or ValueError())), ending.noted(folder, lambda: None):
            if error is not None:
                raise error


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    made(root / "a", 10, 0.5)
    made(root / "deep" / "b", 4, 0.7, ConfigError("the disk is [full]"), optim={"lr": 0.2}, data={"content": "abd"})
    made(root / "c", 10, 0.6, average={"decay": 0.9})
    (root / "d.slurm").mkdir()
    (root / "d.slurm" / "recipe-0123456789ab.yaml").write_text("batch: 8\n")
    return root


def names(found: Listing) -> list[str]:
    return [row.name for row in found.rows]


def test_every_run_is_listed_with_its_state(tree: Path) -> None:
    found = listing(tree)
    assert names(found) == ["a", "c", "d", "deep/b"]
    assert [row.status.state for row in found.rows] == ["finished", "finished", "never started", "failed"]
    cells = dict(zip(found.columns, found.cells(found.rows[3]), strict=True))
    assert cells["state"] == "failed: the disk is [full]"
    assert (cells["step"], cells["progress"], cells["loss"]) == ("4/10", "40 %", "0.25")
    assert cells["best"] == "knn/accuracy 70.0 %"
    assert cells["optim.lr"] == "0.2"
    assert cells["data.train"] == "/data/abd"
    assert listing_module.text("init.content", "0a" * 32, found.rows[3]) == "0a0a0a0a0a0a..."


def test_only_differences_among_the_listed_runs_are_columns(tree: Path) -> None:
    assert listing(tree).options == ["optim.lr", "data.train", "average.decay"]
    assert listing(tree, ["state=finished"]).options == ["average.decay"]
    assert "average.decay" in listing(tree, ["state=finished"]).columns
    assert listing(tree, ["optim.lr=0.1"]).options == ["average.decay"]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["state=finished"], ["a", "c"]),
        (["state=f*"], ["a", "c", "deep/b"]),
        (["state!=finished"], ["d", "deep/b"]),
        (["knn/accuracy>0.55"], ["c", "deep/b"]),
        (["knn/accuracy>55 %"], ["c", "deep/b"]),  # as it is shown
        (["progress=100 %"], ["a", "c"]),
        (["knn/accuracy>0.55", "loss<0.2"], ["c"]),
        (["optim.lr=0.20"], ["deep/b"]),
        (["machine.workers=10"], ["a", "c"]),  # of config.yaml, not of the identity
        (["average.decay!=null"], ["c"]),
        (["run=none of them"], []),
    ],
)
def test_filters(tree: Path, conditions: list[str], expected: list[str]) -> None:
    assert names(listing(tree, conditions)) == expected


@pytest.mark.parametrize(
    ("sort", "reverse", "expected"),
    [
        ("knn/accuracy", False, ["a", "c", "deep/b", "d"]),
        ("knn/accuracy", True, ["deep/b", "c", "a", "d"]),  # what has no value comes last all the same
        ("optim.lr", True, ["deep/b", "c", "a", "d"]),
        ("state", False, ["deep/b", "a", "c", "d"]),
        ("", True, ["deep/b", "d", "c", "a"]),
    ],
)
def test_the_order(tree: Path, sort: str, reverse: bool, expected: list[str]) -> None:
    assert names(listing(tree, sort=sort, reverse=reverse)) == expected


def test_numbers_in_words_are_ordered_as_numbers(tmp_path: Path) -> None:
    for length in ("100 epochs", "20 epochs", "2.5 epochs", "2.25 epochs"):
        made(tmp_path / length.replace(" ", "-"), 1, 0.5, length=length)
    ordered = ["2.25-epochs", "2.5-epochs", "20-epochs", "100-epochs"]
    assert names(listing(tmp_path, sort="length")) == ordered
    for name, length in (("short", "5 %"), ("long", "60 %")):
        made(tmp_path / name, 1, 0.5, length=length)
    assert names(listing(tmp_path, conditions=["length<50%"])) == ["short"]


def test_a_run_that_has_steps_left_is_not_done_to_100_percent(tree: Path) -> None:
    (row, *_) = listing(tree).rows
    shown = {value: listing_module.text("progress", value, row) for value in (0.9996, 0.29, 1.0)}
    assert shown == {0.9996: "99 %", 0.29: "29 %", 1.0: "100 %"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sort": "losss"}, "'losss' is no column.*did you mean 'loss'"),
        ({"conditions": ["optim.rl=3"]}, "'optim.rl' is no column.*did you mean 'optim.lr'"),
        ({"conditions": ["finished"]}, "--where: 'finished' was given; allowed: KEY=VALUE"),
        ({"conditions": ["loss<much"]}, "compares with no number"),
        ({"columns": ["nothing"]}, "'nothing' is no column"),
    ],
)
def test_what_is_asked_wrongly_is_one_line(tree: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        listing(tree, **options)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        listing(tmp_path / "runs")


def test_metrics_that_cannot_be_read_hide_no_other_run(tmp_path: Path) -> None:
    made(tmp_path / "a", 2, 0.5)
    made(tmp_path / "b", 2, 0.5)
    (tmp_path / "a" / METRICS).unlink()
    (tmp_path / "a" / METRICS).mkdir()
    assert [row.status.loss for row in listing(tmp_path).rows] == [None, 0.5]


def test_what_was_probed_comes_first(tmp_path: Path) -> None:
    made(tmp_path / "a", 10, 0.5)
    result = {"accuracy": 0.81, "low": 0.8, "high": 0.82}
    for name in ("knn", "linear"):  # in the order in which probing finishes them
        results.add(tmp_path / "a", [Record(name, {}, "trained", 10, "student", {"content": "abc"}, result)])
    (row,) = listing(tmp_path).rows
    assert row.value("best") == "linear probe 81.0 %, kNN (k = 20) 81.0 %"
    assert row.value("linear probe") == 0.81
    (tmp_path / "a" / "probe.json").write_text("{")
    assert listing(tmp_path).rows[0].value("best") == "knn/accuracy 50.0 %"


def test_other_data_do_not_stand_in_the_place_of_the_runs_own(tmp_path: Path) -> None:
    """Runs would be sorted by accuracies on different test images."""
    made(tmp_path / "a", 10, 0.5)
    for content, own, accuracy in (("mine", True, 0.55), ("other", False, 0.6)):
        result = {"accuracy": accuracy, "low": 0.5, "high": 0.7}
        data = {"content": content, "own": own}
        results.add(tmp_path / "a", [Record("linear", {}, "trained", 10, "student", data, result)])
    assert listing(tmp_path).rows[0].value("linear probe") == 0.55


def test_the_verb_prints_a_table_and_json(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["runs", str(tree), "--columns", "run,knn/accuracy"])
    printed = capsys.readouterr()
    assert [line.split() for line in printed.out.splitlines() if "%" in line] == [
        ["a", "50.0", "%"], ["c", "60.0", "%"], ["deep/b", "70.0", "%"],
    ]  # fmt: skip
    assert printed.err == "they differ too in optim.lr, data.train, average.decay; --columns shows any of these\n"
    main(["runs", str(tree), "--json", "--where", "optim.lr=0.2"])
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["run"], one["state"], one["why"]) == ("deep/b", "failed", "the disk is [full]")
    assert one["best"] == {"knn/accuracy": {"value": 0.7, "step": 4}}
    assert one["size"] > 1000
    main(["runs", str(tree / "deep" / "b")])
    assert "failed: the disk is [full]" in capsys.readouterr().out
    main(["runs", str(tree), "--where", "run=nobody"])
    assert capsys.readouterr().out == f"{tree}: no run meets --where\n"


@pytest.mark.parametrize("letters", [60, 80, 120])
def test_no_value_is_cut_where_lines_are_short(
    letters: int, tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(letters))
    main(["runs", str(tree)])
    printed = capsys.readouterr()
    lines, every = re.sub(r"\x1b\[[0-9;]*m", "", printed.out).splitlines(), listing(tree).columns
    assert max(map(len, lines)) <= letters
    header = next(line.split() for line in lines if "run" in line)
    assert header == every[: len(header)]
    assert len(header) > 4
    assert f"there is no room for {', '.join(every[len(header) :])}; --columns chooses" in printed.err
    assert all(cell in "\n".join(lines) for cell in ("deep/b", "4/10", "40 %", "never started"))


@pytest.mark.parametrize("is_terminal", [False, True])
def test_watching_shows_it_until_it_is_interrupted(
    tree: Path, is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    monkeypatch.setenv("LINES", "6")
    monkeypatch.setenv("COLUMNS", "200")
    main(["runs", str(tree), "--watch", "7"])
    printed = capsys.readouterr().out
    assert slept == [7, 7]
    if not is_terminal:
        assert "\033" not in printed
        assert printed.count("deep/b") == 2
        return
    first, second = printed.split("\033[H")[1:]
    assert "every 7 s, Ctrl-C ends" in second
    assert "lines more do not fit; every 7 s, Ctrl-C ends" in first
    assert len(first.splitlines()) <= 6
