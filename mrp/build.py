"""Sections of a run's configuration become the parts of it: the step, its cost, the data, the optimizer."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mrp.config import ConfigError, Tree, compose, nearest, overridden
from mrp.data.labels import of_other_images, refuse_same_rows
from mrp.data.mixtures import Mixture
from mrp.data.open import open_data
from mrp.data.source import Source, listed
from mrp.data.storage.cache import Cache
from mrp.evaluate.classes import tag_numbers
from mrp.evaluate.labels import BLANKS
from mrp.evaluate.tagged import rated
from mrp.evaluators import EVALUATORS, short_name
from mrp.folder import CONFIG
from mrp.interop.runs import locate
from mrp.methodkit import Objective, ScheduledCount
from mrp.models.vit import build as build_backbone
from mrp.objectives import OBJECTIVES
from mrp.optim.config import ADAMW_STATE
from mrp.optim.config import Section as OptimizerSection
from mrp.optim.groups import groups, state_names
from mrp.optimizers import OPTIMIZERS
from mrp.prepare.mixing import DropChannels, Erase, Mix
from mrp.processes.cost import Cost, measure, reported_names
from mrp.run import Run, find_recipe, load
from mrp.schedules import main_value, schedules
from mrp.step import Prepare, Step

_COSTS: dict[str, Cost] = {}  # counting takes up to seconds, and a start asks several times


def build_step(run: Run) -> Step:
    """Returns the model with its initial weights, which the seed alone decides."""
    torch.manual_seed(run.seed)
    backbone = build_backbone(run.backbone, run.data.shape, run.data.num_channels)
    backbone.set_grad_checkpointing(run.machine.checkpointing)
    objective: Objective = OBJECTIVES.find(run.name).Objective(run.objective, backbone)
    objective.name = Path(run.name).stem
    _check_form(objective)
    return Step(_build_prepare(run), objective, run.precision)


def build_empty(run: Run) -> Step:
    """Returns the model on shapes alone, without content; torch's generator stays as it is."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return build_step(run)


def _check_form(objective: Objective) -> None:
    """Refuses a method that has its teacher judged and has none, or that cannot be called before or after a step."""
    for call in (objective.before_step, objective.after_step):
        try:
            inspect.signature(call).bind(0, None)
        except TypeError as error:
            form = f"{call.__name__}{inspect.signature(call)}"
            raise ConfigError(f"objective.name: {objective.name}: {form}: {error}; see mrp.Objective") from None
    try:
        _ = objective.encoder
    except AttributeError:
        raise ConfigError(
            f"objective.name: {objective.name} has its teacher judged (judged = 'teacher'), but has no "
            "self.teacher.backbone; take mrp.methodkit.Teacher, or leave judged out"
        ) from None


def _build_prepare(run: Run) -> Prepare:
    size, erase, mix = run.data.shape, None, None
    if run.mix.erase:
        erase = Erase(run.mix.erase, run.data.num_channels, size)
    if run.mix.pairs:
        classes = getattr(run.objective, "classes", None)
        if classes is None:
            raise ConfigError(f"mix: {run.name} has no classes whose labels could be mixed; leave mixup and cutmix out")
        mix = Mix(run.mix, classes, size, run.seed)
    drop = DropChannels(run.mix.drop_channels) if run.mix.drop_channels else None
    return Prepare(run.data.mean, run.data.std, erase, mix, drop)


def measure_cost(run: Run) -> Cost:
    """Returns parameters, FLOPs and memory, counted on shapes, once per process; torch's generator stays as it is."""
    key = repr((run.identity(data=""), run.machine.checkpointing))  # all that build_step and an optimizer read
    if key not in _COSTS:
        step = build_empty(run)
        cost = measure(step, run.data.num_channels, run.data.shape, run.data.views)
        changes = any(isinstance(part, ScheduledCount) and part.changes for part in step.modules())
        _COSTS[key] = replace(cost, moments=_moments(run.optim, step), changes=changes)
    return _COSTS[key]


def _moments(section: OptimizerSection, module: nn.Module) -> float:
    """Returns how many numbers an optimizer keeps per trained parameter; of one that does not say so, AdamW's two."""
    kind: Any = OPTIMIZERS.find(section.name).Optimizer
    usual = getattr(kind, "state_names", ADAMW_STATE)
    names_of = getattr(kind, "state_names_of", lambda name, parameter: usual)
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    kept = sum(p.numel() * len(set(names_of(name, p)) - {"step"}) for name, p in trained)
    return kept / max(1, sum(parameter.numel() for _, parameter in trained))


