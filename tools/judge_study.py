"""What trained runs are good for, judged in every way there is, in one table with intervals and cost.

    python tools/judge_study.py RUN... [--fraction 0.2] [--tune 2] [--paper RUN [--paper-epochs 5]] [--out judged.md]

Each run is judged on the same part of its training images and on all of its test images: the probe's sweep and nearest
neighbours, and fine-tuning. The backbone as it was before training is judged beside them: its "fine-tuning" is training
from scratch, for the same steps. The runs after --paper go through the paper's linear probe too.
Verdicts are kept in the runs' folders; run again, it goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import study

from mrp import api, probing
from mrp.build import follow_up
from mrp.config import as_words
from mrp.evaluators import read_options
from mrp.evaluators.validation import VALIDATION
from mrp.files import write_atomically
from mrp.run import Run
from mrp.train import train

TUNING, LINEAR = "finetune_tiny_digits", "linear_mae_vit_base_in1k"
BATCH = {TUNING: 64, LINEAR: 256}
PEAK_LR = 6.4  # what the paper's 0.1 for 256 images comes to at its batch of 16,384
EPOCHS = 90  # of the paper's probe
UNTRAINED = "untrained"  # the folder in a run's with the verdicts on its first weights
VERDICTS = {"linear": "linear (sweep) %", "knn": "kNN %", "tuned": "fine-tuned %", "paper": "paper's probe %"}


@dataclass(frozen=True, slots=True)
class Budget:
    """What each run is judged with."""

    fraction: float  # of the training images
    tune: int  # epochs of fine-tuning, and of training from scratch
    paper: int  # epochs of the paper's linear probe

    def files(self, place: Path) -> dict[str, Path]:
        """Where each verdict is kept; the name says what it was reached with."""
        folder = place / f"judged-{self.fraction:g}"
        names = {"sweep": "sweep", "tuned": f"tuned-{self.tune}", "paper": f"paper-{self.paper}"}
        return {verdict: folder / f"{name}.json" for verdict, name in names.items()}

    def classify(self, recipe: str, epochs: int, origin: Path, file: Path, *more: str) -> dict[str, Any]:
        """Train a recipe of classification from a run's weights, on its crops; the accuracy after the last step."""
        before = api.read(origin)
        words = [
            f"data.fraction={self.fraction}", *as_words({"data.augment": before.data.augment}),
            f"batch={BATCH[recipe]}", f"length={epochs} epochs", f"optim.warmup={epochs / 10:g} epochs",
            f"validation.every={epochs} epochs", "checkpoint={every: 1 epochs, keep: 1}", "precision=fp32",
            f"seed={before.seed}", "machine.workers=0", *more,
        ]  # fmt: skip
        folder = file.with_suffix("")
        run = follow_up(recipe, origin, words, folder)
        train(run, folder)
        verdict = json.loads((folder / VALIDATION).read_text(encoding="utf-8"))
        return dict(verdict["student"]["accuracy"]) | {"steps": verdict["step"], "batch": run.batch}

    def sweep(self, model: api.Model, place: Path) -> dict[str, Any]:
        """The best of many linear heads, chosen without the test images, and nearest neighbours."""
        words = [f"data.fraction={self.fraction}", "machine.workers=0"]  # the time of other processes is not counted
        model = probing.changed(model, probing.sections(words))
        setting = probing.setting_of(model, place)
        return probing.measure(model.module, read_options(dict.fromkeys(api.EVALUATORS)), setting)


def judge(origin: Path, budget: Budget, paper: bool) -> Path:
    """Every verdict on a run that is not there yet; where they are."""
    at = budget.files(origin)
    kept(at["sweep"], lambda: budget.sweep(api.load(origin), origin))
    kept(at["tuned"], partial(budget.classify, TUNING, budget.tune, origin, at["tuned"]))
    if paper:
        peak = f"optim.lr={PEAK_LR}", "optim.per=null"
        kept(at["paper"], partial(budget.classify, LINEAR, budget.paper, origin, at["paper"], *peak))
    return origin


