"""The command line: help that answers at once, examples that parse, and one line for whatever goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import mrp
from mrp import cli, outside, verbs
from mrp.config import ConfigError, Preempted, Stopped
from mrp.processes import launch
from mrp.run import load
from tests.waiting import LONG

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "torchvision", "numpy", "timm", "accelerate", "matplotlib", "sklearn", "rich", "mrp.run")


def line(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    """The one line on stderr that a command ends with."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == code
    error = capsys.readouterr().err
    assert error.endswith("\n")
    assert error.count("\n") == 1, error
    return error.strip()


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(options: object) -> None:
        raise error

    monkeypatch.setattr(verbs.find("config"), "run", fail)


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["pretrain", "--help"], ["pretrain"], ["pretrian"]], ids=str
)
def test_help_and_refusals_import_nothing_heavy(words: list[str]) -> None:
    code = f"""
import sys
from mrp.cli import main
try:
    main({words})
finally:
    print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout or done.returncode == 2
    assert done.stderr.splitlines()[-1] == ""


def test_recipes_are_listed_without_torch() -> None:
    code = "import sys; from mrp.cli import main; main(['recipes']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    *recipes, torch = done.stdout.splitlines()
    assert any(line.startswith("  demo ") for line in recipes), done.stderr
    assert torch == "False"


@pytest.mark.parametrize("verb", verbs.names())
def test_every_verb_shows_an_example_that_parses(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = verbs.find(verb).EXAMPLE
    for words in (["--help"], [verb, "--help"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        assert caught.value.code == 0
        assert f"  {example}" in capsys.readouterr().out
    program, *words = example.split()
    assert program == "mrp"
    options = cli._read(words)
    assert options.verb == verb
    if hasattr(options, "recipe"):
        load(options.recipe, [word for word in options.overrides if not word.startswith("init=")])  # needs a run


def test_every_file_of_the_folder_is_a_verb() -> None:
    files = {path.stem.removesuffix("_") for path in Path(verbs.__path__[0]).glob("[!_]*.py")}
    assert files == set(verbs.names())
    assert all(callable(verbs.find(name).run) for name in verbs.names())


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"mrp {mrp.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        "pretrain demo a=1 b=2 --folder r --processes 3",
        "pretrain --folder r demo a=1 b=2 --processes=3",
        "pretrain --folder r --processes 3 demo a=1 b=2",
        "pretrain demo a=1 --folder r b=2 --processes 3",
        "pretrain demo --processes 3 a=1 --folder=r b=2",
    ],
)
def test_values_may_stand_anywhere(words: str) -> None:
    options = cli._read(words.split())
    assert (options.recipe, options.overrides, options.folder, options.processes) == ("demo", ["a=1", "b=2"], "r", 3)


def test_one_command_leaves_nothing_to_the_next() -> None:
    assert cli._read(["config", "demo", "--processes", "2", "a=1"]).overrides == ["a=1"]
    assert cli._read(["config", "demo"]).overrides == []


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("", ["required: VERB", "see 'mrp --help'"]),
        ("pretrian", ["no verb 'pretrian'", "did you mean 'pretrain'?"]),
        ("zzz", ["no verb 'zzz'", "demo, pretrain, finetune, probe"]),
        ("pretrain", ["required: recipe;", "see 'mrp pretrain --help'"]),
        ("probe", ["required: RUN"]),
        ("replay a b", ["mrp replay does not know b"]),
        ("demo a=1", ["mrp demo does not know a=1"]),
        ("pretrain demo --foo", ["mrp pretrain does not know --foo"]),
        ("pretrain demo --proc 2", ["does not know --proc"]),  # were it taken for --processes, ranks would start ranks
        ("pretrain demo --processes", ["--processes: expected one argument"]),
        ("pretrain demo --processes 0", ["--processes: '0' was given; allowed: a number from 1"]),
        ("pretrain demo --processes -1", ["--processes"]),
        ("config demo --processes two", ["--processes: 'two' was given"]),
    ],
)
def test_wrong_words_are_one_line(words: str, parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = line(capsys, 2, *words.split())
    assert text.startswith("mrp: error: ")
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("batch: 3 was given\n  allowed: 4"), 2, "mrp: error: batch: 3 was given allowed: 4"),
        (FileNotFoundError(2, "No such file", "x.bin"), 2, "mrp: error: x.bin: No such file; mend it and run"),
        (OSError(28, "No space left on device"), 2, "mrp: error: No space left on device; mend it and run"),
        (Stopped("runs/x: the loss of step 3 is not finite"), 3, "mrp: stopped: runs/x: the loss of step 3"),
        (KeyboardInterrupt(), 130, "mrp: stopped"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_a_user_can_mend_is_one_line(
    error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, error)
    assert line(capsys, code, "config", "demo").startswith(text)


def test_only_a_training_that_is_stopped_goes_on_from_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert line(capsys, 130, "config", "demo") == "mrp: stopped"
    monkeypatch.setattr(verbs.find("pretrain"), "run", verbs.find("config").run)
    assert line(capsys, 130, "pretrain", "demo").endswith("; the same command goes on from the last checkpoint")


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), OSError("a bug"), AssertionError("a bug"), ValueError("a bug")]
)
def test_a_bug_of_ours_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, error)
    with pytest.raises(type(error), match="a bug"):
        cli.main(["config", "demo"])


def test_a_fault_of_the_user_s_file_is_one_line_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def run(options):\n    raise ValueError('my own\\nfault')\n")
    monkeypatch.setattr(verbs.find("config"), "run", outside.load(file, "verb").run)
    assert line(capsys, 2, "config", "demo") == f"mrp: error: {file}, line 2: ValueError: my own fault; mend the file"


def test_a_bug_of_ours_that_a_file_of_the_user_s_meets_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from mrp import registry\ndef run(options):\n    registry.Registry.find(None, 'mae')\n")
    monkeypatch.setattr(verbs.find("config"), "run", outside.load(file, "verb").run)
    with pytest.raises(AttributeError):
        cli.main(["config", "demo"])


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_the_first_speaks(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(cli.time, "sleep", waits.append)
    monkeypatch.setattr(os, "_exit", leave)
    failing(monkeypatch, ConfigError("batch: 3 was given"))
    assert line(capsys, 2, "config", "demo") == "mrp: error: batch: 3 was given"
    assert len(waits) == int(rank)
    failing(monkeypatch, RuntimeError("connection closed by peer"))
    with pytest.raises(RuntimeError, match="connection"):
        cli.main(["config", "demo"])
    assert len(waits) == int(rank) + 1, "what another process has caused is not reported at once"


def test_ranks_do_not_start_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []

    def start(*arguments: object) -> int:
        started.append(arguments)
        return 7

    monkeypatch.setattr(launch, "launch", start)
    monkeypatch.setattr(verbs.find("pretrain"), "run", lambda options: started.append(options.processes))
    words = ["pretrain", "demo", "--processes", "2"]
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 7
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    cli.main(words)
    assert started == [(2, words), 2]


def test_two_launchers_that_disagree(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(os, "_exit", sys.exit)
    text = line(capsys, 2, "pretrain", "demo", "--processes", "2")
    assert text == "mrp: error: --processes: the launcher has started 4 processes; leave it out"


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    code = """
import mrp.cli, mrp.verbs.config
mrp.verbs.config.run = lambda options: [print('x' * 99999) for _ in range(9)]
mrp.cli.main(['config', 'demo'])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.wait() == 0


