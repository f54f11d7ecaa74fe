"""The command line: its verbs, their arguments, and how errors are printed; torch is imported only when a verb runs."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

import mrp
from mrp import progress, verbs
from mrp.config import FaultElsewhere, Preempted, ProcessLost, Stopped, nearest
from mrp.ending import line_of

FAULT = 1
USER_ERROR = 2
INCIDENT = 3
STOPPED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one verb; what the user can mend is one line and exit code 2."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = _read(words)
    if getattr(options, "processes", 1) > 1:
        if "RANK" not in os.environ:
            from mrp.processes.launch import launch

            sys.exit(launch(options.processes, words))
        if os.environ.get("WORLD_SIZE") != str(options.processes):
            started = os.environ.get("WORLD_SIZE", "other")
            _leave(f"mrp: error: --processes: the launcher has started {started} processes; leave it out", USER_ERROR)
    progress.silence(getattr(options, "quiet", False))
    try:
        verbs.find(options.verb).run(options)
        sys.stdout.flush()
        _part_from_the_others()
    except BrokenPipeError:
        if not progress.drop_closed_outputs():  # as `head` closes it, once it has read enough
            raise
    except Preempted as ended:
        if progress.is_first():
            progress.put(f"mrp: {ended}", sys.stdout)
        _part_from_the_others()
        _end(ended.code)
    except KeyboardInterrupt:
        trains = hasattr(options, "folder")
        _leave(f"mrp: stopped{'; the same command goes on from the last checkpoint' if trains else ''}", STOPPED)
    except Stopped as error:
        _leave(f"mrp: stopped: {error}", INCIDENT)
    except ProcessLost as error:
        _wait_if(True)
        _leave(f"mrp: error: {error}", FAULT)
    except Exception as fault:
        _wait_if(isinstance(fault, FaultElsewhere) or ("RANK" in os.environ and isinstance(fault, RuntimeError)))
        if (line := line_of(fault)) is not None:
            _leave(f"mrp: error: {line}", USER_ERROR)
        if arguments is None and _is_held_up():
            traceback.print_exc()
            _end(FAULT)
        raise
    if arguments is None:  # this is the whole program
        _end(0)


def _end(code: int) -> NoReturn:
    """Ends the process; at once where a tracker did not end in its time, since Python might wait for its exit hook.

    wandb has such a hook. A run that is to be requeued would miss its time, and one that is complete would seem to run.
    """
    if _is_held_up():
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _is_held_up() -> bool:
    return any(thread.name.startswith("tracker ") for thread in threading.enumerate())


def _part_from_the_others() -> None:
    """Ends the connections between the processes of a run, which have all come to the same end."""
    if "RANK" in os.environ:
        from mrp.processes.join import leave

        leave()


def _leave(message: str, code: int) -> None:
    """Ends the process with one line on stderr, which the first process alone prints where several have the fault."""
    progress.drop_closed_outputs()
    sys.stdout.flush()
    _wait_if(not progress.is_first())
    progress.put(" ".join(message.split()), sys.stderr)
    if "RANK" in os.environ:
        os._exit(code)  # at once: closing the connections to processes that wait for this one would take minutes
    _end(code)


def _wait_if(others_report: bool) -> None:
    """Gives the process that has the same fault, or caused this one, time to report it; the launcher then ends this."""
    if others_report:
        time.sleep(2)


def _read(words: list[str]) -> argparse.Namespace:
    """Returns the options; key=value words may stand before, between and after them."""
    top, names = parser(), verbs.names()
    if words and not words[0].startswith("-") and words[0] not in names:
        hint = nearest(words[0], names).removeprefix("; ") or f"there are {', '.join(names)}"
        top.error(f"there is no verb '{words[0]}'; {hint}")
    options, rest = top.parse_known_args(words)
    if hasattr(options, "overrides"):
        options.overrides = options.overrides + [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        top.error(f"mrp {options.verb} does not know {' '.join(rest)}")
    for name, value in vars(options).items():
        if isinstance(value, str) and value.startswith("~"):  # as a shell leaves it in --folder=~/runs
            setattr(options, name, os.path.expanduser(value))
    return options


class _Parser(argparse.ArgumentParser):
    """Prints errors in one line, and takes no abbreviated options."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options, allow_abbrev=False)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"mrp: error: {message}; see '{self.prog} --help'\n")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of every verb, each with an example."""
    modules = {name: verbs.find(name) for name in verbs.names()}
    examples = "\n".join(f"  {verb.EXAMPLE}" for verb in modules.values())
    top = _Parser(
        prog="mrp",
        description="Masked-image pretraining of Vision Transformers.",
        epilog=f"examples:\n{examples}\n\n'mrp VERB --help' tells more of a verb.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"mrp {mrp.__version__}")
    parsers = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in modules.items():
        arguments = parsers.add_parser(
            name,
            help=verb.HELP,
            description=verb.HELP[0].upper() + verb.HELP[1:] + ".",
            epilog=f"example:\n  {verb.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verbs.describe(name, arguments)
    return top
