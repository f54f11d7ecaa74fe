"""Long work on a terminal: how far it is; elsewhere silence."""

from __future__ import annotations

import os

import pytest

from mrp import progress

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == 2)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("RANK", raising=False)


def test_without_a_terminal_nothing_is_shown(capsys: Captured) -> None:
    assert list(progress.over("abc", "letters")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("terminal")
def test_a_terminal_shows_what_is_done(capsys: Captured) -> None:
    assert list(progress.over(iter("abc"), "letters", 4)) == ["a", "b", "c"]
    shown = capsys.readouterr().err
    assert "letters" in shown
    assert "3/4" in shown


@pytest.mark.usefixtures("terminal")
def test_a_bar_inside_another_stands_below_it_and_goes_away(capsys: Captured) -> None:
    for _ in progress.over(range(2), "outer"):
        assert sum(progress.over([1, 2, 3], "inner")) == 6
    assert "2/2" in capsys.readouterr().err
    assert progress._shown is None


@pytest.mark.usefixtures("terminal")
def test_other_processes_and_hidden_blocks_show_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    with progress.hidden():
        assert list(progress.over([1], "one")) == [1]
    monkeypatch.setenv("RANK", "1")
    assert list(progress.over([1], "one")) == [1]
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("terminal")
def test_an_error_leaves_the_terminal_as_it_was(capsys: Captured) -> None:
    with pytest.raises(ZeroDivisionError):
        sum(1 / number for number in progress.over([1, 0], "numbers"))
    shown = capsys.readouterr().err
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor is hidden, and shown again"