def test_no_option_of_ours_could_be_taken_for_one_of_torchruns() -> None:
    """torchrun reads the whole line and takes an unambiguous beginning of its own options for the option."""
    from torch.distributed.run import get_args_parser

    theirs = [option for action in get_args_parser()._actions for option in action.option_strings]
    for name in ("--folder", "--processes"):
        assert not [option for option in theirs if option.startswith(name)]


@pytest.mark.parametrize(
    ("ends", "code"), [("pass", 0), ("raise ConfigError('batch: 3 was given')", 2), ("raise TypeError('a bug')", 1)]
)
def test_a_tracker_that_hangs_does_not_keep_the_program_from_its_end(ends: str, code: int, tmp_path: Path) -> None:
    hanging = """
import atexit, threading
from typing import Literal
from mrp.trackers import Section
class Config(Section):
    name: Literal["hanging"] = "hanging"
class Tracker:
    def __init__(self, *_): atexit.register(threading.Event().wait)
    def log(self, step, values): pass
    def close(self): threading.Event().wait()
"""
    program = f"""
import sys, time
from pathlib import Path
import mrp.cli, mrp.verbs.recipes
from mrp.config import ConfigError
from mrp.monitor.shown import Shown
from mrp.trackers import TRACKERS
def run(options):
    tracker = Shown(TRACKERS.read("hanging.py"), Path(), {{}}, 0, print)
    tracker.end({{}})
    tracker.wait(time.monotonic() + 0.1)
    {ends}
mrp.verbs.recipes.run = run
sys.argv = ["mrp", "recipes"]
mrp.cli.main()
"""
    (tmp_path / "hanging.py").write_text(hanging)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LONG
    )
    assert ended.returncode == code, ended.stderr
    assert "did not come to an end" in ended.stdout


def test_a_tracker_that_hangs_does_not_keep_a_stopped_run_from_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit hooks of wandb wait for minutes, and a scheduler starts again what ends with its code in time."""

    def stopped(options: object) -> None:
        raise Preempted("run: SIGTERM: stopped", 85)

    def end(code: int) -> None:
        raise SystemExit(f"at once: {code}")

    hold = threading.Event()
    hanging = threading.Thread(target=hold.wait, args=(60,), name="tracker wandb", daemon=True)
    monkeypatch.setattr("mrp.verbs.recipes.run", stopped)
    monkeypatch.setattr("os._exit", end)
    hanging.start()
    try:
        with pytest.raises(SystemExit, match="at once: 85"):
            cli.main(["recipes"])
    finally:
        hold.set()
        hanging.join(LONG)
    with pytest.raises(SystemExit, match=r"^85$"):
        cli.main(["recipes"])
