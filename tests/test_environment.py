"""What a process runs on is told as it is."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import mrp
from mrp import environment as environments
from mrp.environment import code_version, environment


def test_a_package_that_is_missing_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "_PACKAGES", ("no-such-package-anywhere",))
    assert environment()["packages"] == {"no-such-package-anywhere": "not installed"}


def git(*words: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], check=True, capture_output=True)


def test_the_code_version_is_the_commit_and_whether_it_was_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "mrp" / "__init__.py"
    source.parent.mkdir()
    source.write_text("")
    monkeypatch.setattr(mrp, "__file__", str(source))
    assert code_version() == mrp.__version__  # installed: not a checkout
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    assert code_version() == mrp.__version__  # no commit yet
    git("add", ".")
    git("commit", "-q", "-m", "x")
    commit = code_version()
    assert len(commit) == 40
    (tmp_path / "notes.txt").write_text("untracked files change no code")
    assert code_version() == commit
    source.write_text("x = 1\n")
    assert code_version() == f"{commit}+changes"
    monkeypatch.setenv("PATH", "")
    assert code_version() == mrp.__version__  # no git
