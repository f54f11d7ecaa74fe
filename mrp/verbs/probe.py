"""`mrp probe`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrp.verbs import _words, finetune

if TYPE_CHECKING:
    from rich.table import Table

HELP = "judge frozen features: the best of many linear heads (chosen without the test set), kNN, few-shot"
EXAMPLE = "mrp probe runs/demo --untrained"

PAPER = "paper"  # of the folder, beside the run's checkpoints, in which its protocol trains
_RECIPE = "linear_mae_vit_base_in1k"


def words(parser: argparse.ArgumentParser) -> None:
    """A run or checkpoint, what to measure, on which data."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, one of its checkpoints, or weights to import")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="data.key=value", help="other data: train, test, classes, fraction"
    )
    parser.add_argument(
        "--protocol", choices=("sweep", "knn", "paper"), default="sweep",
        help="sweep: many linear heads, and the rest; knn: nothing is trained; paper: MAE's, 90 epochs of crops "
        "(default: sweep)",
    )  # fmt: skip
    parser.add_argument("--untrained", action="store_true", help="measure the untrained backbone too")
    parser.add_argument("--weights", choices=("student", "teacher", "average"), help="whose (default: the run's own)")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step (default: the newest)")
    parser.add_argument("--layers", type=_words.count, metavar="N", help="read the last N blocks (default: 4)")
    parser.add_argument("--attentive", action="store_true", help="also a head that learns where to look (slower)")
    parser.add_argument(
        "--check", action="store_true", help="also logistic regression by L-BFGS on the chosen features"
    )
    parser.add_argument("--cache", metavar="FOLDER", help="keep the features there (default: RUN/features)")
    _words.add_processes(parser, "processes on this machine that read features")


def run(options: argparse.Namespace) -> None:
    """Measure, and print the tables."""
    words = _words.data_words(options)
    if options.protocol == "paper":
        return _paper(options)
    from mrp import api
    from mrp.evaluate.probing import Options

    asked = Options(
        protocol=options.protocol, layers=options.layers, attentive=options.attentive, check=options.check
    )  # fmt: skip
    found = api.probe(options.run, asked, options.weights, options.step, options.untrained, words, options.cache)
    _print(options.run, found.path, found.results)


def _paper(options: argparse.Namespace) -> None:
    """Train MAE's linear probe on the run's own data, as a run of its own beside it."""
    from mrp.build import follow_up
    from mrp.config import ConfigError
    from mrp.evaluate.validation import VALIDATION
    from mrp.interop import runs
    from mrp.train import train

    idle = [name for name in ("untrained", "layers", "attentive", "check", "cache") if getattr(options, name)]
    if idle:
        raise ConfigError(f"--{idle[0]}: the paper's protocol has no such thing; leave it out, or take the sweep")
    folder, found = runs.locate(Path(options.run), options.step)
    chosen = [f"init.weights={options.weights}"] if options.weights else []
    name = "-".join([PAPER, f"{found.step:08d}", *([options.weights] if options.weights else [])])
    protocol = follow_up(_RECIPE, found.folder, [*chosen, *options.overrides], folder / name)
    train(protocol, folder / name)
    if os.environ.get("RANK", "0") == "0" and (folder / name / VALIDATION).is_file():
        finetune.show(folder / name / VALIDATION)


def show(folder: Path) -> None:
    """Judge a run beside its untrained backbone, and print the tables."""
    from mrp import api

    found = api.probe(folder, baseline=True)
    _print(str(folder), found.path, found.results)


def _print(title: str, path: Path, results: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console

    if not results:  # another process has them
        return
    console = Console(width=100)
    console.print(_verdicts(title, results))
    if trained := results["trained"].get("linear"):
        console.print(_choices(results["trained"], trained))
    print(f"written to {path}")


def _verdicts(title: str, results: dict[str, dict[str, Any]]) -> Table:
    """One row a backbone."""
    from rich.table import Table

    sweep = "linear" in results["trained"]
    table = Table(title=f"{title}: accuracy on held-out images", title_justify="left")
    for column in ("features", *(("linear probe",) if sweep else ()), "kNN (k = 20)"):
        table.add_column(column)
    for name, found in results.items():
        table.add_row(name, *(_percent(found[key]) for key in ("linear", "knn") if key in found))
    return table


def _choices(found: dict[str, Any], chosen: dict[str, Any]) -> Table:
    """What was tried, what was chosen, and how far each choice moves the result on the held-out part."""
    from rich.table import Table

    count, held_out = len(found["trials"]), found["linear"]["held_out"]
    table = Table(
        title=f"the best of {count} linear heads on held-out training images: {100 * held_out['accuracy']:.1f} %",
        title_justify="left",
    )
    for column in ("choice", "taken", "best held-out accuracy of each"):
        table.add_column(column)
    for choice, moved in found["moves"].items():
        values = "  ".join(f"{value}: {100 * accuracy:.1f}" for value, accuracy in moved.items())
        table.add_row(choice, str(chosen[choice]), values)
    for key in ("logistic", "attentive"):
        if key in found:
            table.add_row(key, "on the test set", f"{_percent(found[key])}, trained on {found[key]['num_train']:,}")
    neighbours = "  ".join(f"k = {one['k']}: {100 * one['accuracy']:.1f}" for one in found["neighbours"])
    table.add_row("kNN", "on the test set", neighbours)
    for one in found.get("few_shot", ()):
        table.add_row("few-shot", f"{one['shots']} a class", f"{_percent(one)}, over {len(one['draws'])} draws")
    return table


def _percent(result: dict[str, Any]) -> str:
    return f"{100 * result['accuracy']:.1f} % ({100 * result['low']:.1f} to {100 * result['high']:.1f})"