def build_optimizer(section: OptimizerSection, module: nn.Module) -> torch.optim.Optimizer:
    """Returns the optimizer of a module; a flag on the device (`found_inf`) tells it to leave everything as it is."""
    kind: Callable[..., torch.optim.Optimizer] = OPTIMIZERS.find(section.name).Optimizer
    scheduled = {key: main_value(getattr(section, key)) for key, _ in schedules(section)}
    numbers = section.model_copy(update=scheduled)  # what an optimizer is built from; the loop sets those of each step
    if section.name.endswith(".py"):
        _check_own(kind, numbers)
    layers = section.layer_decay, section.layer_decay_from == "embedding"
    if "weight_decay" not in scheduled:
        return kind(groups(module, main_value(section.weight_decay), *layers), numbers)
    parts = groups(module, 1.0, *layers)  # whatever it is now, it may become another
    return kind([part | {"decays": part["weight_decay"] > 0} for part in parts], numbers)


def _check_own(kind: Callable[..., torch.optim.Optimizer], section: OptimizerSection) -> None:
    """Refuses an optimizer that carries a gradient that is not finite into the weights, or loses its state."""
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.full_like(weight, torch.nan)
    optimizer = kind([{"params": [weight]}], section)
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    if not bool((weight == 1).all()):
        raise ConfigError(
            f"optim.name: {section.name} changes the weights although its attribute found_inf is set, so a gradient "
            "that is not finite would reach them; see mrp/optimizers/lars.py for how to obey it"
        )
    weight.grad = torch.ones_like(weight)
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    optimizer.step()
    held, listed_names = sorted(optimizer.state[weight]), state_names(optimizer).get(weight)
    if listed_names is not None and not set(held) <= set(listed_names):
        raise ConfigError(
            f"optim.name: {section.name} keeps {', '.join(held)} per weight, but its state_names are "
            f"{', '.join(sorted(listed_names)) or 'none'}: a run that goes on would lose it; name all of it there"
        )


def open_source(run: Run, split: Literal["train", "test"]) -> Source:
    """Returns the data that the run trains on, or that it is evaluated on."""
    return open_data(run.data, split, Cache(run.machine.cache))


def check_classes(run: Run, source: Source) -> None:
    """Refuses data whose labels are not those that the objective tells apart."""
    wanted, learns_tags = getattr(run.objective, "classes", None), getattr(run.objective, "learns_tags", False)
    if wanted is None:
        return
    names, what = (source.tags, "tags") if learns_tags else (source.classes, "classes")
    if not names and (source.tags or source.classes):
        raise ConfigError(_of_other_kind(run, source, learns_tags))
    if not names:
        parts = source.sources if isinstance(source, Mixture) else ()
        differ = next((kind for kind in ("classes", "tags") if any(getattr(part, kind) for part in parts)), "")
        lacks = f"mixes sources whose {differ} differ, so it has no labels" if differ else "has no labels"
        raise ConfigError(f"data.train: {lacks}, which {run.name} needs; take other data")
    if len(names) != wanted:
        raise ConfigError(
            f"objective.classes: {wanted}, but data.train has {len(names)} {what}; set objective.classes={len(names)}"
        )
    if learns_tags and not rated(source.tagged):
        raise ConfigError(
            "data.train: of no tag it is known that some images have it and others not, so nothing can be learned; "
            f"{BLANKS}, or take other data"
        )


def _of_other_kind(run: Run, source: Source, learns_tags: bool) -> str:
    """Returns what to do where data have tags and classes are learned, or the reverse."""
    loss = getattr(run.objective, "loss", None)
    if learns_tags:
        return (
            f"objective.loss: {loss}, but data.train has classes, one per image; set objective.loss=cross_entropy "
            f"objective.classes={len(source.classes)}{_best(run, 'mean_', 'accuracy')}, or take data with tags"
        )
    if loss is None:
        return f"data.train: has tags, and {run.name} needs one class per image; take data with classes"
    return (
        f"objective.loss: {loss}, but data.train has tags, of which an image may have several; set objective.loss=tags "
        f"objective.classes={len(source.tags)}{_best(run, 'acc', 'mean_ap')}"
    )


def _best(run: Run, others: str, own: str) -> str:
    """Returns the word that a run needs besides whose best checkpoint is by a number of classes, or of tags."""
    best = run.checkpoint.best
    return f" checkpoint.best=validation/{own}" if best and best.name.startswith(f"validation/{others}") else ""


