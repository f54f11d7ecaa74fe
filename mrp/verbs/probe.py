"""`mrp probe`."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrp import imports, progress
from mrp.verbs import _words, finetune

if TYPE_CHECKING:
    from rich.table import Table

    from mrp.api import Probed

HELP = "judge frozen features: the best of many linear heads (chosen without the test set), kNN, few-shot"
EXAMPLE = "mrp probe runs/demo --untrained"

PAPER = "paper"  # of the folder, beside the run's checkpoints, in which its protocol trains
# Words that name other data.
_DATA = {"data", "data.train", "data.test", "data.classes", "data.fraction", "data.labels", "data.group"}
_RECIPE = "linear_mae_vit_base_in1k"


def words(parser: argparse.ArgumentParser) -> None:
    """A run or checkpoint, the evaluators, the data."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, one of its checkpoints, or weights to import")
    _words.add_key_values(
        parser,
        "other data (data.train, test, classes, fraction, group, size), machine.workers, or options of an evaluator",
    )
    parser.add_argument(
        "--evaluator", action="append", dest="evaluators", metavar="NAME",
        help="what to measure (may be repeated): linear, knn, few_shot (these three by default), tags (by default "
        "where the data have tags), logistic, centroid, attentive, calibration, retrieval, copy, segmentation, depth, "
        "invariance, geometry, reconstructions, diagnose, validation, or ./FILE.py",
    )  # fmt: skip
    parser.add_argument("--protocol", choices=(PAPER,), help="train MAE's linear probe instead: 90 epochs of crops")
    parser.add_argument("--untrained", action="store_true", help="measure the untrained backbone too")
    _words.add_weights(parser)
    _words.add_step(parser)
    parser.add_argument(
        "--classes", default="by_name", metavar="HOW",
        help="which training class a test class is: by_name (default), by_index (test classes are called by numbers), "
        "or a file with lines 'TEST_CLASS TRAINING_CLASS'",
    )  # fmt: skip
    parser.add_argument("--cache", metavar="FOLDER", help="keep the features there (default: RUN/features)")
    _words.add_processes(parser, "processes on this machine that read features")
    _words.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Measure, and print the tables."""
    overrides = _words.data_words(options)
    if options.protocol == PAPER:
        return _paper(options)
    with imports.undisturbed():
        from mrp import api

    probed = api.probe(
        options.run, *overrides, evaluators=options.evaluators, weights=options.weights,
        step=options.step, baseline=options.untrained, cache=options.cache, classes=options.classes,
    )  # fmt: skip
    if options.json and probed.results:
        print(json.dumps(probed.results, indent=1))
    else:
        _print(options.run, probed)


def _paper(options: argparse.Namespace) -> None:
    """Trains MAE's linear probe on the run's own data, as a run of its own beside it."""
    from mrp.build import follow_up
    from mrp.config import ConfigError
    from mrp.evaluators.validation import VALIDATION
    from mrp.interop import runs
    from mrp.optim.average import GROUP as AVERAGE
    from mrp.train import train

    idle = [name for name in ("untrained", "evaluators", "cache") if getattr(options, name)]
    idle += ["classes"] if options.classes != "by_name" else []
    if idle:
        raise ConfigError(
            f"--{idle[0].replace('tors', 'tor')}: does nothing with --protocol paper; leave one of the two out"
        )
    folder, found = runs.locate(Path(options.run), options.step)
    weights = options.weights or ("average" if found.has(AVERAGE) else None)  # as what else this verb measures
    # What else of the data is changed is another setting of the same probe, which its folder refuses.
    data = sorted(word for word in options.overrides if ".".join(word.partition("=")[0].split(".")[:2]) in _DATA)
    place = [hashlib.sha256("\n".join(data).encode()).hexdigest()[:8]] if data else []
    name = "-".join([PAPER, f"{found.step:08d}", *([weights] if weights else []), *place])
    chosen = [f"init.weights={weights}"] if weights else []
    protocol = follow_up(_RECIPE, found.folder, [*chosen, *options.overrides], folder / name)
    train(protocol, folder / name)
    if progress.is_first() and (folder / name / VALIDATION).is_file():
        finetune.show(folder / name / VALIDATION, options.json)


def show(folder: Path) -> None:
    """Measure a run beside its untrained backbone, and print the tables."""
    with imports.undisturbed():
        from mrp import api

    _print(str(folder), api.probe(folder, baseline=True))


def _print(title: str, probed: Probed) -> None:
    if not probed.results:  # another process has them
        return
    trained = probed.results["trained"]
    tables = [_accuracies(title, probed.results), _numbers(title, probed.results), _details(trained), *_tags(trained)]
    for table in (table for table in tables if table.row_count):
        _words.print_table(table)
    print(f"written to {probed.path}")


def _accuracies(title: str, results: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """Returns one row per backbone and one column per evaluator that gives an accuracy."""
    from rich.table import Table

    names = {"linear": "linear probe", "knn": "kNN (k = 20)"}
    shown = [name for name, result in results["trained"].items() if "accuracy" in result]
    columns = [names.get(name, name) for name in shown]
    table = Table("features", *columns, title=f"{title}: accuracy on held-out images")
    for backbone, result in results.items() if shown else ():
        table.add_row(backbone, *(_words.percent(result[name]) for name in shown))
    return table


def _numbers(title: str, results: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """Returns one row per number that is no accuracy of the first table, and one column per backbone."""
    from rich.table import Table

    from mrp.evaluate.measures import MEASURES

    others = any("accuracy" in result for result in results["trained"].values())
    table = Table("measured by", "number", *results, title=f"{title}: {'other ' if others else ''}numbers")
    for name, result in results["trained"].items():
        for measure in result.get(MEASURES, ()):
            found = [each.get(name, {}).get(MEASURES, {}).get(measure) for each in results.values()]
            table.add_row(name, measure, *("-" if one is None else _words.measured(one) for one in found))
    return table


def _details(results: dict[str, dict[str, Any]]) -> Table:
    """Returns what was chosen and how far each choice changes the held-out accuracy; then the other numbers."""
    from rich.table import Table

    from mrp.evaluate.interval import in_percent
    from mrp.evaluate.measures import MEASURES

    table = Table("choice", "taken", "best held-out accuracy of each")
    for name, result in results.items():
        if name == "linear":
            share = f"{in_percent(result['held_out']['accuracy'])} %"
            table.title = f"the best of {len(result['trials'])} linear heads on held-out training images: {share}"
            for choice, best in result["moves"].items():
                table.add_row(choice, str(result[choice]), _listed(best))
        elif name == "knn":
            accuracies = {f"k = {one['k']}": one["accuracy"] for one in result["neighbours"]}
            table.add_row("kNN", "on the test set", _listed(accuracies))
        elif "few_shot" in result:
            for one in result["few_shot"]:
                words = f"{_words.percent(one)}, over {len(one['draws'])} draws"
                if "scarce" in one:
                    words += f"; {one['scarce']} {'class has' if one['scarce'] == 1 else 'classes have'} fewer images"
                table.add_row("few-shot", f"{one['shots']} per class", words)
        elif name == "tags":
            continue  # which have tables of their own
        elif "accuracy" not in result and MEASURES not in result:
            numbers = {key: value for key, value in result.items() if isinstance(value, float)}
            table.add_row(name, "", "  ".join(f"{key}: {value:.4g}" for key, value in numbers.items()))
        elif "num_train" in result:
            table.add_row(name, "on the test set", f"trained on {result['num_train']:,} images")
    return table


def _tags(results: dict[str, dict[str, Any]]) -> Iterator[Table]:
    """Yields what was chosen for tags, and how far each choice changes the held-out loss; then the numbers of each tag.

    Of many tags the lowest are shown.
    """
    from rich.table import Table

    if "tags" not in results:
        return
    found = results["tags"]
    chosen, tried = found["chosen"], found["tried"]
    table = Table("choice", "taken", "least held-out loss of each")
    table.title = f"the best of {len(tried)} heads for tags on held-out training images: loss {chosen['loss']:.4f}"
    for choice in ("layer", "pooling", "l2"):
        least: dict[str, float] = {}
        for one in tried:
            value = f"{one[choice]:g}" if choice == "l2" else one[choice]
            least[value] = min(one["loss"], least.get(value, one["loss"]))
        losses = "  ".join(f"{value}: {loss:.4f}" for value, loss in least.items())
        table.add_row(choice, str(chosen[choice]), losses)
    yield table
    yield _words.table_of_tags(found["tags"], found["num_test"])


def _listed(accuracies: dict[str, float]) -> str:
    from mrp.evaluate.interval import in_percent

    return "  ".join(f"{name}: {in_percent(accuracy)}" for name, accuracy in accuracies.items())
