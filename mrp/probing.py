"""What a trained model is worth: evaluators measure it on its run's data or on others, and results are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mrp import outside
from mrp.apart import apart
from mrp.build import build_step, open_source
from mrp.config import ConfigError, Tree, as_words, build, overridden
from mrp.data.config import Config as Data
from mrp.data.handed import handed_over
from mrp.data.labels import of_other_images
from mrp.data.source import Source
from mrp.evaluate import feature_files, results, statistics
from mrp.evaluate.classes import BY_NAME
from mrp.evaluate.config import Section
from mrp.evaluate.contract import Result, Setting, checked, never
from mrp.evaluate.measures import MEAN_PER_CLASS
from mrp.evaluate.readout import Readout
from mrp.evaluate.results import TRAINED, UNTRAINED, Record
from mrp.evaluate.tables import Tables, model_digest, weights_digest
from mrp.evaluators import make, read_options, short_name, version_of
from mrp.interop import runs
from mrp.interop.config import WeightsName
from mrp.model import Model, load, resized
from mrp.plan import threads
from mrp.processes.halves import is_bf16_slow
from mrp.processes.join import from_all, from_first, join_for_evaluation
from mrp.processes.threads import limited
from mrp.progress import say
from mrp.run import Machine, Run
from mrp.step import Step

CACHE = "features"  # the folder of a run that keeps feature tables
EVALUATORS, TAGGED = ("linear", "knn", "few_shot"), ("tags",)  # measured unless others are named, and on tags
_BATCH = 256  # images that a process takes through the model at once
# What can be changed for an evaluation, section by section.
_CHANGEABLE = {"data": ("train", "test", "classes", "fraction", "labels", "group", "size"), "machine": ("workers",)}


@dataclass(frozen=True, slots=True)
class Probed:
    """What was measured of the trained backbone and perhaps the untrained one, and the file that keeps it.

    The results are those of each evaluator for each backbone; empty in all processes but the first.
    """

    path: Path
    results: dict[str, dict[str, dict[str, Any]]]


@apart()
def probe(
    path: str | Path,
    *words: str,
    evaluators: Sequence[str] | None = None,
    weights: WeightsName | None = None,
    step: int | None = None,
    baseline: bool = False,
    cache: str | Path | None = None,
    classes: str = BY_NAME,
    **overrides: Any,
) -> Probed:
    """Measures the features of a run or of imported weights as `mrp probe` does; returns the results and their file.

    Unless `evaluators` are named, these are linear, knn and few_shot, or tags where the data have tags. `baseline`
    measures the untrained backbone too, `cache` is the folder that keeps the features, and `classes` says which class
    of the training data each test class is (see `mrp.evaluate.classes`). Other data and options of the evaluators are
    keywords (`data={"fraction": 0.1}`) or words (`"linear.layers=2"`), as for `pretrain`.
    """
    with handed_over(overrides) as values:
        given, named = [*words, *as_words(values)], evaluators or (*EVALUATORS, *TAGGED)
        changes = sections(given, [short_name(name) for name in named])
        chosen = read_options({name: changes.get(short_name(name)) for name in named})
        loaded = load(path, weights, step)
        model = changed(loaded, changes)
        setting = setting_of(model, results_folder(path, model), cache, classes)
        if not evaluators:
            suitable = TAGGED if setting.train.tags else EVALUATORS
            sections(given, suitable)  # the others take no options
            chosen = {name: chosen[name] for name in suitable}
        subjects = [(Subject.of(path, loaded), model.module)]
        if baseline:
            module = build_step(model.run).eval()
            subjects.append((Subject.of(path, replace(model, module=module), UNTRAINED), module))
        data = setting.described(own=classes == BY_NAME and not changes.get("data"))
        measured, records = dict[str, dict[str, dict[str, Any]]](), []
        for subject, module in subjects:
            with computing(model.run, setting):
                found = _measure(module, chosen, setting, subject.step)
            measured[subject.backbone] = {short_name(name): plain(result) for name, result in found.items()}
            if setting.processes.is_main_process:
                records += [
                    subject.record(subject.about(name, section, data, setting.precision), found[name], setting)
                    for name, section in chosen.items()
                ]
        if not setting.processes.is_main_process:
            return Probed(setting.folder / results.FILE, {})
        return Probed(results.add(setting.folder, records), measured)


@dataclass(frozen=True, slots=True)
class Subject:
    """Weights that are measured, and what their results are kept under."""

    backbone: str  # TRAINED or UNTRAINED
    step: int
    weights: str
    source: str  # the path of imported weights; empty for those of a run
    digest: str  # of the whole model, as it was loaded
    precision: str  # of its configuration

    @classmethod
    def of(cls, path: str | Path, model: Model, backbone: str = TRAINED) -> Subject:
        """Describes a model that was loaded from a path."""
        place = Path(path).expanduser()
        source = "" if runs.is_ours(place) else str(place.absolute())
        step = model.step if backbone == TRAINED else 0
        told = model.run.data.model_dump(mode="json", include={"augment"}, exclude_defaults=True)
        digest = model_digest(model.module, shown=repr(told) if source and told else "")
        return cls(backbone, step, model.weights, source, digest, model.run.precision)

    def about(self, name: str, section: Section, data: Mapping[str, Any], precision: str) -> Record:
        """Returns the record of a measurement in some precision, still without its result."""
        options = section.model_dump(mode="json", exclude={"every"}, exclude_defaults=True)
        code = outside.digest(Path(name)) if name.endswith(outside.SUFFIX) else version_of(name)
        if files := section.content():  # then the data are other ones than the run's
            both = hashlib.sha256(f"{data['content']} {files}".encode()).hexdigest()[:16]
            data = {**data, "content": both, "own": False}
        about = self.backbone, self.step, self.weights, dict(data)
        other = precision if precision != self.precision else ""
        return Record(short_name(name), options, *about, {}, self.source, self.digest, code, precision=other)

    def record(self, about: Record, result: Result, setting: Setting) -> Record:
        """Returns the record of a measurement with its result, whose outcomes are written."""
        record = replace(about, result=plain(result))
        if result.right is None or setting.test is None or len(result.right) != len(setting.test):
            return record
        classes = setting.class_numbers[torch.from_numpy(np.asarray(setting.test.labels, np.int64))]
        if result.counted is not None:
            classes = torch.where(result.counted.cpu(), classes, results.NOT_COUNTED)
        right, groups = result.right.cpu().numpy(), setting.groups(setting.test)
        outcomes = results.Outcomes(right, classes.numpy().astype(np.int32), groups)
        mean = statistics.mean_per_class(*outcomes.counted()).of_accuracy()
        return results.with_outcomes(
            setting.folder, replace(record, result=record.result | {MEAN_PER_CLASS: mean}), outcomes
        )


def measure(
    module: Step, evaluators: Mapping[str, Section], setting: Setting, step: int = 0
) -> dict[str, dict[str, Any]]:
    """Returns what each evaluator measures of a model, as plain data; of several processes the first one gets it."""
    return {short_name(name): plain(found) for name, found in _measure(module, evaluators, setting, step).items()}


def plain(result: Result) -> dict[str, Any]:
    """Returns a result as it is kept."""
    return result.details or dict(result.values)


def _measure(module: Step, evaluators: Mapping[str, Section], setting: Setting, step: int) -> dict[str, Result]:
    with tables_of(module, [setting]):
        return {
            name: checked(make(name, section, setting).measure(module, step, never), short_name(name))
            for name, section in evaluators.items()
        }


def tables_of(module: Step, settings: Sequence[Setting]) -> AbstractContextManager[None]:
    """Moves a model to the device; returns the block in which feature tables are those of its weights.

    Refuses weights or data that another process has read differently: each opens them by itself, perhaps while a run
    goes on saving, or from a disk of its own. One table would mix features of both.
    """
    module.to(settings[0].processes.device)
    digest = weights_digest(module)
    sources = [source for each in settings for source in (each.train, each.test) if source is not None]
    for setting in settings:
        for source in (setting.train, setting.test):
            if source is not None:
                setting.groups(source)  # a pattern that does not fit is told of before anything is computed
    seen = from_all((digest, [source.identity for source in sources]))
    if any(weights != digest for weights, _ in seen):
        raise ConfigError(
            "the processes have read different weights; if a run goes on saving there, name a checkpoint with --step"
        )
    if any(data != seen[0][1] for _, data in seen):
        raise ConfigError("the processes see different data; copy one and the same set to every machine")
    return settings[0].tables.of(digest)


def features(
    path: str | Path,
    out: Path,
    split: Literal["train", "test"] = "test",
    layer: int | None = None,
    pooling: str | None = None,
    weights: WeightsName | None = None,
    step: int | None = None,
    overrides: Iterable[str] = (),
    cache: str | Path | None = None,
) -> tuple[int, int]:
    """Writes the features of a split to a file, .npy or .parquet; returns how many images, and how wide each row is.

    Of several processes the first one writes, and the others return 0.
    """
    feature_files.check(out)
    model = changed(load(path, weights, step), sections(overrides))
    if split == "test" and not model.run.data.test:
        raise ConfigError("data.test is not set; give data.test=PATH, or --split train")
    source = open_source(model.run, split)  # the other split may be gone
    setting = setting_of(model, results_folder(path, model), cache, opened=(source, None))
    readout = Readout.of(model.module, layer, pooling) if layer or pooling else Readout.own(model.module)
    with computing(model.run, setting), tables_of(model.module, [setting]):
        table = setting.features(source, model.module, readout, never)
    if table is None:
        return 0, 0
    columns = table.columns[readout.blocks[0]]
    feature_files.write(out, columns, source)
    return columns.shape[0], columns.shape[1]


def computing(run: Run, setting: Setting) -> AbstractContextManager[None]:
    """Lets torch compute with as many threads as in a training with as much work: a forward pass is a third of it."""
    return limited(threads(run, setting.batch // 3, setting.processes.device))


def results_folder(path: str | Path, model: Model) -> Path:
    """Returns where the results of a model are written: its run's folder, or one for imported weights."""
    return model.folder if runs.is_ours(Path(path).expanduser()) else results.folder_of_import(Path(path))


