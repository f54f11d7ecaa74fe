"""The recipe of `mrp adapt`, by rules: which method, how fast, how long, and the reason for each."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mrp.adapting import PLAN
from mrp.build import measure_cost
from mrp.config import ConfigError, Duration, Tree, build, compose, dump, overridden
from mrp.data.order import Ints
from mrp.interop.init import completed
from mrp.model import Model, load
from mrp.objectives import OBJECTIVES
from mrp.run import Run, find_recipe
from mrp.schedules import main_value

SEEN = 2_000_000  # images that a run sees, repeated ones counted
EPOCHS = 10, 200  # at least and at most
SLOWER = 4  # times the learning rate of pretraining to that of going on
DECAY = 0.75  # a block's learning rate as a share of the next one's, where the decoder is new
BATCHES, BATCH = 32, (16, 1024)  # of an epoch, at least; images, at least and at most
_UNIT = 32  # pixels
_METHODS_OF_LABELS = "classes"  # an option that only methods have which learn from labels


@dataclass(frozen=True)
class Choice:
    """A value of the recipe and the reason for it."""

    key: str
    value: Any
    why: str

    @property
    def yaml(self) -> str:
        """Returns the key and its value as they stand in a recipe."""
        text = dump({self.key: self.value}).rstrip()
        return text if isinstance(self.value, Mapping) else text.strip("{}")


@dataclass(frozen=True)
class Start:
    """The weights to start from."""

    path: Path  # a run's folder or checkpoint, or the folder that foreign weights were imported into
    model: Model = field(repr=False)

    @classmethod
    def of(cls, path: Path) -> Start:
        """Opens weights of mrp."""
        return cls(path, load(path))


def recipe(
    start: Start, images: int, data: Mapping[str, Any], shapes: Ints, processes: int = 1,
    method: str | None = None, words: Sequence[str] = (),
) -> list[Choice]:  # fmt: skip
    """Returns every choice, in the order in which the recipe's file has them; `words` win over the rules.

    `images` are those to train on, `data` says where they are, and `shapes` are the height and width of all.
    """
    given = overridden(Tree({}, {}), words).values
    first = {
        "init": Choice(
            "init", {"from": str(start.path), "weights": start.model.weights} | _resampling(start, given),
            "the weights to start from; what the backbone is follows from them",
        )
    }  # fmt: skip
    faults = list[str]()
    for objective, optim in _methods(start, method):
        chosen = first | _rest(start, images, data, shapes, processes, objective, optim, given)
        tree = overridden(Tree({key: one.value for key, one in chosen.items()}, {"": PLAN}), words)
        try:
            measure_cost(build(Run, completed(tree)))
        except ConfigError as error:
            faults.append(f"{objective.value['name']}: {error}")
            continue
        changed = {key for key, one in chosen.items() if one.value != tree.values[key]}
        why = {key: one.why + "; changed on the command line" * (key in changed) for key, one in chosen.items()}
        why["objective"] += "".join(f"; {fault}" for fault in faults)
        asked = {key: "as given on the command line" for key in tree.values if key not in why}
        return [Choice(key, tree.values[key], reason) for key, reason in (why | asked).items()]
    raise ConfigError(faults[0].partition(": ")[2])


def _resampling(start: Start, given: Mapping[str, Any]) -> dict[str, Any]:
    own = start.model.run.data.shape
    data = given.get("data")
    size = data.get("size", list(own)) if isinstance(data, Mapping) else list(own)
    return {} if size == list(own) or [size, size] == list(own) else {"resample": True}


def _methods(start: Start, wanted: str | None) -> Iterator[tuple[Choice, Choice]]:
    """Yields the methods that may serve, the best one first, each with its optimizer."""
    run, lost = start.model.run, start.model.missing_part
    options: dict[str, Any]
    learns_from_labels = hasattr(run.objective, _METHODS_OF_LABELS)
    continues = not learns_from_labels and lost is None and wanted in (None, run.name)
    if continues:
        options = {"name": run.name} | run.objective.model_dump(mode="json", exclude_defaults=True)
        why = (
            f"{Path(run.name).stem} goes on: the weights are whole, and the loss is the one that they were trained with"
        )
        yield Choice("objective", options, why), _slower(start)
        return
    if wanted is not None and _METHODS_OF_LABELS in OBJECTIVES.config(wanted).model_fields:
        raise ConfigError(f"--method: {wanted} learns from labels; fine-tune with 'mrp finetune' and init={start.path}")
    width = start.model.backbone.embed_dim
    lacking = (
        f"the weights are a classifier's ({run.name})" if learns_from_labels
        else f"the weights have no {lost.split('.')[0]}" if lost else f"the weights are {run.name}'s"
    )  # fmt: skip
    for name in (wanted,) if wanted else ("mae", "simmim"):
        options = {"name": name}
        why = f"{lacking}: {name} takes the encoder and begins its other parts anew"
        if name == "mae":
            heads = max(1, min(512, width) // 32)
            options["decoder"] = {"width": heads * 32, "depth": 4, "heads": heads}
            why = f"{lacking}: mae takes the encoder, with a new decoder of 4 blocks"
        elif name == "simmim":
            options["mask_unit"] = _unit(start.model.backbone.patch_embed.patch_size, run.data.shape)
        yield Choice("objective", options, why), _gently(name)


def _unit(patch: tuple[int, int], shape: tuple[int, int]) -> int:
    """Returns the side of the squares that SimMIM hides: its paper's, where images hold several of them, or a patch."""
    fits = not any(_UNIT % side for side in patch) and not any(side % _UNIT or side < 4 * _UNIT for side in shape)
    return _UNIT if fits else max(patch)


