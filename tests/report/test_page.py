"""The table of results: what is best, what differs, and how it looks in every form."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from mrp.config import ConfigError, check_out
from mrp.evaluate.measures import Measure
from mrp.evaluate.results import Outcomes
from mrp.report import render
from mrp.report.page import Cell, Column, Page, Row, cell_of
from mrp.verbs import _words


def counted(right: list[int], classes: list[int] | None = None) -> Cell:
    """A cell whose accuracy was counted on images."""
    outcomes = Outcomes(np.array(right, bool), np.array(classes or [0] * len(right), np.int32))
    share = float(outcomes.right.mean())
    measure = Measure("knn", "kNN (k = 20)", share, max(0, share - 0.1), min(1, share + 0.1), counted=True)
    return cell_of(measure, outcomes, per_class=False)


def known(value: float, low: float, high: float, better: str = "higher") -> Cell:
    return Cell("", Measure("linear", "linear probe", value, low, high, better=better))


def page(*cells: Cell, better: str = "higher", data: str = "digits") -> Page:
    """A page with one column."""
    rows = tuple(Row(f"row{number}", f"row{number}", 10) for number in range(len(cells)))
    return Page("accuracy", rows, (Column(data, "kNN (k = 20)", better),), {(n, 0): c for n, c in enumerate(cells)})


def test_the_best_is_better_than_each_other_on_the_same_images() -> None:
    first, second = [1] * 80 + [1] * 8 + [0] * 12, [1] * 80 + [0] * 8 + [0] * 12
    assert page(counted(first), counted(second)).is_best(0, 0)  # although the two intervals overlap
    assert not page(counted(first), counted(second)).is_best(1, 0)
    third = [1] * 80 + [1] * 7 + [0] * 13
    several = page(counted(first), counted(second), counted(third))
    assert not any(several.is_best(row, 0) for row in range(3))  # not surely better than the third
    other_images = counted(second, [1] * 100)
    assert not page(counted(first), other_images).is_best(0, 0)  # only the intervals are left


def test_intervals_alone_tell_where_they_are_far_apart() -> None:
    assert page(known(0.9, 0.88, 0.92), known(0.8, 0.78, 0.82)).is_best(0, 0)
    assert not page(known(0.9, 0.8, 0.95), known(0.85, 0.78, 0.9)).is_best(0, 0)
    assert page(known(0.9, 0.88, 0.92), known(0.8, 0.78, 0.82), better="lower").is_best(1, 0)
    assert not page(known(0.9, 0.88, 0.92), known(0.8, 0.78, 0.82), better="").is_best(0, 0)
    alone = page(known(0.9, 0.88, 0.92))
    assert not alone.is_best(0, 0)
    unknown = Cell("", Measure("own", "own", 0.9))
    assert not page(unknown, known(0.1, 0.1, 0.1)).is_best(0, 0)


def test_equal_draws_mark_a_value_only_where_images_tell() -> None:
    """Where a class has no more images than are drawn of it, all draws are the same and have no spread."""

    def few(value: float, *groups: float) -> Cell:
        return Cell("", Measure("few_shot/10", "10", value, value, value, draws=(value,) * 10, groups=groups))

    assert not page(few(0.9), few(0.8)).is_best(0, 0), "as earlier versions kept it"
    assert not page(few(0.9, 0.7, 1.1), few(0.8, 0.9, 0.7)).is_best(0, 0)
    assert page(few(0.9, 0.891, 0.909), few(0.8, 0.79, 0.81)).is_best(0, 0)
    earlier = Cell("", Measure("few_shot/10", "10", 0.8, 0.7, 0.9, draws=(0.79, 0.81) * 5))
    assert not page(few(0.9, 0.891, 0.909), earlier).is_best(0, 0), "one of both says nothing of other images"


def test_differences_are_worked_out_by_hand() -> None:
    """Eight and one images that one alone gets right, of 100: McNemar's p is 20/512."""
    first, second = [1] * 80 + [1] * 8 + [0] + [0] * 11, [1] * 80 + [0] * 8 + [1] + [0] * 11
    (found,) = page(counted(first), counted(second)).differences()
    assert (found["first"], found["second"], found["data"]) == ("row0", "row1", "digits")
    assert found["value"] == pytest.approx(0.07)
    assert found["p"] == pytest.approx(20 / 512)
    assert 0 < found["low"] < 0.07 < found["high"]


