"""A file of one's own, checked: which parts it defines, and what becomes of each check."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from mrp import outside
from mrp.build import build_empty
from mrp.check import augmentations, evaluators, objectives, optimizers, sources, tiny, trackers
from mrp.check.outcome import Outcome, tried
from mrp.config import ConfigError, Tree, overridden
from mrp.data.augmentations import AUGMENTATIONS
from mrp.data.sources import SOURCES
from mrp.optimizers import OPTIMIZERS
from mrp.run import Run
from mrp.trackers import TRACKERS

_KINDS = {name: name.lower() for name in ("Objective", "Source", "Augmentation", "Evaluator", "Optimizer", "Tracker")}
_LR = {"lr": 1e-3}


def check(file: Path, words: Sequence[str] = ()) -> Iterator[tuple[str, Outcome]]:
    """Yields the kind of part and the outcome of each check of a file; `words` are options (key=value) of the part."""
    file = file.absolute()
    module = outside.load(file, "part")
    kinds = [kind for name, kind in _KINDS.items() if hasattr(module, name)]
    if not kinds:
        raise ConfigError(f"{file}: defines none of {', '.join(_KINDS)}; CONTRIBUTING.md has a table of them")
    for kind in kinds:
        for outcome in _outcomes(kind, file, words):
            yield kind, outcome


def _outcomes(kind: str, file: Path, words: Sequence[str]) -> Iterator[Outcome]:
    options = dict(overridden(Tree({}, {}), words).values)
    section = {"name": str(file), **options}
    with tempfile.TemporaryDirectory() as folder:
        if kind == "objective":
            subject: Any = _fitting(file, words)
            checks: tuple[Any, ...] = (*objectives.CHECKS, objectives.two_processes_are_one)
        elif kind == "source":
            subject, checks = SOURCES.read(section), sources.CHECKS
        elif kind == "augmentation":
            subject, checks = AUGMENTATIONS.read(section), augmentations.CHECKS
        elif kind == "evaluator":
            subject, checks = evaluators.Trial(str(file), options, Path(folder)), evaluators.CHECKS
        elif kind == "optimizer":
            OPTIMIZERS.find(str(file))
            subject, checks = tiny.tiny_run(optimizers.METHOD, optim=_LR | section), optimizers.CHECKS
        else:
            subject, checks = TRACKERS.read(section), trackers.CHECKS
        for each in checks:
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # a run's own lines
                outcome = tried(each, file, subject)
            yield outcome


def _fitting(file: Path, words: Sequence[str]) -> Run:
    """Returns a tiny run of a method, or says once, in place of every check, that it does not fit one."""
    try:
        run = tiny.tiny_run(tiny.small(str(file), words))
        build_empty(run)
    except ConfigError as error:
        raise ConfigError(
            f"{file}: does not fit the 16 patches of 4 pixels that it is tried on: {error}; give options that do "
            "(key=value), or let its Config have them as `small`"
        ) from None
    return run