def changed(model: Model, words: Mapping[str, Mapping[str, Any]]) -> Model:
    """Returns a model as it is evaluated: on other data, on images of another size, with the machine's precision."""
    run = changed_run(model, words)
    if (run.precision, model.run.precision) == ("fp32", "bf16"):
        say("features in float32: this processor only emulates bfloat16, which the configuration asks for")
    module = model.module if run.data.shape == model.run.data.shape else resized(model.module, run)
    module.precision = run.precision
    return replace(model, run=run, module=module)


def changed_run(model: Model, words: Mapping[str, Mapping[str, Any]]) -> Run:
    """Returns the configuration of a model as it is evaluated."""
    own = model.run.data.model_dump(mode="json")
    new = of_other_images(model.run.data.labels, words.get("data", {}))
    if {"train", "test"} & new.keys():  # the names of other images may have another form
        own |= {"group": None}
    machine = model.run.machine.model_dump(mode="json") | dict(words.get("machine", {}))
    replaced = {"data": build(Data, Tree(own | new, {})), "machine": build(Machine, Tree(machine, {}))}
    # Files of weights do not tell the precision that they were trained in; runs do.
    cuda = torch.cuda.is_available()
    precision = "bf16" if model.source and cuda else model.run.precision
    if precision == "bf16" and not cuda and is_bf16_slow(torch.device("cpu")):
        precision = "fp32"
    return model.run.model_copy(update={**replaced, "precision": precision})