def judge_untrained(origin: Path, budget: Budget) -> Path:
    """The same on the backbone that a run began with."""
    place = origin / UNTRAINED
    at = budget.files(place)
    backbone = api.read(origin).backbone.model_dump_json()
    bare = "init=null", f"backbone={backbone}", "optim.layer_decay=null"  # no block is nearer to its goal than another
    kept(at["sweep"], lambda: budget.sweep(api.untrained(origin), place))
    kept(at["tuned"], partial(budget.classify, TUNING, budget.tune, origin, at["tuned"], *bare))
    return place


def copy_verdicts(judged: Path, place: Path, budget: Budget) -> None:
    """Keeps the verdicts on one run's first weights beside another run that began with the same ones."""
    for found, copy in zip(budget.files(judged).values(), budget.files(place).values(), strict=True):
        if found.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(copy, found.read_text(encoding="utf-8"))


def kept(file: Path, measure: Callable[[], dict[str, Any]]) -> None:
    """Measure what was not measured before, and keep it whole or not at all, with the processor minutes it took."""
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    spent = file.with_suffix(".spent")
    with study.metered(spent):
        found = measure()
    write_atomically(file, json.dumps(found | {"minutes": study.seconds(spent) / 60}, indent=1))


def table(places: Mapping[str, Path], budget: Budget) -> str:
    """A line for each: accuracies on the test images with intervals of 95 %, and processor minutes, as Markdown."""
    costs = ("pretraining", *budget.files(Path()))
    titles = ["run", *VERDICTS.values(), *(f"CPU min: {name}" for name in costs)]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, place in places.items():
        files = budget.files(place) | {"pretraining": place / "result.json"}
        found = {key: json.loads(file.read_text(encoding="utf-8")) for key, file in files.items() if file.exists()}
        verdicts = found | found["sweep"]
        cells = [interval(verdicts[key]) if key in verdicts else "-" for key in VERDICTS]
        cells += [f"{found[key]['minutes']:.1f}" if key in found else "-" for key in costs]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval(found: Mapping[str, float]) -> str:
    """An accuracy, and from where to where it may be."""
    return f"{100 * found['accuracy']:.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})"


def first_weights(run: Run) -> tuple[int, str]:
    """What decides them."""
    return run.seed, run.backbone.model_dump_json()


def main(arguments: list[str] | None = None) -> None:
    """Go through the runs; print the table after each, so that an interrupted judgement is of use."""
    words = study.command_line(__doc__)
    words.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    words.add_argument("--fraction", type=float, default=1.0, help="of the training images (default: all)")
    words.add_argument("--tune", type=int, default=10, help="epochs of fine-tuning (default: 10)")
    words.add_argument("--paper", type=Path, nargs="*", default=[], metavar="RUN", help="also by the paper's probe")
    words.add_argument("--paper-epochs", type=int, default=EPOCHS, help=f"of that probe (default: its {EPOCHS})")
    words.add_argument("--out", type=Path, default=Path("judged.md"), help="default: judged.md")
    options = words.parse_args(arguments)
    budget = Budget(options.fraction, options.tune, options.paper_epochs)
    places: dict[str, Path] = {}
    begun: dict[tuple[int, str], Path] = {}
    for run in dict.fromkeys([*options.runs, *options.paper]):
        places[str(run)] = judge(run, budget, paper=run in options.paper)
        start = first_weights(api.read(run))
        if start in begun:
            copy_verdicts(begun[start], run / UNTRAINED, budget)
        else:
            places[f"untrained, as {run}"] = begun[start] = judge_untrained(run, budget)
        found = table(places, budget)
        options.out.write_text(found + "\n", encoding="utf-8")
        print(f"\n{found}\n", flush=True)


if __name__ == "__main__":
    study.run(main)
