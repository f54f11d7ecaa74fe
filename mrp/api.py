"""What the command line does, for Python: `mrp.load("runs/demo").features(images)`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mrp import judging, probing, progress
from mrp.config import ConfigError, as_words
from mrp.data.handed import handed_over
from mrp.interop.config import WeightsName
from mrp.model import Model as Model
from mrp.model import load as load
from mrp.model import read as read
from mrp.model import untrained as untrained
from mrp.probing import EVALUATORS as EVALUATORS
from mrp.probing import Probed as Probed
from mrp.probing import features as features
from mrp.probing import probe as probe
from mrp.report import gallery, tagged
from mrp.report.judged import page_of, write_all
from mrp.report.page import Page
from mrp.run import Run, run_folder
from mrp.run import load as load_run
from mrp.train import train


def pretrain(recipe: str | Path, *words: str, folder: str | Path | None = None, **overrides: Any) -> Path:
    """Trains a recipe as `mrp pretrain` does, and returns the run's folder (by default `runs/RECIPE`).

    Values that replace the recipe's are keywords (`length="4 steps"`, `optim={"lr": 1e-3}`, `**{"optim.lr": 1e-3}`), or
    words as on the command line (`"optim.lr=1e-3"`). `data` may also be an object that gives images by number, such as
    a dataset of torchvision, or `{"train": OBJECT, "test": OBJECT}`. A run that was interrupted continues from its
    newest checkpoint. Several processes take part where a launcher such as torchrun starts this script several times.
    """
    with handed_over(overrides) as values:
        target = run_folder(recipe, folder)
        run = load_run(recipe, [*words, *as_words(values)], target)
        if run.init is None and (key := _for_pretrained_weights(run)):
            raise ConfigError(
                f"init: {key} is for pretrained weights, and none are given; fine-tune some with 'mrp finetune' and "
                f"init=RUN, or leave {key} out to train from scratch"
            )
        train(run, target)
    return target


def _for_pretrained_weights(run: Run) -> str | None:
    """Returns an option that makes no sense for weights that nobody has trained, where a run uses one."""
    if run.optim.layer_decay is not None:
        return "optim.layer_decay"
    return next((f"objective.{key}" for key in ("frozen", "frozen_blocks") if getattr(run.objective, key, None)), None)


def finetune(recipe: str | Path, *words: str, folder: str | Path | None = None, **overrides: Any) -> Path:
    """Fine-tunes pretrained weights (`init`) as `mrp finetune` does; takes the same arguments as `pretrain`.

    Returns the run's folder, where `validation.json` holds the results on the test data.
    """
    with handed_over(overrides) as values:
        target = run_folder(recipe, folder)
        run = load_run(recipe, [*words, *as_words(values)], target)
        if not hasattr(run.objective, "classes"):
            raise ConfigError(
                f"objective: {run.name} pretrains, and fine-tuning needs a recipe of classification; take one such as "
                "finetune_mae_vit_base_in1k, or use 'mrp pretrain', which takes init= too"
            )
        if run.init is None:
            raise ConfigError(
                "init: the pretrained weights to fine-tune are not given; add init=RUN (a run's folder, a checkpoint, "
                "or an official file), or train from scratch with 'mrp pretrain'"
            )
        train(run, target)
    return target


class Judged(NamedTuple):
    """What `mrp judge` ends with: the page with all results, and the folder that holds it in every form."""

    page: Page
    folder: Path


def evaluate(
    paths: str | Path | Sequence[str | Path],
    *words: str,
    tests: Sequence[str] = (),
    real: str | Path | None = None,
    head: str | Path | None = None,
    weights: WeightsName | None = None,
    again: bool = False,
    out: str | Path | None = None,
    **overrides: Any,
) -> Judged | None:
    """Measures classifiers on test sets as `mrp evaluate` does; with several processes, all but the first get None.

    `tests` are texts such as "v2=/data/imagenetv2,by_index", `real` is the file of ReaL labels of the first test set,
    and `head` names the classifier's classes, one per line. `data={"test": PATH}` is one more test set; where no
    test set is given, the run's own is taken. The page is written where `out` names a folder.
    """
    given, asked = _several(paths), probing.sections([*words, *as_words(overrides)])
    plan, changes = judging.plan_of_tests(tests, str(real) if real else None, asked, given[0], weights)
    judged = judging.carry_out(plan, given, weights, again=again, changes=changes, head=head)
    if not progress.is_first():
        return None
    judged = [replace(one, notes=(*one.notes, *_by_tag(one))) for one in judged]
    found = Judged(page_of(plan, judged, of_answers=True), Path(out or judged[0].folder))
    if out is not None:
        write_all(found.page, found.folder, plan.suite)
    return found


def _by_tag(judged: judging.Judged) -> Iterator[str]:
    """Yields a line for each test set of a classifier of tags."""
    for task, record in judged.records.items():
        if isinstance(every := record.result.get("tags"), list):
            where = " on ".join(filter(None, (judged.path.name, task.label)))
            yield f"AP and AUROC in percent by tag, {where}: {tagged.in_words(every)}."


def judge(
    paths: str | Path | Sequence[str | Path],
    suite: str | Path,
    *words: str,
    weights: WeightsName | None = None,
    untrained: bool = False,
    again: bool = False,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    head: str | Path | None = None,
    **places: Any,
) -> Judged | None:
    """Judges weights by a suite as `mrp judge` does; with several processes, all but the first get None.

    Keywords (`imagenet="/data/imagenet"`) or words (`"imagenet=/data"`) say where the data of the suite are.
    """
    if unclear := next((word for word in words if "=" not in word), None):
        raise ConfigError(f"{unclear}: is not of the form PLACE=PATH; give several weights as a list")
    given = dict(word.split("=", 1) for word in words if "." not in word.partition("=")[0])
    given |= {name: str(place) for name, place in places.items()}
    plan = judging.plan_of_suite(suite, given)
    changes = probing.sections(word for word in words if "." in word.partition("=")[0])
    judged = judging.carry_out(plan, _several(paths), weights, untrained, again, changes, cache, head)
    if not progress.is_first():
        return None
    found = Judged(page_of(plan, judged), Path(out or Path("runs") / f"judge-{plan.suite}"))
    write_all(found.page, found.folder)
    return found


def _several(paths: str | Path | Sequence[str | Path]) -> list[str | Path]:
    given: list[str | Path] = [
        os.path.expanduser(path) for path in ([paths] if isinstance(paths, str | Path) else paths)
    ]
    if not given:
        raise ConfigError("no weights are given; name a run, a checkpoint or a file")
    return given


def held_out(run: Run, count: int) -> Tensor:
    """Returns some test images as the model takes them; training images where the run has no others."""
    return gallery.held_out(run, count).images
