"""Test sets of the command line, and folders of corruptions: what they become, and what each fault says."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrp import suites
from mrp.config import ConfigError
from mrp.suites import Test as One
from mrp.suites import corruptions
from mrp.suites.given import plan_of


@pytest.fixture
def corrupted(tmp_path: Path) -> Path:
    """Two official corruptions, one of them in a folder of its archive, and a further one."""
    for corruption in ("fog", "blur/defocus_blur", "spatter"):
        for severity in range(1, 6):
            (tmp_path / "c" / corruption / str(severity) / "a").mkdir(parents=True)
    return tmp_path / "c"


def test_how_test_sets_are_read(tmp_path: Path, corrupted: Path) -> None:
    (tmp_path / "map.txt").write_text("")
    (tmp_path / "a,b").mkdir()
    words = ["v2=/x,by_index", "r=/x,limited", f"m=/x,{tmp_path / 'map.txt'},limited", f"odd={tmp_path / 'a,b'}"]
    plan = plan_of(words, test="/own", real="real.json")
    (data,) = plan.data.values()
    assert data.of_classifiers
    assert data.tests == (
        One("test", "/own"),
        One("v2", "/x", "by_index"),
        One("r", "/x", limited=True),
        One("m", "/x", str(tmp_path / "map.txt"), True),
        One("odd", str(tmp_path / "a,b")),
    )
    names = ["validation", "real", "validation", "validation", "validation", "validation"]
    assert [task.evaluator for task in plan.tasks] == names
    assert plan.tasks[1].options == {"labels": str(Path("real.json").absolute())}
    for words in ([f"c={corrupted}"], [f"c={corrupted},corruptions"]):
        plan = plan_of(words)
        assert [task.test for task in plan.tasks[:2]] == ["c/defocus_blur/1", "c/defocus_blur/2"]
        assert len(plan.tasks) == 15
        assert {task.group for task in plan.tasks} == {"c"}


@pytest.mark.parametrize(
    ("words", "real", "message"),
    [
        (["/data"], None, "--test /data: is not of the form NAME=PATH"),
        (["v2=/x,by_indx"], None, "'by_indx' is no file; did you mean 'by_index'?"),
        (
            ["v2=/x,none.txt"],
            None,
            "'none.txt' is no file; allowed: by_name, by_index, limited, corruptions, or",
        ),
        (["v2=/x,by_index,by_name"], None, "says twice which classes its classes are"),
        (["v=/x", "v=/y"], None, "two test sets are called 'v'"),
        ([], "real.json", "--real: is about the first test set"),
        (["c=/none,corruptions"], None, "/none: there is no such folder"),
    ],
)
def test_each_fault_is_one_line(words: list[str], real: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(words, real=real)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_corruptions_are_found(corrupted: Path) -> None:
    found = corruptions.find(corrupted)
    assert list(found)[::5] == ["defocus_blur/1", "fog/1", "spatter/1"]  # the official ones in their order
    assert found["defocus_blur/3"] == corrupted / "blur" / "defocus_blur" / "3"
    assert corruptions.is_corrupted(corrupted)
    assert not corruptions.is_corrupted(corrupted / "fog")


def test_damaged_folders_of_corruptions(corrupted: Path) -> None:
    with pytest.raises(ConfigError, match=r"fog: is the folder of a single corruption; give the folder above it"):
        corruptions.find(corrupted / "fog")
    with pytest.raises(ConfigError, match=r"fog/1: holds no folders corruption/severity/class"):
        corruptions.find(corrupted / "fog" / "1")
    for severity in range(1, 6):
        (corrupted / "weather" / "fog" / str(severity)).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"weather/fog: is here twice, also as .*c/fog"):
        corruptions.find(corrupted)
    (corrupted / "fog" / "3" / "a").rmdir()
    (corrupted / "fog" / "3").rmdir()
    with pytest.raises(ConfigError, match=r"c/fog: lacks the folder of severity 3; unpack the archive again"):
        corruptions.find(corrupted)


def test_robustness_has_every_corruption_and_needs_no_training_data(corrupted: Path) -> None:
    plan = suites.read("robustness").plan({"imagenet_c": str(corrupted), "imagenet_a": "/a"})
    given = [task for task in plan.tasks if not task.missing]
    assert [task.label for task in given][:2] == ["classifier/a", "classifier/c/defocus_blur/1"]
    assert len(given) == 16
    assert {task.evaluator for task in given} == {"validation"}
    limited = {test.name: test.limited for test in plan.data["classifier"].tests}
    assert limited["a"]
    assert not limited["c/fog/1"]
