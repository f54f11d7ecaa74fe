"""Parts in files outside mrp: their neighbours, their faults, what recognises them, and the copies that a run keeps."""

from __future__ import annotations

import os
import py_compile
import shutil
import sys
from pathlib import Path

import pytest

from mrp import outside
from mrp.config import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that imports a neighbour, which imports a package beside it."""
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/__init__.py").write_text("from . import deep\n")
    (tmp_path / "pack/deep.py").write_text("DEPTH = 3\n")
    (tmp_path / "beside.py").write_text("import pack.deep\nVALUE = pack.deep.DEPTH + 1\n")
    (tmp_path / "unused.py").write_text("this is no Python")
    path = tmp_path / "mine.py"
    path.write_text("import math\nfrom beside import VALUE\n\ndef double():\n    return 2 * VALUE  # twice\n")
    return path


def fault(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        outside.load(path, "thing")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_change_within_a_second_is_executed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python may write what it compiles, and would find it again by the second and the size of a file."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    py_compile.compile(str(file.with_name("beside.py")))  # as a script of the user's own leaves it
    assert outside.load(file, "thing").double() == 8
    for name, old, new, double in (("mine.py", "2 *", "3 *", 12), ("beside.py", "+ 1", "+ 2", 15)):
        changed, times = file.with_name(name), file.with_name(name).stat()
        changed.write_text(changed.read_text().replace(old, new))
        os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert outside.load(file, "thing").double() == double
    assert not list(file.parent.rglob("*.pyc"))
    assert not sys.dont_write_bytecode


def test_a_file_imports_its_neighbours(file: Path) -> None:
    before = list(sys.path)
    assert outside.load(file, "thing").double() == 8
    assert sys.path == before
    assert outside.load(file, "thing") is outside.load(file, "thing")


@pytest.mark.parametrize(("name", "old", "new"), [("mine.py", "2 *", "5 *"), ("pack/deep.py", "3", "9")])
def test_changed_code_is_loaded_afresh_and_has_another_digest(file: Path, name: str, old: str, new: str) -> None:
    digest, value = outside.digest(file), outside.load(file, "thing").double()
    changed = file.parent / name
    changed.write_text(changed.read_text().replace(old, new))
    assert outside.digest(file) != digest
    assert outside.load(file, "thing").double() != value


def test_neighbours_belong_to_one_file(file: Path, tmp_path: Path) -> None:
    shutil.copytree(tmp_path, tmp_path / "copy")
    (tmp_path / "copy/pack/deep.py").write_text("DEPTH = 5\n")
    assert [outside.load(path, "thing").double() for path in (file, tmp_path / "copy/mine.py")] == [8, 12]


def test_comments_line_breaks_and_the_folder_do_not_change_the_digest(file: Path, tmp_path: Path) -> None:
    digest = outside.digest(file)
    file.write_text(file.read_text().replace("# twice", "# two times\n\n\n"))
    (file.parent / "beside.py").write_text("# new\nimport pack.deep\n\nVALUE = (pack.deep.DEPTH +\n  1)\n")
    assert outside.digest(file) == digest
    shutil.copytree(tmp_path, tmp_path / "elsewhere")
    assert outside.digest(tmp_path / "elsewhere/mine.py") == digest


def test_the_digest_is_that_of_every_python(file: Path) -> None:
    """The parsed trees of Python 3.11, 3.12 and 3.13 differ in fields that are empty."""
    file.write_text("def f(a, /, *, b=None) -> None:\n    x = f'{a!r:>{b}}'\n    return [b'', ..., None, 2j]\n")
    assert outside.digest(file).startswith("bd323b62636983c2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = (\n", "mine.py, line 2: is not valid Python: '(' was never closed; mend the file"),
        ("\nimport nowhere_to_be_found\n", "mine.py, line 2: ModuleNotFoundError: No module named 'nowhere_to_be"),
        ("import math\nx = 1 / 0\n", "mine.py, line 2: ZeroDivisionError: division by zero; mend the file"),
        ("import broken\n", "broken.py, line 1: NameError: name 'undefined' is not defined; mend the file"),
        ("from unused import x\n", "unused.py, line 1: is not valid Python: "),
        ("import statistics\n", "mine.py: imports 'statistics' from its folder, but "),
    ],
)
def test_a_fault_is_one_line_with_file_and_line(file: Path, text: str, message: str) -> None:
    import statistics  # noqa: F401 -- so that its name is taken

    (file.parent / "broken.py").write_text("print(undefined)\n")
    (file.parent / "statistics.py").write_text("")
    file.write_text(text)
    assert fault(file).startswith(str(file.parent / message))


def test_copies_are_kept_with_their_neighbours_and_found(file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    values = {"objective": {"name": str(file)}, "data": [{"source": {"name": "folder"}}], "evaluate": {str(file): {}}}
    outside.keep(values, run)
    outside.keep(values, run)  # a second start
    kept = {str(path.relative_to(run / "code")) for path in (run / "code").rglob("*.py")}
    assert kept == {"mine.py", "beside.py", "pack/__init__.py", "pack/deep.py"}
    copy = str(run / "code/mine.py")
    assert outside.located(values, None, run) == values
    assert outside.located(values, run, None) == values | {"objective": {"name": copy}, "evaluate": {copy: {}}}
    file.unlink()
    assert outside.located(values, None, run)["objective"]["name"] == copy
    assert outside.located(values, None, None) == values


def test_two_files_of_one_name_are_refused(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other/mine.py"
    other.parent.mkdir()
    other.write_text("")
    with pytest.raises(ConfigError, match=r"mine.py: has the same name as .*mine.py, which the run uses too; rename"):
        outside.keep({"objective": str(file), "optim": str(other)}, tmp_path / "run")