def setting_of(
    model: Model, folder: Path, cache: str | Path | None = None, classes: str = BY_NAME,
    opened: tuple[Source, Source | None] | None = None,
) -> Setting:  # fmt: skip
    """Returns the setting in which a model is measured after its training; `opened` are its data, if open already.

    All processes compute in the first one's precision, which may follow from a measurement of its processor.
    """
    run, processes = model.run, join_for_evaluation()
    model.module.precision = from_first(run.precision)
    train, test = opened or (open_source(run, "train"), open_source(run, "test") if run.data.test else None)
    return Setting(
        data=run.data, train=train, test=test, processes=processes, batch=_BATCH, folder=folder,
        workers=run.machine.workers_among(processes.num_processes), classes=classes,
        tables=Tables(Path(cache) if cache else folder / CACHE), precision=model.module.precision,
    )  # fmt: skip


def sections(words: Iterable[str], evaluators: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Returns `section.key=value` words as sections: of the data, of the machine, and of the evaluators."""
    tree = overridden(Tree({}, {}), words)
    for word in tree.origins:
        section, _, key = word.partition(".")
        if "." not in word and isinstance(tree.values[section], Mapping):
            continue
        if key.partition(".")[0] not in _CHANGEABLE.get(section, ()) and section not in evaluators:
            known = [f"{section}.{key}=" for section, keys in _CHANGEABLE.items() for key in keys]
            allowed = ", ".join([*known, *(f"{name}.KEY=" for name in evaluators)])
            raise ConfigError(f"{word}: cannot be changed here; allowed: {allowed}")
    return dict(tree.values)