def test_seeds_become_their_mean() -> None:
    cells = [known(value, value - 0.01, value + 0.01) for value in (0.8, 0.82, 0.84, 0.5, 0.52)]
    seeds = page(*cells).with_seeds({"row0": [0, 1, 2], "row3": [3, 4]})
    assert [row.name for row in seeds.rows[5:]] == ["row0, mean of 3 seeds", "row3, mean of 2 seeds"]
    mean = seeds.cells[5, 0].measure
    assert mean is not None
    assert mean.value == pytest.approx(0.82)
    assert mean.low == pytest.approx(0.82 - 4.302653 * 0.02 / 3**0.5)
    assert seeds.is_best(5, 0)
    assert not seeds.is_best(2, 0)  # a single run does not compete with the mean that it is part of
    near_one = page(known(0.9, 0.8, 1.0), known(0.99, 0.9, 1.0)).with_seeds({"row0": [0, 1]}).cells[2, 0].measure
    assert near_one is not None
    assert near_one.high == 1  # a share is at most 1, whatever two seeds say
    same = page(*(known(value, 0, 1) for value in (0.9, 0.9, 0.8, 0.8))).with_seeds({"row0": [0, 1], "row2": [2, 3]})
    alike = same.cells[4, 0].measure
    assert alike is not None
    assert (alike.value, alike.low, alike.high) == (0.9, None, None)  # two equal seeds tell nothing of a third
    assert not same.is_best(4, 0)
    missing = replace(page(*cells[:2]), cells={(0, 0): cells[0]}).with_seeds({"row0": [0, 1]})
    assert (2, 0) not in missing.cells


def wide() -> Page:
    first, second = [1] * 80 + [1] * 20, [1] * 80 + [0] * 20
    one = page(counted(first), counted(second))
    columns = (Column("", "hours", ""), *one.columns, Column("50%_set", "a & b"))
    cells = {(0, 0): Cell("1.5"), (0, 1): one.cells[0, 0], (1, 1): one.cells[1, 0], (1, 2): known(0.5, 0.4, 0.6)}
    return replace(one, columns=columns, cells=cells, notes=("Not given: x.",))


def test_forms(tmp_path: Path) -> None:
    for ending in render.ENDINGS:
        render.write(wide(), tmp_path / f"page{ending}")
    assert (tmp_path / "page.md").read_text().splitlines() == [
        "accuracy",
        "",
        "| weights | hours | digits: kNN (k = 20) | 50%_set: a & b |",
        "| --- | --- | --- | --- |",
        "| row0 | 1.5 | **100.0 % (90.0 to 100.0)** |  |",
        "| row1 |  | 80.0 % (70.0 to 90.0) | 50.0 % (40.0 to 60.0) |",
        "",
        f"Bold: {render.BEST}.",
        "",
        "Not given: x.",
        "",
        "row0 minus row1, with 95 % intervals:",
        "",
        "| data | measure | difference | McNemar's p |",
        "| --- | --- | --- | --- |",
        "| digits | kNN (k = 20) | 20.0 points (11.4 to 27.8) | 1.9e-06 |",
    ]
    latex = (tmp_path / "page.tex").read_text()
    assert r"weights & hours & digits: kNN (k = 20) & 50\%\_set: a \& b \\" in latex
    assert r"row0 & 1.5 & \textbf{100.0} {\scriptsize (90.0--100.0)} &  \\" in latex
    assert latex.count("{") == latex.count("}")
    found = json.loads((tmp_path / "page.json").read_text())
    assert found["cells"][1] | {"high": 1.0} == {
        "row": "row0", "data": "digits", "measure": "kNN (k = 20)", "value": 1.0, "low": 0.9, "high": 1.0, "best": True,
    }  # fmt: skip
    assert found["differences"][0]["p"] < 0.001
    assert imread(tmp_path / "page.png").std() > 0.01


