"""Which class of the training data each class of the test data is."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mrp.config import ConfigError, reading
from mrp.data.source import listed

BY_NAME, BY_INDEX = "by_name", "by_index"


def class_numbers(
    train: tuple[str, ...], test: tuple[str, ...], how: str = BY_NAME, of_classifier: bool = False
) -> list[int]:
    """Returns the number in training of each test class.

    `how` is by_name, by_index (the name of a test class is the number of a training class, as in ImageNet-V2), or a
    file with one line per test class: its name, a tab or space, and the name of the training class. `of_classifier`
    says that the training classes are those of a classifier whose training data are not at hand.
    """
    if how == BY_NAME and test == train:
        return list(range(len(test)))
    if how == BY_INDEX:
        found = {name: int(name) for name in test if name.isdecimal() and int(name) < len(train)}
    else:
        numbers = {name: number for number, name in enumerate(train)}
        names = dict(zip(test, test, strict=True)) if how == BY_NAME else _read(Path(how))
        asked = {names.get(name) for name in test}
        if twice := [name for name, count in Counter(train).items() if count > 1 and name in asked]:
            where = "the classifier" if of_classifier else "data.train"
            raise ConfigError(
                f"{where}: has two classes called '{twice[0]}', and those of the test data, which are others, are "
                "found by their names; give each a name of its own, or call test classes by numbers, with by_index"
            )
        found = {name: numbers[names[name]] for name in test if names.get(name) in numbers}
    unknown = [name for name in test if name not in found]
    if not unknown:
        return [found[name] for name in test]
    which = f"'{unknown[0]}'" + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
    if how == BY_NAME and of_classifier:
        raise ConfigError(
            f"{len(unknown)} of its {len(test)} classes ({which}) are none of the classifier's {len(train)}; take "
            "other data, or say which they are: NAME=PATH,by_index if their names are numbers of the classifier's "
            "classes, or NAME=PATH,FILE with a line 'TEST_CLASS CLASS' for each"
        )
    if how == BY_NAME:
        raise ConfigError(
            f"data.test: {len(unknown)} of its {len(test)} classes ({which}) are none of data.train's {len(train)}; "
            "take other data, or say which they are: 'mrp probe --classes by_index' if their names are numbers of "
            "training classes, or --classes FILE with a line 'TEST_CLASS TRAINING_CLASS' for each"
        )
    raise ConfigError(
        f"--classes: {how} gives no class of {'the classifier' if of_classifier else 'data.train'} for {which} of "
        f"data.test's {len(test)} classes; "
        + ("their names have to be numbers of training classes" if how == BY_INDEX else "add a line for each")
    )


def tag_numbers(
    train: tuple[str, ...], test: tuple[str, ...], how: str = BY_NAME, whose: str = "data.train"
) -> list[int]:
    """Returns the number in training of each test tag, which are called alike unless `how` says otherwise."""
    if not test:
        raise ConfigError("data.test: has no tags, which a classifier of tags is measured by; add data.labels=TABLE")
    if how == BY_NAME and (odd := next((name for name in test if name not in train), None)):
        raise ConfigError(
            f"data.test: has a tag '{odd}' that {whose} has not, which has the tags {listed(train)}; take data with "
            "the same tags, or some of them"
        )
    return class_numbers(train, test, how)


def content(how: str) -> str:
    """Returns what results are kept under: `how` itself, or a hash of its file, which may be changed in its place."""
    if how in (BY_NAME, BY_INDEX) or not Path(how).is_file():
        return how
    return hashlib.sha256(Path(how).read_bytes()).hexdigest()


def _read(path: Path) -> dict[str, str]:
    with reading(f"--classes: {path}", "give by_index, or a file"):
        lines = path.read_text(encoding="utf-8").splitlines()
    names = {}
    for number, line in enumerate(lines, start=1):
        pair = line.split("\t") if "\t" in line else line.split()
        if line.strip() and len(pair) != 2:
            raise ConfigError(f"--classes: {path}, line {number}: is not of the form 'TEST_CLASS TRAINING_CLASS'")
        if line.strip():
            names[pair[0].strip()] = pair[1].strip()
    return names


TestSets = Mapping[str, tuple[tuple[str, ...], str]]  # the classes of each, and `how` (see class_numbers)


def called_otherwise(names: tuple[str, ...], tests: TestSets) -> bool:
    """Returns whether no test set knows a class by its name, as where a folder is called n01440764 and not tench."""
    named = [(classes, how) for classes, how in tests.values() if how != BY_INDEX]
    known = (classes if how == BY_NAME else _read(Path(how)).values() for classes, how in named)
    return not any(set(names).intersection(classes) for classes in known)


def of_test_sets(count: int, tests: TestSets, of_tags: bool = False) -> tuple[tuple[str, ...], str]:
    """Returns what a classifier's classes are called, as far as test sets tell, and which one did.

    Folders of which there are as many as classes stand in the order of training, which is that of their names, as for
    ImageNet's WordNet ids. Tags stand in any order.
    """
    by_name = {name: classes for name, (classes, how) in tests.items() if how == BY_NAME and len(classes) == count}
    by_name = {} if of_tags else by_name
    for name, classes in by_name.items():
        numbers = [int(one) for one in classes if one.isdecimal()]
        if len(numbers) == count and numbers != sorted(numbers):
            raise ConfigError(
                f"{name}: its {count} folders are called by numbers, which stand in the order of letters ('10' before "
                f"'2'); if they are numbers of the classifier's classes, say so: {name}=PATH,by_index"
            )
        return classes, f"the class folders of {name}"
    if all(how == BY_INDEX for _, how in tests.values()):
        return tuple(map(str, range(count))), "numbers"
    if of_tags:
        raise ConfigError(
            f"the model has scores for {count} tags, and does not say what they are called; give --head FILE with "
            "their names, one per line, in the order of its scores"
        )
    raise ConfigError(
        f"the model tells {count} classes apart, and no test set has as many to say what they are called; give one "
        "that has, or --head FILE with their names, one per line, in its order (of ImageNet: sorted WordNet ids)"
    )
