"""The whole typed tree of one run, and what follows from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

import mrp
from mrp.checkpoint.checkpoints import Config as Checkpoint
from mrp.config import ConfigError, Duration, Node, build, compose, nearest
from mrp.data import mixtures
from mrp.data.config import CacheConfig
from mrp.data.config import Config as Data
from mrp.data.mixtures import Mixed
from mrp.data.open import open_data
from mrp.data.order import VERSION as ORDER_VERSION
from mrp.data.order import Order
from mrp.data.source import Source
from mrp.data.storage.cache import Cache
from mrp.evaluate.validation import Config as Validation
from mrp.folder import CONFIG
from mrp.interop.config import Config as Init
from mrp.interop.init import completed
from mrp.interop.runs import locate
from mrp.methodkit import Objective
from mrp.models.vit import Config as Backbone
from mrp.models.vit import build as build_backbone
from mrp.monitor.alarm import Config as Diagnose
from mrp.monitor.guard import Config as Guard
from mrp.monitor.tracker import Config as Track
from mrp.objectives import OBJECTIVES
from mrp.optim.average import Config as Average
from mrp.optim.optimizer import Section as Optimizer
from mrp.prepare.mixing import Config as Mixing
from mrp.prepare.mixing import Erase, Mix
from mrp.processes.cost import Cost
from mrp.processes.cost import measure as measure_cost
from mrp.step import Precision, Prepare, Step

_OF_THE_MACHINE = {"validation", "diagnose", "checkpoint", "track", "guard", "resume", "machine"}
_IN_THE_CONTENT = {"train", "test", "classes", "fraction", "damaged"}  # what of `data:` its content stands for


class Machine(Node):
    """`machine:`: what does not change results."""

    workers: int = Field(4, ge=0)  # decoding processes a rank; 0 decodes in the training process
    compile: Literal["auto", "yes", "no"] = "auto"  # auto: on CUDA
    deterministic: bool = False  # bitwise equal results on CUDA too, more slowly
    micro_batch: Annotated[int, Field(gt=0)] | Literal["auto"] = (
        "auto"  # images a process takes through the model at once
    )
    cache: CacheConfig = CacheConfig()  # of remote shards
    watchdog: float | None = Field(600, gt=0)  # seconds without progress after which it is said who waits for whom
    give_up: float | None = Field(None, gt=0)  # seconds without progress after which the process ends itself
    requeue_code: int = Field(0, ge=0, le=255)  # the exit code of a run that was asked to end before it was complete
    shard: Literal["none", "full"] = "none"  # full: each process holds a part of the model (FSDP2), not all of it
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, about a third more time

    @model_validator(mode="after")
    def _watched(self) -> Machine:
        if self.give_up is not None and self.watchdog is None:
            raise ValueError("give_up needs the watchdog, which is off; set machine.watchdog, or leave give_up out")
        return self


class Resume(Node):
    """`resume:`, what may differ from the run that the folder holds."""

    allow: tuple[str, ...] = ()  # keys, or sections that hold them, such as [optim.lr, data]; what changes is kept


class Run(Node):
    """One run. Sections that change results come first; `diagnose`, `checkpoint`, `track` and `machine` do not."""

    objective: Annotated[SerializeAsAny[Node], BeforeValidator(OBJECTIVES.read)] = Field(
        json_schema_extra={"choose": OBJECTIVES.config_of}  # type: ignore[dict-item]
    )
    backbone: Backbone
    data: Data
    batch: int = Field(gt=0)  # over all processes
    coupled_batch: int | None = Field(None, gt=0)  # images that act on each other; null: all that are taken at once
    length: Duration
    optim: Optimizer
    mix: Mixing = Mixing()
    init: Init | None = None  # the weights to start with; of the backbone, what it is follows from them
    average: Average | None = None  # of the weights over the run
    precision: Precision = "bf16"
    seed: int = Field(0, ge=0, lt=2**63)
    validation: Validation = Validation()
    diagnose: Diagnose = Diagnose()
    checkpoint: Checkpoint = Checkpoint()
    track: Track = Track()
    guard: Guard = Guard()
    resume: Resume = Resume()
    machine: Machine = Machine()

    @property
    def name(self) -> str:
        """The objective's name."""
        name: str = getattr(self.objective, "name")  # noqa: B009 -- every objective's options have one, of its own type
        return name

    @property
    def couples(self) -> bool:
        """Whether a sample's loss depends on the others that are taken with it."""
        return bool(getattr(self.objective, "couples_samples", False))

    @property
    def together(self) -> int:
        """Images that a process has to take at once: the views of a sample, and of two where these are mixed."""
        return self.data.views * (2 if self.mix.pairs else 1)

    def settled(self, plan: Plan) -> Run:
        """The same run with what its plan has decided and its results depend on."""
        return self.model_copy(update={"coupled_batch": plan.coupled_batch})

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, as plain data."""
        return self.model_dump(mode="json")

    def identity(self, data: str) -> dict[str, Any]:
        """What decides the results: the resolved tree without the machine's part, the data by content, not by place."""
        kept = {key: value for key, value in self.resolved().items() if key not in _OF_THE_MACHINE}
        kept["data"] = {"content": data} | {key: v for key, v in kept["data"].items() if key not in _IN_THE_CONTENT}
        kept["order_version"] = ORDER_VERSION
        if self.init is not None:
            kept["init"] = self.init.identity()
        if self.name.endswith(".py"):  # a file's own objective is what the file says, wherever it lies
            digest = hashlib.sha256(Path(self.name).read_bytes()).hexdigest()
            kept["objective"] |= {"name": Path(self.name).name, "content": digest}
        return kept

    def build_step(self) -> Step:
        """The model with its initial weights, which the seed alone decides."""
        torch.manual_seed(self.seed)
        backbone = build_backbone(self.backbone, self.data.shape, self.data.channels)
        backbone.set_grad_checkpointing(self.machine.checkpointing)
        objective: Objective = OBJECTIVES.find(self.name).Objective(self.objective, backbone)
        return Step(self._prepare(), objective, self.precision)

    def _prepare(self) -> Prepare:
        size, erase, mix = self.data.shape, None, None
        if self.mix.erase:
            erase = Erase(self.mix.erase, self.data.channels, size)
        if self.mix.pairs:
            classes = getattr(self.objective, "classes", None)
            if classes is None:
                raise ConfigError(
                    f"mix: {self.name} has no classes whose labels could be mixed; leave mixup and cutmix out"
                )
            mix = Mix(self.mix, classes, size, self.seed)
        return Prepare(self.data.mean, self.data.std, erase, mix)

    def cost(self) -> Cost:
        """Parameters, FLOPs and memory, counted on shapes."""
        with torch.device("meta"):
            step = self.build_step()
        return measure_cost(step, self.data.channels, self.data.shape)

    def source(self, split: Literal["train", "test"]) -> Source:
        """The data that the run trains on, or that it is judged on."""
        return open_data(self.data, split, Cache(self.machine.cache))

    def check_classes(self, source: Source) -> None:
        """Refuse data whose labels are not those that the objective tells apart."""
        wanted = getattr(self.objective, "classes", None)
        if wanted is None:
            return
        if not source.classes:
            raise ConfigError(f"data.train: has no labels, which {self.name} needs; take other data")
        if len(source.classes) != wanted:
            raise ConfigError(
                f"objective.classes: {wanted}, but data.train has {len(source.classes)} classes; "
                f"set objective.classes={len(source.classes)}"
            )

    def validation_source(self, train: Source) -> Source | None:
        """The data that the run is judged on while it trains, if it is; its classes have to be those of training."""
        if self.validation.every is None:
            return None
        if self.data.test is None:
            raise ConfigError("validation.every: data.test is not set, so there is nothing to validate on; set it")
        source = self.source("test")
        if getattr(self.objective, "classes", None) is not None and source.classes != train.classes:
            odd = next((name for name in source.classes if name not in train.classes), None)
            what = (
                f"has a class '{odd}' that data.train has not" if odd else f"has {len(source.classes)} of the classes"
            )
            raise ConfigError(f"data.test: {what} ({len(train.classes)} in training); take data with the same classes")
        return source

    def order(self, data: Source | int) -> Order | Mixed:
        """The order of a data set, or of any that has this size."""
        size, views = data if isinstance(data, int) else len(data), self.data.views
        if self.batch % views:
            raise ConfigError(f"batch: {self.batch} is not a multiple of data.views ({views}); change one of them")
        if size * views < self.batch:
            raise ConfigError(
                f"batch: {self.batch} images are asked for at once but the data holds {size * views}; give "
                f"{size * views} or fewer"
            )
        if isinstance(data, int):
            return Order(size, self.batch // views, self.seed, self.data.tail)
        group = self.coupled_batch if self.couples and self.coupled_batch else self.batch
        return mixtures.order(data, self.data, self.batch // views, self.seed, group // views)

    def plan(self, steps_per_epoch: float, processes: int, memory: int) -> Plan:
        """The numbers that follow from the data's size and the machine."""
        if self.batch % processes:
            raise ConfigError(
                f"batch: {self.batch} is not a multiple of the {processes} processes; "
                f"the nearest that is: {max(1, round(self.batch / processes)) * processes}"
            )
        share = self.batch // processes
        micro_batch = self._coupled_micro_batch(processes) or self.machine.micro_batch
        if micro_batch == "auto":
            micro_batch = self.cost().micro_batch(share, memory, self.together)
        elif share % micro_batch:
            raise ConfigError(
                f"machine.micro_batch: {micro_batch} does not divide the {share} images that each of {processes} "
                "processes takes of a batch; use a divisor, or auto"
            )
        if micro_batch % self.data.views:
            raise ConfigError(
                f"data.views: the {micro_batch} images that a process takes at once are not a multiple of "
                f"{self.data.views}; change machine.micro_batch, coupled_batch or data.views"
            )
        if self.mix.pairs and micro_batch // self.data.views % 2:
            samples = "" if self.data.views == 1 else f", which are {self.data.views} views of an odd number of samples"
            raise ConfigError(
                f"mix: images are mixed two by two, but a process takes {micro_batch} at once{samples}; "
                f"set machine.micro_batch to a multiple of {2 * self.data.views}, or change the batch"
            )
        steps = self.length.steps(steps_per_epoch, self.batch)
        if steps < 1:
            raise ConfigError(f"length: {self.length} is nothing to train; give at least 1 step")
        warmup = self.optim.warmup.steps(steps_per_epoch, self.batch)
        if warmup > steps:
            raise ConfigError(
                f"optim.warmup: {self.optim.warmup} ({warmup} steps) is longer than the run ({steps} steps); "
                "shorten it, or lengthen the run"
            )
        return Plan(
            steps_per_epoch=steps_per_epoch,
            steps=steps,
            warmup=warmup,
            drops=tuple(drop.steps(steps_per_epoch, self.batch) for drop in self.optim.drops),
            checkpoint_every=max(1, self.checkpoint.every.steps(steps_per_epoch, self.batch)),
            diagnose_every=self.diagnose.every.steps(steps_per_epoch, self.batch) if self.diagnose.every else 0,
            validate_every=self.validation.every.steps(steps_per_epoch, self.batch) if self.validation.every else 0,
            alarm_from=max(warmup, self.diagnose.after.steps(steps_per_epoch, self.batch)),
            peak_lr=self.optim.peak_lr(self.batch),
            processes=processes,
            micro_batch=micro_batch,
            accumulation=share // micro_batch,
            coupled_batch=micro_batch * processes if self.couples else None,
        )

    def _coupled_micro_batch(self, processes: int) -> int | None:
        """What each process takes at once so that the images that act on each other are as many as was asked for."""
        coupled = self.coupled_batch
        if not self.couples or coupled is None:
            return None
        if self.batch % coupled or coupled % processes:
            raise ConfigError(
                f"coupled_batch: {coupled} must divide the batch of {self.batch} and be a multiple of the {processes} "
                "processes; change it, or their number"
            )
        if self.machine.micro_batch not in {"auto", coupled // processes}:
            raise ConfigError(
                f"machine.micro_batch: {self.machine.micro_batch} on each of {processes} processes does not give the "
                f"coupled_batch of {coupled}; leave it to auto"
            )
        return coupled // processes


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration comes to on this data and these processes."""

    steps_per_epoch: float
    steps: int
    warmup: int
    drops: tuple[int, ...]  # where the learning rate falls to a tenth
    checkpoint_every: int
    diagnose_every: int  # 0: never
    validate_every: int  # 0: never
    alarm_from: int
    peak_lr: float
    processes: int
    micro_batch: int
    accumulation: int
    coupled_batch: int | None  # images that act on each other, over all processes; null where none do


def recipes() -> Path:
    """The folder of the recipes that come with mrp: inside an installed package, or beside it in a checkout."""
    inside = Path(mrp.__file__).parent / "configs"
    return inside if inside.is_dir() else Path(mrp.__file__).parent.parent / "configs"


def find_recipe(name: str) -> Path:
    """A file by its path, or one of our recipes by its name (`demo`, `demo.yaml` or `configs/demo.yaml`)."""
    path = Path(name)
    if path.is_file():
        return path
    known = recipes() / (path.name if path.suffix else f"{path.name}.yaml")
    if known.is_file() and path.parent.name in {"", "configs"}:
        return known
    hint = nearest(path.stem, (recipe.stem for recipe in recipes().glob("*.yaml")))
    raise ConfigError(f"{name}: is neither a file nor a recipe that comes with mrp{hint}; 'mrp recipes' lists them")


def load(name: str | Path, overrides: Iterable[str] = (), folder: Path | None = None) -> Run:
    """Read a run from a file, or from one of our recipes; `folder`, where it is written, may hold it already."""
    return build(Run, completed(compose(name, overrides, find_recipe), folder))


def follow(recipe: str, place: Path, overrides: Iterable[str] = (), folder: Path | None = None) -> Run:
    """A recipe of classification on a pretrained run's own data and weights: its linear probe, its fine-tuning.

    Sizes, statistics and classes are the data's; the batch is the recipe's, or the largest power of two that the data
    fill (the learning rate follows where the recipe gives it for a number of images).
    """
    origin, _ = locate(place)
    before = load(origin / CONFIG)
    source = before.source("train")
    protocol = compose(recipe, overrides, find_recipe).values
    largest = 1 << (len(source).bit_length() - 1)
    data = before.data.model_dump(mode="json") | {"augment": protocol["data"]["augment"], "views": 1}
    words = [
        f"init={json.dumps(str(place))}", "backbone=null", f"data={json.dumps(data)}",
        f"objective.classes={len(source.classes)}", f"batch={min(protocol['batch'], largest)}",
    ]  # fmt: skip
    return load(recipe, [*words, *overrides], folder)