def test_a_name_is_text_whatever_it_looks_like(capsys: pytest.CaptureFixture[str]) -> None:
    """Rich would leave out [seed], and end with an error at [/x]; LaTeX has a meaning of its own for ~ and ^."""
    one = page(known(0.9, 0.88, 0.92), known(0.1, 0.08, 0.12))
    one = replace(one, rows=(Row("mae[seed]", "a"), Row("mae[/x]:fire:", "b")), notes=("~a^b\\c",))
    _words.print_page(one, as_json=False)
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("mae[seed]", "mae[/x]:fire:", "90.0 % (88.0 to 92.0) *"))
    assert r"\textasciitilde{}a\textasciicircum{}b\textbackslash{}c" in render.latex(one)


@pytest.mark.parametrize("letters", [60, 80])
def test_a_table_that_is_too_wide_is_shown_in_parts_that_cut_no_value(
    letters: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_words, "width", lambda: letters)
    columns = tuple(Column("digits", f"measure {number}") for number in range(5))
    cells = {(row, number): known(0.5 + number / 100, 0.4, 0.6) for row in range(4) for number in range(5)}
    rows = tuple(Row(f"a_run_with_a_long_name_{number}", "a", number) for number in range(4))
    _words.print_page(Page("accuracy", rows, columns, cells, ("said below",)), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= letters
    assert (lines[0], lines[-1]) == ("accuracy on digits", "said below")
    assert "…" not in "".join(lines)
    assert [sum(f"{50 + number}.0 % (40.0 to 60.0)" in line for line in lines) for number in range(5)] == [4] * 5


def test_a_caption_calls_only_shares_percent() -> None:
    rank = Cell("", Measure("own/rank", "own: rank", 12.3, 12.0, 13.0, share=False))
    assert r"accuracy on digits, shares in \% with 95 \% intervals." in render.latex(page(rank, rank))


def test_up_to_56_runs_look_different_in_a_picture() -> None:
    looks = zip(range(56), cycle(render._COLOURS), cycle(render._MARKERS), cycle(render._LINES))
    assert len({look[1:] for look in looks}) == 56


def test_many_measures_are_rows() -> None:
    columns = tuple(Column("digits", f"measure {number}") for number in range(10))
    one = known(0.5, 0.4, 0.6)
    turned = Page("accuracy", (Row("a", "a"),), columns, {(0, number): one for number in range(10)})
    lines = render.markdown(turned).splitlines()
    assert lines[0] == "accuracy on digits"
    assert lines[2] == "| measure | a |"
    assert lines[4] == "| measure 0 | 50.0 % (40.0 to 60.0) |"


def test_a_picture_over_steps_and_other_units(tmp_path: Path) -> None:
    one = page(known(0.5, 0.4, 0.6), known(0.6, 0.5, 0.7))
    over = replace(one, rows=(Row("a, step 1", "a", 1), Row("a, step 2", "a", 2)))
    render.write(over, tmp_path / "steps.png")
    rank = Cell("", Measure("own/rank", "own: rank", 12.345, share=False, better=""))
    render.write(page(rank, better=""), tmp_path / "own.png")
    assert render.text_of(rank) == "12.35"
    assert (tmp_path / "steps.png").stat().st_size > 5000


def test_a_picture_over_many_steps_is_no_higher_than_one_over_few(tmp_path: Path) -> None:
    """A row of its own for each of 600 validations of 12 runs came to 288 million pixels."""
    each, height = known(0.5, 0.4, 0.6), dict[int, int]()
    for count in (2, 100):
        rows = tuple(Row(f"a, step {step}", "a", step) for step in range(1, count + 1))
        over = replace(page(*[each] * count), rows=(*rows, Row("b", "b", 1)))
        two = Column("digits", "linear probe")  # of which one row has a value
        over = replace(over, columns=(*over.columns, two), cells={**over.cells, (count, 1): each})
        render.write(over, tmp_path / "steps.png")
        height[count] = len(imread(tmp_path / "steps.png"))
    assert height[2] == height[100]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"'table.pdf' was given; allowed: a name that ends in .png, .md, .tex, .json"
    ):
        check_out(Path("table.pdf"), *render.ENDINGS)
    with pytest.raises(ConfigError, match="does not exist; make it, or give another"):
        check_out(tmp_path / "none" / "table.md")
