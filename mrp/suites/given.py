"""Test sets as the command line gives them (NAME=PATH,how), as a plan for classifiers that are measured as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrp.config import ConfigError, nearest
from mrp.evaluate.classes import BY_INDEX, BY_NAME
from mrp.suites import Data, Plan, Task, Test, corruptions, tests_of

_LIMITED, _CORRUPTIONS = "limited", "corruptions"
_HOW = (BY_NAME, BY_INDEX, _LIMITED, _CORRUPTIONS)
_FORM = re.compile(r"([\w.@-]+)=(.+)")


def plan_of(words: Sequence[str], test: Any = None, real: str | None = None) -> Plan:
    """Returns a plan that measures a classifier on each test set, the first of which the ReaL labels are about.

    `test` is one more test set, as `data.test` names it, and comes first.
    """
    tests = [[Test("test", test)]] if test is not None else []
    tests += [_read(word) for word in words]
    names = [name_of(found) for found in tests]
    if len(set(names)) < len(names):
        raise ConfigError(f"--test: two test sets are called '{max(names, key=names.count)}'; give each another name")
    data = Data("", {}, tuple(one for found in tests for one in found))
    tasks = [
        Task("validation", {}, "", one.name, "", {"": "--test"}, group=name if one.name != name else "")
        for name, found in zip(names, tests, strict=True)
        for one in found
    ]
    if real is not None:
        tasks.insert(1, Task("real", {"labels": str(Path(real).absolute())}, "", _single(tests), "", {"": "--real"}))
    return Plan("evaluate", {"": data}, tuple(tasks))


def name_of(found: Sequence[Test]) -> str:
    """Returns what a test set is called, of which there may be one for each corruption and severity."""
    return found[0].name if len(found) == 1 else found[0].name.split("/")[0]


def _single(tests: Sequence[Sequence[Test]]) -> str:
    if not tests or len(tests[0]) > 1:
        raise ConfigError("--real: is about the first test set, which has to be the validation images; give them first")
    return tests[0][0].name


def _read(word: str) -> list[Test]:
    match = _FORM.fullmatch(word)
    if match is None:
        known = ", ".join((*_HOW, "a file"))
        raise ConfigError(f"--test {word}: is not of the form NAME=PATH or NAME=PATH,HOW; HOW is one of {known}")
    name, path, hows = match[1], match[2], list[str]()
    if not Path(path).expanduser().exists():
        path, *hows = path.split(",")
    maps = [how for how in hows if how not in (_LIMITED, _CORRUPTIONS)]
    for how in maps:
        if how not in _HOW and not Path(how).expanduser().is_file():
            hint = nearest(how, _HOW) or f"; allowed: {', '.join(_HOW)}, or a file"
            raise ConfigError(f"--test {word}: '{how}' is no file{hint}")
    if len(maps) > 1:
        raise ConfigError(f"--test {word}: says twice which classes its classes are; give one of {', '.join(maps)}")
    classes = str(Path(maps[0]).expanduser()) if maps and maps[0] not in _HOW else (maps or [BY_NAME])[0]
    corrupted = _CORRUPTIONS in hows or corruptions.is_corrupted(Path(path).expanduser())
    return tests_of(name, path, classes, _LIMITED in hows, corrupted)
