"""Weights on their way in and out: a folder like a run's from other people's files, and theirs from a run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from mrp.config import ConfigError, nearest, parse
from mrp.data.config import Crop
from mrp.exchange import imported
from mrp.folder import ENVIRONMENT, flat
from mrp.interop import (
    card,
    graphs,
    huggingface_export,
    official_export,
    reading,
    runs,
    timm_export,
    verify,
)
from mrp.interop.config import WeightsName
from mrp.interop.folders import Preprocessing
from mrp.interop.found import Found
from mrp.interop.heads import linear_head
from mrp.model import NO_DATA, Model, load, run_of
from mrp.monitor.tracker import METRICS, read_lines
from mrp.objectives import classify, mae

To = Literal["timm", "transformers", "official", "onnx", "torch-export"]
_CARD = "README.md"
_CROP = 224 / 256  # of what evaluation resizes an image to, the share that it keeps
_HIDDEN = {"validation", "diagnose", "checkpoint", "track", "guard", "resume", "machine"}  # of a recipe, on a card
_JUDGED = ("accuracy", "accuracy5", "low", "high")
_ROWS = 24  # of a card's table


def bring(
    source: str, out: Path, method: str | None = None, words: Iterable[str] = (), weights: WeightsName = "student"
) -> Found:
    """Import weights into a folder that probe, finetune, report and export take for a run's."""
    values = sections(words)
    if runs.is_ours(Path(source)):
        raise ConfigError(f"{source}: is a run of mrp already; give it to probe, finetune or export as it is")
    found = reading.read(source, weights, values=values, method=method)
    imported.write(found, run_of(found, values.get("data")), out)
    return found


def sections(words: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`backbone.heads=4 data.train=PLACE` as nested sections."""
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        key, separator, text = word.partition("=")
        names = key.split(".")
        if not separator or len(names) < 2 or "" in names:
            raise ConfigError(f"'{word}' is not of the form section.key=value, for example backbone.heads=12")
        inner: dict[str, Any] = found
        for name in names[:-1]:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"'{word}' gives a key to what another word gave a value")
        inner[names[-1]] = parse(text, key)
    return found


def export(
    path: str | Path, to: str, out: Path, weights: WeightsName | None = None, step: int | None = None
) -> float | None:
    """Write a folder that the other side loads with its own call; how far its answers are from ours, where measured."""
    if to not in get_args(To):
        raise ConfigError(f"--to: '{to}' is unknown{nearest(to, get_args(To))}; allowed: {', '.join(get_args(To))}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: is there already and not empty; choose another folder with --out FOLDER")
    model = load(path, weights, step)
    unfinished = out.with_name(f".unfinished-{out.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        usage, apart = _write(model, to, unfinished)
        facts = _facts(model, to, out.name, usage, apart)
        (unfinished / _CARD).write_text(card.text(facts), encoding="utf-8")
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return apart


def _write(model: Model, to: str, folder: Path) -> tuple[str, float | None]:
    """The files of one of the other sides, how they are loaded, and how far their answers are from ours."""
    data, objective = model.run.data, model.objective
    images = _preprocessing(model)
    shape = (data.channels, *data.shape)
    head = linear_head(objective, model.missing)
    answers = graphs.Answers(objective.backbone, head, data.mean, data.std).eval()
    if to == "timm":
        usage = timm_export.write(folder, objective.backbone, head, images, _classes(model))
    elif to == "transformers":
        usage = huggingface_export.write(folder, objective, images, _classes(model), model.missing)
    elif to == "official":
        usage = official_export.write(folder, objective, model.missing)
    elif to == "onnx":
        usage = graphs.write_onnx(folder, answers, shape)
    else:
        usage = graphs.write_exported(folder, answers, shape)
    return usage, verify.difference(to, folder, answers, shape)


def _preprocessing(model: Model) -> Preprocessing:
    data = model.run.data
    crop = _CROP if isinstance(data.augment, Crop) else None
    return Preprocessing(data.shape, data.channels, data.mean, data.std, crop)


def _classes(model: Model) -> tuple[str, ...]:
    """What the labels are called, where the data is at hand."""
    if not isinstance(model.objective, classify.Objective):
        return ()
    try:
        return model.run.source("train").classes
    except ConfigError:
        return ()


def _facts(model: Model, to: str, title: str, usage: str, apart: float | None) -> card.Facts:
    """What the card says, as far as the run's folder tells; places on this machine are no one's business."""
    run, folder = model.run, model.folder
    told = {"objective", "backbone", "data"}  # by the weights of an import
    recipe = {k: v for k, v in run.resolved().items() if k not in _HIDDEN and (k in told or not model.source)}
    data = _name(str(run.data.train)) if isinstance(run.data.train, str) else "several sources"
    data = "unknown" if data == NO_DATA else data
    recipe["data"] |= {key: _anonymous(recipe["data"][key]) for key in ("train", "test", "classes")}
    if recipe.get("init"):
        recipe["init"]["from"] = _name(recipe["init"]["from"])
    starts = _json(folder / ENVIRONMENT).get("starts") or [{}]
    commands = [
        " ".join(["mrp", *(_anonymous(str(word)) for word in start.get("command") or ())]) for start in starts[:3]
    ]
    return card.Facts(
        title=title, to=to, method=run.name, classifies=linear_head(model.objective, model.missing) is not None,
        weights=model.weights, step=model.step, parameters=sum(p.numel() for p in model.backbone.parameters()),
        data=data, images=_preprocessing(model), recipe=recipe, metrics=_metrics(folder, model.step), commands=commands,
        environment=starts[-1], source=model.source, left=_left(model, to), usage=usage.replace("FOLDER", title),
        difference=apart,
    )  # fmt: skip


def _left(model: Model, to: str) -> list[str]:
    """Parts of the objective that the folder does not hold."""
    parts = {name.split(".")[0] for name in model.objective.state_dict() if name not in model.missing} - {"backbone"}
    if to == "official":
        return []
    held = {"head", "standardise"} if isinstance(model.objective, classify.Objective) else set()
    if to == "transformers" and isinstance(model.objective, mae.Objective) and not model.missing:
        held = {"decoder"}
    return sorted(parts - held)


def _metrics(folder: Path, step: int) -> dict[str, float]:
    """What was measured up to this step: the last line of the metrics, and accuracies of probes and validation."""
    found: dict[str, float] = {}
    lines = [line for line in read_lines(folder / METRICS) if line["step"] <= step]
    if lines:
        found |= {name: value for name, value in lines[-1].items() if isinstance(value, int | float)}
    for path in sorted(folder.glob("*.json")):
        if path.stem.startswith(("probe", "validation")):
            for name, value in flat(_json(path)).items():
                if name.rpartition(".")[2] in _JUDGED and isinstance(value, int | float):
                    found[f"{path.stem}.{name}"] = value
    return dict(list(found.items())[:_ROWS])


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _name(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2] or place


def _anonymous(value: Any) -> Any:
    """A value, or a word of a command, without the folders of this machine."""
    return re.sub(r"(?:~|\.{1,2})?/[^\s=,]*", lambda found: _name(found[0]), value) if isinstance(value, str) else value
