"""The command line: verbs, their words, and what an error looks like. torch is imported only when a verb runs."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import mrp
from mrp.shards_cli import add_words as add_shards_words

USER_ERROR = 2
INCIDENT = 3
STOPPED = 130

_VERBS: dict[str, tuple[str, str]] = {
    "demo": ("pretrain, probe and draw a small run on data that comes with scikit-learn", "mrp demo"),
    "pretrain": (
        "train a recipe; the same command again goes on where it stopped",
        "mrp pretrain mae_vit_tiny_cifar10 data.train=cifar-10-binary.tar.gz",
    ),
    "probe": ("judge a run's features: linear probe and kNN, beside the untrained backbone", "mrp probe runs/demo"),
    "report": ("draw a run: loss curve, and inputs beside their reconstructions", "mrp report runs/demo"),
    "config": (
        "show what a recipe resolves to, and what follows from it",
        "mrp config mae_vit_base_in1k optim.lr=2e-4",
    ),
    "shards": (
        "make shards of images, check them and look at them: build, index, verify, stats, show",
        "mrp shards build /data/in1k/train /data/in1k-shards",
    ),
    "recipes": ("list the recipes that come with mrp", "mrp recipes"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb; a fault of the user's is one line and exit code 2."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = _read(words)
    if options.verb == "pretrain" and options.processes > 1:
        if "RANK" not in os.environ:
            from mrp.launch import launch

            sys.exit(launch(options.processes, words))
        if os.environ.get("WORLD_SIZE") != str(options.processes):
            started = os.environ.get("WORLD_SIZE", "other")
            _leave(f"mrp: error: --processes: the launcher has started {started} processes; leave it out", USER_ERROR)
    from mrp.config import ConfigError, Stopped

    try:
        from mrp import verbs

        getattr(verbs, "list_recipes" if options.verb == "recipes" else options.verb)(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ConfigError as error:
        _leave(f"mrp: error: {error}", USER_ERROR)
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _leave(f"mrp: error: {where}{error.strerror}; mend it and run the same command again", USER_ERROR)
    except KeyboardInterrupt:
        _leave("mrp: stopped; the same command goes on from the last checkpoint", STOPPED)
    except Stopped as error:
        _leave(f"mrp: stopped: {error}", INCIDENT)
    except RuntimeError:
        _wait_if("RANK" in os.environ)
        raise


def _leave(message: str, code: int) -> None:
    """One line on stderr; of several processes with the same fault, the first one speaks."""
    sys.stdout.flush()
    _wait_if(os.environ.get("RANK", "0") != "0")
    print(" ".join(message.split()), file=sys.stderr, flush=True)
    if "RANK" in os.environ:
        os._exit(code)  # at once: to take leave of processes that wait for this one would take minutes
    sys.exit(code)


def _wait_if(others_speak: bool) -> None:
    """Another process has the same fault, or is the cause of this one: it speaks, and the launcher ends this one."""
    if others_speak:
        time.sleep(2)


def _read(words: list[str]) -> argparse.Namespace:
    """Words to options; key=value words may stand before, between and after options."""
    top = parser()
    if words and not words[0].startswith("-") and words[0] not in _VERBS:
        near = difflib.get_close_matches(words[0], _VERBS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(_VERBS)}"
        top.error(f"there is no verb '{words[0]}'; {hint}")
    options, rest = top.parse_known_args(words)
    if hasattr(options, "overrides"):
        options.overrides = options.overrides + [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        top.error(f"mrp {options.verb} does not know {' '.join(rest)}")
    return options


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line and without abbreviated options."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options, allow_abbrev=False)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"mrp: error: {message}; see '{self.prog} --help'\n")


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"'{word}' was given; allowed: a number from 1")
    return int(word)


def parser() -> argparse.ArgumentParser:
    """Every verb with its words and an example."""
    width = max(len(example) for _, example in _VERBS.values())
    examples = "\n".join(
        f"  {example:<{width}}  {help_.split(';')[0].split(':')[0]}" for help_, example in _VERBS.values()
    )
    top = _Parser(
        prog="mrp",
        description="Mask-reconstruction pretraining of Vision Transformers.",
        epilog=f"examples:\n{examples}\n\n'mrp VERB --help' tells more of a verb.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"mrp {mrp.__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    parsers = {
        name: verbs.add_parser(
            name,
            help=help_,
            description=help_[0].upper() + help_[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, (help_, example) in _VERBS.items()
    }
    for name in ("pretrain", "config"):
        parsers[name].add_argument("recipe", help="a YAML file, or the name of a recipe ('mrp recipes' lists them)")
        parsers[name].add_argument(
            "overrides", nargs="*", default=[], metavar="key=value", help="values that replace the recipe's"
        )
    for name in ("pretrain", "demo"):
        parsers[name].add_argument(
            "--folder", dest="run", metavar="FOLDER", help="the run's folder (default: runs/RECIPE)"
        )
    for name, use in (("pretrain", "processes on this machine"), ("config", "processes to plan for")):
        text = f"{use} (default: 1)"
        parsers[name].add_argument("--processes", type=_count, default=1, metavar="N", help=text)
    for name in ("probe", "report"):
        parsers[name].add_argument("run", metavar="RUN", help="a run's folder")
    add_shards_words(parsers["shards"], _count)
    return top
