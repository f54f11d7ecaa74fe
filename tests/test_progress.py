"""What is said beside results: remarks, how far long work is on a terminal, and what --quiet leaves of it."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from pathlib import Path

import pytest

from mrp import progress, verbs
from mrp.cli import main
from tests import forked

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == 2)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("RANK", raising=False)


def test_a_name_that_a_terminal_cannot_show_is_spelt_out() -> None:
    for encoding, shown in (("utf-8", b"class caf\\udce9"), ("ascii", b"class caf\\udce9")):
        written = io.BytesIO()
        terminal = io.TextIOWrapper(written, encoding)
        progress.put("class caf\udce9", terminal)
        assert written.getvalue().strip() == shown


def test_a_connection_that_has_the_number_of_a_missing_output_is_let_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        monkeypatch.setattr(sys, "__stdout__", None)  # as Python has it where an output was closed before it began
        monkeypatch.setattr(sys, "__stderr__", closed)
        assert progress.drop_closed_outputs()  # this one is an output, and nobody reads it
        assert not progress.drop_closed_outputs()
        monkeypatch.setattr(sys, "__stderr__", None)
        assert not progress.drop_closed_outputs()


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


def test_remarks_go_to_standard_error_and_quiet_leaves_warnings(capsys: Captured) -> None:
    progress.say("3 images are left out")
    assert capsys.readouterr() == ("", "3 images are left out\n")
    progress.silence(True)
    try:
        progress.say("3 images are left out")
        progress.tell("step 3 of 10")
        progress.tell("warning: the loss is a spike")
        progress.say("warning: 3 images are copies")
        assert capsys.readouterr() == ("", "warning: the loss is a spike\nwarning: 3 images are copies\n")
    finally:
        progress.silence(False)


@pytest.mark.usefixtures("terminal")
def test_quiet_draws_no_bar(capsys: Captured) -> None:
    progress.silence(True)
    try:
        assert list(progress.over([1], "one")) == [1]
        assert capsys.readouterr().err == ""
    finally:
        progress.silence(False)


def test_every_verb_and_action_that_says_anything_can_be_quiet() -> None:
    nested = {"shards": ["verify", "folder"], "lab": ["claims"]}
    for name in verbs.names():
        top = argparse.ArgumentParser()
        verbs.describe(name, top)
        words = [word for action in top._actions if action.required and not action.option_strings for word in ["7"]]
        words += [word for action in top._actions if action.required and action.option_strings
                  for word in (action.option_strings[0], str(next(iter(action.choices or ["7"]))))]  # fmt: skip
        if name in ("completion", "recipes"):
            assert "--quiet" not in top.format_help()
        else:
            assert top.parse_args([*nested.get(name, words), "--quiet"]).quiet is True, name


def test_a_quiet_run_prints_its_result_alone(tmp_path: Path, capsys: Captured) -> None:
    small = ["backbone.depth=1", "backbone.width=24", "backbone.heads=2", "objective.decoder.depth=1", "track.every=1"]
    words = ["pretrain", "demo", "length=2 steps", "optim.warmup=1 steps", "diagnose.every=null", *small]
    main([*words, "--folder", str(tmp_path / "loud")])
    loud = capsys.readouterr()
    assert "step 2/2" in loud.out
    assert "2 steps of" in loud.out
    main([*words, "--folder", str(tmp_path / "run"), "--quiet"])
    quiet = capsys.readouterr()
    assert quiet.err == ""
    assert quiet.out.startswith(f"{tmp_path / 'run'}: complete at step 2, loss ")
    assert "steps of" not in quiet.out
    main(["probe", str(tmp_path / "run"), "--evaluator", "knn", "--json", "--quiet"])
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["trained"]["knn"]["accuracy"] <= 1
    main(["compare", str(tmp_path / "run"), "--json", "--out", str(tmp_path / "table.md")])
    assert json.loads(capsys.readouterr().out).keys() >= {"title"}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min"), (3600, "1 h"), (5000, "1 h 23 min"), (90_000, "1 d 1 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text


def test_what_cannot_be_printed_ends_nothing(tmp_path: Path) -> None:
    done = forked.Started(_to_a_reader_that_ends, tmp_path / "done").end()
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "done").exists()


def _to_a_reader_that_ends(done: Path) -> None:
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.close(writer)
    assert not progress.drop_closed_outputs()
    progress.tell("read")
    os.close(reader)
    progress.tell("not read")
    print("nor this, which is not ours", flush=True)
    with open("/dev/full", "w") as full:
        progress.put("no room for it", full)
        os.dup2(1, full.fileno())
    done.touch()
