"""Suites are read and checked without torch, and each fault is one line with the file and the line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mrp import suites
from mrp.config import ConfigError

GOOD = """\
# A suite.
places:
  here: a folder
  there: another one
data:
  one: {train: "{here}/train", test: "{here}/val"}
  many:
    train: "{here}/train"
    fraction: 0.1
    score: mean_per_class
    tests:
      val: "{here}/val"
      v2: {path: "{there}", classes: by_index, limited: true}
measure:
  - {evaluator: knn, data: [one, many]}
  - {evaluator: linear, data: one, title: last layer, options: {layers: 1}}
"""


def suite(tmp_path: Path, text: str = GOOD) -> suites.Suite:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return suites.read(path)


@pytest.mark.parametrize("name", suites.names())
def test_suites_that_come_with_mrp(name: str, tmp_path: Path) -> None:
    found = suites.read(name)
    places = dict.fromkeys(found.places, str(tmp_path))
    for severity in range(1, 6):  # what stands for ImageNet-C is looked into
        (tmp_path / "fog" / str(severity)).mkdir(parents=True)
    plan = found.plan(places)
    assert plan.tasks
    assert not any(task.missing for task in plan.tasks)
    assert "{" not in repr([(one.train, one.tests) for one in plan.data.values()]).replace("{'", "").replace("{}", "")
    first = found.path.read_text().partition("\n")[0]
    assert first.startswith("# ")
    assert 30 < len(first) < 130


def test_places_are_filled_and_what_is_missing_is_left_out(tmp_path: Path) -> None:
    found = suite(tmp_path)
    plan = found.plan({"here": "/x"})
    assert [(one.evaluator, one.data, one.test, one.missing) for one in plan.tasks] == [
        ("knn", "one", "", ()),
        ("knn", "many", "val", ()),
        ("knn", "many", "v2", ("there",)),
        ("linear", "one", "", ()),
    ]
    assert plan.data["many"].train == {"train": "/x/train", "fraction": 0.1}
    assert [test.words for test in plan.data["many"].tests] == ["/x/val"]
    assert plan.data["many"].score == "mean_per_class"
    whole = found.plan({"here": "/x", "there": "/y"})
    test = whole.data["many"].tests[1]
    assert (test.name, test.words, test.classes, test.limited) == ("v2", "/y", "by_index", True)
    assert not any(task.missing for task in whole.tasks)
    assert {task.missing for task in found.plan({}).tasks} == {("here",), ("here", "there")}


def test_a_map_of_classes_lies_beside_its_suite(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("a b\n")
    found = suite(tmp_path, GOOD.replace("by_index", "map.txt"))
    assert found.plan({"here": "/x", "there": "/y"}).data["many"].tests[1].classes == str(tmp_path / "map.txt")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("knn", "kn", 15, "unknown evaluator 'kn'; did you mean 'knn'?"),
        ("[one, many]", "[one, mani]", 15, "this suite has no data set 'mani'; did you mean 'many'?"),
        ("data: one,", "data: won,", 16, "this suite has no data set 'won'; did you mean 'one'?"),
        ('test: "{here}/val"', 'test: "{her}/val"', 6, "there is no place 'her'; did you mean 'here'?"),
        ('path: "{there}"', 'path: "{elsewhere}"', 13, "there is no place 'elsewhere'"),
        ("fraction: 0.1", "fraction: 7", 9, "data.many.fraction: 7 was given; allowed: less than or equal to 1"),
        ("mean_per_class", "median", 10, "data.many.score: 'median' was given; allowed: 'accuracy' or"),
        ("limited: true", "limit: true", 13, "unknown key; did you mean 'limited'?"),
        ("title: last layer", "titel: last layer", 16, "measure.1.titel: unknown key; did you mean 'title'?"),
        (', test: "{here}/val"', "", 6, "data.one: give either test or tests"),
        ("evaluator: linear, data: one, title: last layer, options: {layers: 1}", "evaluator: knn, data: many", 16,
         "knn on many stands twice; remove one"),
        ("places:", "places", 3, "not valid YAML"),
        ("  there: another one", "  there: another one\n  here: again", 5, "the key 'here' stands twice"),
    ],
)  # fmt: skip
def test_each_fault_is_a_line(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    assert GOOD.count(old) >= 1
    with pytest.raises(ConfigError) as caught:
        suite(tmp_path, GOOD.replace(old, new))
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'mine.yaml'}, line {line}: "), text
    assert message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "a mapping (key: value) is expected, not a list"),
        ("", "a mapping (key: value) is expected"),
        ("data: {}\nmeasure: []", "measure: [] was given; allowed:"),
        ("data: {}", "measure: this key is required and missing; add it"),
    ],
)
def test_files_that_are_no_suites(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        suite(tmp_path, text)
    assert message in str(caught.value)


def test_names_and_places_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"imagnet is neither a file nor a suite.*did you mean 'imagenet'"):
        suites.read("imagnet")
    with pytest.raises(ConfigError, match="neither a file nor a suite"):
        suites.read(tmp_path / "small.yaml")
    with pytest.raises(ConfigError, match="hier=: suite 'mine' has no place of this name; did you mean 'here'"):
        suite(tmp_path).plan({"hier": "/x"})
    with pytest.raises(ConfigError, match="suite 'small' has no place of this name; it has none"):
        suites.read("small").plan({"digits": "/x"})


def test_reading_loads_no_torch() -> None:
    code = "import sys; from mrp import suites; [suites.read(n).plan({}) for n in suites.names()]; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