def _slower(start: Start) -> Choice:
    """Returns the optimizer that the weights were trained with, at a quarter of its learning rate."""
    run = start.model.run
    if start.model.source:  # imported: nobody knows how they were trained
        section, whose = _published(run.name), "of the published recipe"
    else:
        dumped = {"name": run.optim.name} | run.optim.model_dump(mode="json", exclude_defaults=True)
        section, whose = _without_schedule(dumped) | {"lr": main_value(run.optim.lr)}, "of the run"
        section["per"] = run.optim.per or run.batch
    lr = section["lr"]
    why = (
        f"a quarter of the learning rate {whose} ({lr:g} per {section['per']} images of a batch): larger ones forget "
        "more of what the weights know"
    )
    return Choice("optim", section | {"lr": _schedule(lr / SLOWER)}, why)


def _gently(method: str) -> Choice:
    """Returns the optimizer of a method whose new parts have to learn before the encoder's first blocks should."""
    section = _published(method)
    why = (
        "new parts learn at the full rate, the encoder's blocks slower the earlier they are: what a new decoder asks "
        "for at first is noise to them"
    )
    return Choice("optim", section | {"lr": _schedule(section["lr"]), "layer_decay": DECAY}, why)


def _published(method: str) -> dict[str, Any]:
    """Returns the optimizer of a method's recipe for ImageNet-1K, without its schedule; of MAE's where it has none."""
    try:
        file = find_recipe(f"{Path(method).stem}_vit_base_in1k")
    except ConfigError:
        file = find_recipe("mae_vit_base_in1k")
    values = compose(file, find=find_recipe).values["optim"]
    lr = values["lr"]
    return _without_schedule(values) | {"lr": float(lr["value"] if isinstance(lr, Mapping) else lr)}


def _without_schedule(optim: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in optim.items() if key not in ("warmup", "min_lr", "drops")}


def _schedule(lr: float) -> dict[str, Any]:
    return {"kind": "cosine", "value": float(f"{lr:.4g}"), "warmup": "10 %"}


def _rest(
    start: Start, images: int, data: Mapping[str, Any], shapes: Ints, processes: int, objective: Choice,
    optim: Choice, given: Mapping[str, Any],
) -> dict[str, Choice]:  # fmt: skip
    run = start.model.run
    batch = _batch(images, processes)
    epochs = min(EPOCHS[1], max(EPOCHS[0], round(SEEN / images)))
    length = Duration(epochs, "epochs")
    with contextlib.suppress(ValueError):  # which is said when the recipe is read
        length = Duration.parse(given.get("length", length))
    tenth = Duration(max(1, round(length.amount / 10)), length.unit)
    gpu = torch.cuda.is_available()
    section, about = _images(start, data, shapes)
    choices = [
        objective,
        Choice("data", section, about),
        Choice(
            "batch", batch, f"the power of two that leaves {BATCHES} steps in an epoch or more, {BATCH[1]} at most; it "
            "is taken through the model in as many parts as memory asks for, and what does not fill an epoch's last "
            "batch is left out of that epoch",
        ),
        Choice(
            "length", f"{epochs} epochs", f"{images:,} images for training: as often as makes {SEEN:,} images seen, "
            f"between {EPOCHS[0]} and {EPOCHS[1]} times",
        ),
        optim,
        Choice("precision", "bf16" if gpu else "fp32", "of a GPU" if gpu else "a CPU is faster in it than in bf16"),
        Choice("checkpoint", {"every": str(tenth), "keep": 2}, "every tenth of the run, which goes on from the newest"),
        Choice("machine", {"workers": "auto"}, "as many decoding processes as there are cores for"),
    ]  # fmt: skip
    if run.average is not None and not start.model.source:
        each = given.get("batch")
        each = each if isinstance(each, int) and each > 0 else batch  # what else it may be is refused with the recipe
        steps = length.steps(images / each, each)
        decay = run.average.fitting(max(1, steps))
        why = "as the weights were trained"
        if decay != run.average.decay:
            why = f"over a tenth of {steps:,} steps, in which the weights' own ({run.average.decay:g}) hardly moves"
        choices.append(Choice("average", {"decay": decay}, why))
    return {one.key: one for one in choices}


def _batch(images: int, processes: int) -> int:
    wanted = 1 << max(0, int(math.log2(max(1, images // BATCHES))))
    batch = min(BATCH[1], max(BATCH[0], wanted)) // processes * processes
    if not 0 < batch <= images:
        raise ConfigError(f"{images} images are too few to train on; give {max(BATCH[0], processes)} or more")
    return batch


def _images(start: Start, data: Mapping[str, Any], shapes: Ints) -> tuple[dict[str, Any], str]:
    own, shorter = start.model.run.data, shapes[shapes[:, 0] > 0].min(1)
    height, width = own.shape
    # Of weights from elsewhere only the evaluation is known: that it squeezes whole images says nothing of training.
    imported = bool(start.model.source)
    told = {"channels", "mean", "std"} | (set() if imported else {"augment"})
    section = {
        **data, "size": height if height == width else [height, width],
        **own.model_dump(mode="json", include=told, exclude_none=True),
    }  # fmt: skip
    same = "mean and deviation" if imported else "mean, deviation and crops"
    why = (
        f"size, channels, {same} are those of the weights, which know images in no other form; the shorter sides of "
        f"these images have {shorter.min()} to {shorter.max()} pixels"
    )
    return section, why
