"""`mrp lab ratio`: its words and what runs it."""

from __future__ import annotations

import argparse
from typing import Any

from mrp.lab.words import add_out, chosen, count, print_table

HELP = "MAE's best mask ratio: predicted from a masked classifier and frozen, then held against MAE at every ratio"


def words(parser: argparse.ArgumentParser) -> None:
    """Adds the two steps."""
    steps = parser.add_subparsers(dest="action", required=True, metavar="STEP")
    predict = steps.add_parser("predict", help="train the classifier, and write the prediction and its sha256")
    add = predict.add_argument
    add("recipe", help="a recipe of MAE; the ratio is sought for its data, backbone and batch")
    add("words", nargs="*", metavar="key=value", help="values that replace the recipe's")
    add("--ratios", type=float, nargs="+", metavar="R", help="mask ratios (default: seven, from .15 to .95)")
    add("--length", metavar="DURATION", help="how long the classifier trains (default: the recipe's length)")
    add("--images", type=count, metavar="N", help="held-out images to measure the classifier on (default: 10000)")
    add("--pairs", type=count, metavar="N", help="pairs of masks per image and ratio (default: 4)")
    compare = steps.add_parser("compare", help="train MAE at every ratio, probe it, and compare")
    compare.add_argument("--seeds", type=count, default=3, metavar="N", help="seeds of MAE's training (default: 3)")
    for step in (predict, compare):
        add_out(step, "ratio")


def run(options: argparse.Namespace) -> None:
    """Makes the prediction, or compares it."""
    from mrp.lab import figures
    from mrp.lab.ratio import compare, plots, predict

    if options.action == "predict":
        given = chosen(options, predict.Options)
        given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
        prediction = predict.freeze(predict.Options(**given), options.out)
        _print_prediction(prediction)
        print(f"sha256 {predict.frozen(options.out)[1]}  {options.out / predict.PREDICTION}")
        figures.save(options.out, {"prediction.png": plots.draw(prediction)})
        return
    result = compare.compare(options.out, options.seeds)
    _print_prediction(result["prediction"])
    rows = [
        [
            each["rule"],
            each["probe"],
            *(_listed(each[name]) for name in ("rank correlation", "ratios off", "points gained")),
        ]
        for each in result["outcomes"]
    ]
    columns = ["rule", "probe", "rank correlation", "ratios between predicted and best", "points above the mean ratio"]
    print_table(f"{result['seeds']} seeds, one number for each", columns, rows, width=140)
    figures.write(options.out, "results.json", result, {"ratio.png": plots.draw(result["prediction"], result)})


def _print_prediction(prediction: dict[str, Any]) -> None:
    rows = []
    for number, (ratio, row) in enumerate(zip(prediction["ratios"], prediction["rows"], strict=True)):
        measured = (f"{row[name]['value']:.3f} +- {row[name]['error']:.3f}" for name in ("label_error", "one_of_two"))
        best = (("*" if prediction["best"][rule] == ratio else "") for rule in prediction["merits"])
        merits = (f"{merit[number]:.3f}{star}" for merit, star in zip(prediction["merits"].values(), best, strict=True))
        rows.append([f"{ratio:.3f}", *measured, *merits])
    columns = [
        "ratio",
        "label error",
        "one of two views tells the class",
        *(f"merit: {r}" for r in prediction["merits"]),
    ]
    print_table(
        "what the masked classifier says of every mask ratio (*: predicted to be best)", columns, rows, width=120
    )


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
