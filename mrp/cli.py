"""The command line: verbs, their words, and what an error looks like. torch is imported only when a verb runs."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

import mrp

USER_ERROR = 2
INCIDENT = 3

_VERBS: dict[str, tuple[str, str]] = {
    "demo": ("pretrain, probe and draw a small run on data that comes with scikit-learn", "mrp demo"),
    "pretrain": ("train a recipe; the same command again goes on where it stopped", "mrp pretrain mae_vit_tiny_cifar10 data.train=cifar-10-binary.tar.gz"),
    "probe": ("judge a run's features: linear probe and kNN, beside the untrained backbone", "mrp probe runs/demo"),
    "report": ("draw a run: loss curve, and inputs beside their reconstructions", "mrp report runs/demo"),
    "config": ("show what a recipe resolves to, and what follows from it", "mrp config mae_vit_base_in1k optim.lr=2e-4"),
    "recipes": ("list the recipes that come with mrp", "mrp recipes"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb; a fault of the user's is one line and exit code 2."""
    options = parser().parse_args(arguments)
    if options.verb == "pretrain" and options.processes > 1:
        from mrp.launch import launch

        sys.exit(launch(options.processes, sys.argv[1:] if arguments is None else arguments))
    from mrp.config import ConfigError

    try:
        from mrp import verbs

        getattr(verbs, "list_recipes" if options.verb == "recipes" else options.verb)(options)
    except (ConfigError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None and error.errno is None:
            raise
        _leave(f"mrp: error: {error}", USER_ERROR)
    except KeyboardInterrupt:
        _leave("mrp: stopped; the same command goes on from the last checkpoint", 130)
    except RuntimeError as error:
        if type(error).__name__ != "NonFinite":
            raise
        _leave(f"mrp: stopped: {error}", INCIDENT)


def _leave(message: str, code: int) -> None:
    """One line on stderr; of several processes with the same fault, the first one speaks."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(2)  # the launcher ends the others as soon as one has failed
    print(" ".join(message.split()), file=sys.stderr, flush=True)
    os._exit(code) if "LOCAL_RANK" in os.environ else sys.exit(code)


def parser() -> argparse.ArgumentParser:
    """Every verb with its words and an example."""
    examples = "\n".join(f"  {example:<58} {help_.split(';')[0].split(':')[0]}" for help_, example in _VERBS.values())
    top = argparse.ArgumentParser(
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
        parsers[name].add_argument("overrides", nargs="*", metavar="key=value", help="values that replace the recipe's")
    for name in ("pretrain", "demo"):
        parsers[name].add_argument("--run", metavar="FOLDER", help="the run's folder (default: runs/RECIPE)")
    parsers["pretrain"].add_argument("--processes", type=int, default=1, metavar="N", help="processes on this machine (default: 1)")
    parsers["config"].add_argument("--processes", type=int, default=1, metavar="N", help="processes to plan for (default: 1)")
    for name in ("probe", "report"):
        parsers[name].add_argument("run", metavar="RUN", help="a run's folder")
    return top
