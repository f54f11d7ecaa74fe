"""Weights of other projects, turned into a folder that probe, finetune, report and export take for a run's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mrp.build import build_optimizer
from mrp.checkpoint.saver import save_now
from mrp.config import ConfigError, Tree, overridden
from mrp.exchange.folders import check_is_new
from mrp.folder import CONFIG, IDENTITY, claim, recorded
from mrp.interop import reading, runs
from mrp.interop.config import WeightsName
from mrp.interop.weights import ModelWeights
from mrp.model import origin, run_of, step_of

_IMPORTED = "imported"  # in place of the content of a run's data


def is_imported(folder: Path) -> bool:
    """Returns whether a run's folder holds what was imported, and nothing that was trained."""
    return str(recorded(folder, "data.content")).startswith(_IMPORTED)


def import_weights(
    source: str, out: Path, method: str | None = None, words: Iterable[str] = (), weights: WeightsName = "student"
) -> ModelWeights:
    """Writes a folder like that of a run that has ended, with one checkpoint at step 0; returns what it holds."""
    values = overridden(Tree({}, {}), words).values
    if runs.is_ours(Path(source)):
        raise ConfigError(f"{source}: is a run of mrp already; give it to probe, finetune or export as it is")
    read = reading.read(source, weights, values=values, method=method)
    check_is_new(out)
    run = run_of(read, values.get("data"))
    step = step_of(read, run)
    with claim(out, run.resolved(), run.identity(f"{_IMPORTED} {read.digest}")):
        about = {name: (out / name).read_text(encoding="utf-8") for name in (CONFIG, IDENTITY)}
        save_now(out, 0, step, build_optimizer(run.optim, step), origin(read), keep=1, about=about)
    return read
