"""What leaves the house: the archives, the command, the pinned versions, and nothing of the machine it was built on."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import mrp

ROOT = Path(__file__).resolve().parent.parent
VERBS = ("demo", "pretrain", "probe", "report", "config", "recipes")


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def plain(requirement: str) -> str:
    """A requirement's name in the spelling that indexes use."""
    name = re.match(r"[\w.-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def test_the_archives_hold_every_module_and_recipe(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("mrp", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--no-isolation", tmp_path)  # the wheel is built from the sdist
    (wheel,) = (tmp_path / "dist").glob(f"mrp_vit-{mrp.__version__}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")

    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mrp").rglob("*.py")}
    recipes = {f"mrp/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    data = {str(path.relative_to(ROOT)) for path in (ROOT / "mrp").rglob("*.yaml")}
    held = {str(path.relative_to(tmp_path / "installed")) for path in (tmp_path / "installed").rglob("*")}
    assert recipes
    assert data
    wanted = modules | recipes | data
    assert wanted <= held, f"not in the wheel; see [tool.setuptools]: {wanted - held}"
    assert "recipes" in run(sys.executable, "-m", "mrp", "--help", cwd=tmp_path / "installed")


def test_help_names_every_verb() -> None:
    text = run(sys.executable, "-m", "mrp", "--help")
    missing = [verb for verb in VERBS if not re.search(rf"^\s+{verb}\b", text, re.MULTILINE)]
    assert not missing, text


def test_every_requirement_is_pinned_exactly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pins = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    loose = [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", pin)]
    wanted = [name for extra in project["optional-dependencies"].values() for name in extra] + project["dependencies"]
    assert not loose
    assert {plain(requirement) for requirement in wanted} <= {plain(pin) for pin in pins}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_no_tracked_file_knows_this_machine() -> None:
    for place in (ROOT, Path.home()):
        words = ["git", "grep", "-nIF", f"{place}/", "--", "."]
        found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert found.returncode == 1, found.stdout + found.stderr  # 1: nothing found


def test_the_network_is_closed() -> None:
    with pytest.raises(Exception, match="tests use nothing but this machine"):
        socket.create_connection(("example.org", 443))
