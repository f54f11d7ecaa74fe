"""Small files: whole or as before, and a fault that says where."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mrp.cli import main
from mrp.files import mapping_in, write_atomically


def test_a_full_disk_says_which_file_it_had_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.html"
    path.write_text("before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr("mrp.verbs.recipes.run", lambda options: write_atomically(path, "after"))
    with pytest.raises(SystemExit):
        main(["recipes"])
    assert capsys.readouterr().err == (
        f"mrp: error: {path}: No space left on device; mend it and run the same command again\n"
    )
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("page.html", "before")]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"3", b"\xff\xfe"])
def test_what_is_no_mapping_tells_nothing(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert mapping_in(tmp_path / "a.json") == {}