def check_best(run: Run) -> None:
    """Refuses to keep the best checkpoint by a metric that the run never logs."""
    best = run.checkpoint.best
    if best is None:
        return
    metrics, per_sample = reported_names(build_empty(run), run.data.num_channels, run.data.shape, run.data.views)
    known, unknown = {"loss", "gradient_norm", *metrics}, []
    for name, section in {"diagnose": run.diagnose, "validation": run.validation, **run.evaluate}.items():
        if section.every is None:
            continue
        evaluator = EVALUATORS.find(name).Evaluator
        label, values = evaluator.label or short_name(name), evaluator.value_names(per_sample)
        prefixes = [label, f"{label}/average"] if run.average and evaluator.of_average else [label]
        known.update(f"{prefix}/{value}" for prefix in prefixes for value in values or ())
        unknown += [label] if values is None else []
    if best.name not in known and best.name.partition("/")[0] not in unknown:
        hint = nearest(best.name, known)
        if best.name.startswith("validation/acc") and "validation/mean_ap" in known:
            hint = "; of tags take validation/mean_ap"
        of_evaluators = "".join(f", or one of {label}/" for label in unknown)
        raise ConfigError(
            f"checkpoint.best: {best.name} is not among the metrics of this run{hint}; it logs "
            f"{', '.join(sorted(known))}{of_evaluators}"
        )


def open_validation(run: Run, train: Source) -> Source | None:
    """Returns the data that the run is validated on while it trains, if it is; training has all their classes."""
    if run.validation.every is None:
        return None
    if run.data.test is None:
        raise ConfigError("validation.every: data.test is not set, so there is nothing to validate on; set it")
    source = open_source(run, "test")
    refuse_same_rows([("data.train", train), ("data.test", source)])
    if getattr(run.objective, "learns_tags", False):
        tag_numbers(train.tags, source.tags)
        if not rated(source.tagged):
            raise ConfigError(
                "data.test: of no tag it is known that some of its images have it and others not, so none can be "
                f"judged; {BLANKS}, or take other data"
            )
    elif getattr(run.objective, "classes", None) is not None:
        if not source.classes:
            raise ConfigError("data.test: has no labels, so accuracy cannot be measured; take data with class folders")
        known = set(train.classes)
        if odd := next((name for name in source.classes if name not in known), None):
            raise ConfigError(
                f"data.test: has a class '{odd}' that data.train has not, which has the classes "
                f"{listed(train.classes)}; take data with the same classes"
            )
    return source


def follow_up(recipe: str, path: Path, overrides: Iterable[str] = (), folder: Path | None = None) -> Run:
    """Returns a recipe of classification on a pretrained run's weights and data: its linear probe, its fine-tuning.

    The data are the run's own, as far as no word names others. Sizes, statistics and classes, or tags, are the data's;
    the batch is the recipe's, or the largest power of two that the data fill (the learning rate follows where the
    recipe gives it per number of images).
    """
    origin, _ = locate(path)
    words = list(overrides)
    about_data = [word for word in words if word.partition("=")[0].strip().split(".")[0] == "data"]
    other = overridden(Tree({}, {}), about_data).values.get("data", {})
    if isinstance(other, dict):
        labels = of_other_images(load(origin / CONFIG).data.labels, other).get("labels")
        about_data += [] if labels is None else [f"data.labels={json.dumps(labels)}"]
        about_data[:0] = ["data.group=null"] if {"train", "test"} & other.keys() else []  # a run's are of its own data
    pretraining = load(origin / CONFIG, about_data)
    source = open_source(pretraining, "train")
    names = source.tags or source.classes
    if not names:
        raise ConfigError(
            "data.train: has no labels, which this recipe learns from; add others: data.train=PATH data.test=PATH"
        )
    protocol = compose(recipe, words, find_recipe).values
    largest = 1 << (len(source).bit_length() - 1)
    data = pretraining.data.model_dump(mode="json") | {"augment": protocol["data"]["augment"], "views": 1}
    first = [
        f"init={json.dumps(str(path))}", "backbone=null", f"data={json.dumps(data)}",
        f"objective.classes={len(names)}", f"batch={min(protocol['batch'], largest)}",
        *(["objective.loss=tags"] if source.tags else []),
    ]  # fmt: skip
    return load(recipe, [*first, *words], folder)
