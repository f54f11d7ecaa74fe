"""Which class of the training data each class of the test data is."""

from __future__ import annotations

from pathlib import Path

from mrp.config import ConfigError

BY_NAME, BY_INDEX = "by_name", "by_index"


def class_numbers(train: tuple[str, ...], test: tuple[str, ...], how: str = BY_NAME) -> list[int]:
    """Returns the number in training of each test class.

    `how` is by_name, by_index (the name of a test class is the number of a training class, as in ImageNet-V2), or a
    file with one line per test class: its name, a tab or space, and the name of the training class.
    """
    if how == BY_NAME:
        names = dict(zip(test, test, strict=True))
    elif how == BY_INDEX:
        names = {name: train[int(name)] for name in test if name.isdecimal() and int(name) < len(train)}
    else:
        names = _read(Path(how))
    numbers = {name: number for number, name in enumerate(train)}
    unknown = [name for name in test if names.get(name) not in numbers]
    if not unknown:
        return [numbers[names[name]] for name in test]
    which = f"'{unknown[0]}'" + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
    if how == BY_NAME:
        raise ConfigError(
            f"data.test: {len(unknown)} of its {len(test)} classes ({which}) are none of data.train's {len(train)}; "
            "take other data, or say which they are: 'mrp probe --classes by_index' if their names are numbers of "
            "training classes, or --classes FILE with a line 'TEST_CLASS TRAINING_CLASS' for each"
        )
    raise ConfigError(
        f"--classes: {how} gives no class of data.train for {which} of data.test's {len(test)} classes; "
        + ("their names have to be numbers of training classes" if how == BY_INDEX else "add a line for each")
    )


def _read(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"--classes: {path}: cannot be read: {reason}; give by_index, or a file") from None
    names = {}
    for number, line in enumerate(lines, start=1):
        pair = line.split("\t") if "\t" in line else line.split()
        if line.strip() and len(pair) != 2:
            raise ConfigError(f"--classes: {path}, line {number}: is not of the form 'TEST_CLASS TRAINING_CLASS'")
        if line.strip():
            names[pair[0].strip()] = pair[1].strip()
    return names
