"""The typed tree of one run and its identity; importing it loads no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

import mrp
from mrp import outside, progress, trackers
from mrp.checkpoint.config import Config as Checkpoint
from mrp.config import ConfigError, Duration, Node, Tree, build, compose, nearest, overridden
from mrp.data.config import CacheConfig
from mrp.data.config import Config as Data
from mrp.data.order import VERSION as ORDER_VERSION
from mrp.evaluate.config import Diagnose, Validation
from mrp.evaluate.config import Section as Evaluation
from mrp.evaluators import EVALUATORS, read_sections
from mrp.folder import IDENTITY, flat
from mrp.interop.config import Config as Init
from mrp.models.config import Config as Backbone
from mrp.monitor.config import Guard
from mrp.objectives import OBJECTIVES
from mrp.optim.config import Average
from mrp.optim.config import Section as Optimizer
from mrp.optimizers import OPTIMIZERS
from mrp.prepare.config import Mixing, Precision
from mrp.processes.container import share_of_cores
from mrp.trackers import TRACKERS
from mrp.trackers import Section as Track

# Sections that do not change results, and are no part of a run's identity.
NOT_IN_IDENTITY = {"validation", "diagnose", "evaluate", "checkpoint", "track", "guard", "resume", "machine"}
_MOST_WORKERS = 16  # that `auto` starts: each holds batches in shared memory, and more than this seldom help a GPU
# Of `data:`, what its content stands for, and what decides no training.
_IN_THE_CONTENT = {"train", "test", "classes", "fraction", "damaged", "group", "labels"}


class Machine(Node):
    """`machine:`, how the machine is used; this does not change results."""

    # Decoding processes per rank: 0 decodes in the training process; auto: its cores less one, at most 16.
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = 4
    # Threads of a process that computes on a CPU; auto: one for a small model, else as torch or OMP_NUM_THREADS says.
    threads: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    compile: Literal["auto", "yes", "no"] = "auto"  # whether the step is compiled; auto: on CUDA
    deterministic: bool = False  # make results bitwise equal on CUDA too, which is slower
    micro_batch: Annotated[int, Field(gt=0)] | Literal["auto"] = (
        "auto"  # images that a process takes through the model at once
    )
    # Whether the training images are decoded once and held in the memory of the device. auto: held where they take less
    # than a sixteenth of that memory, the run goes through them more than once, and data.augment is known on the
    # device.
    resident: Literal["auto", "yes", "no"] = "auto"
    cache: CacheConfig = CacheConfig()  # where remote shards are kept, and how much of them
    # Seconds without progress after which the watchdog says which process waits for which; null: never.
    watchdog: float | None = Field(600, gt=0)
    give_up: float | None = Field(None, gt=0)  # seconds without progress after which the process ends itself
    requeue_code: int = Field(0, ge=0, le=255)  # the exit code of a run that was asked to end before it was complete
    shard: Literal["none", "full"] = "none"  # full: each process holds a part of the model (FSDP2), not all of it
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, about a third more time

    def workers_among(self, processes: int) -> int:
        """Returns the decoding processes of each of so many processes."""
        return self.workers_on(share_of_cores(processes))

    def workers_on(self, cores: int) -> int:
        """Returns the decoding processes of a process that has so many cores."""
        return max(1, min(_MOST_WORKERS, cores - 1)) if self.workers == "auto" else self.workers

    @model_validator(mode="after")
    def _watched(self) -> Machine:
        if self.give_up is not None and self.watchdog is None:
            raise ValueError("give_up needs the watchdog, which is off; set machine.watchdog, or leave give_up out")
        return self


class Resume(Node):
    """`resume:`, what may differ from the run that the folder holds."""

    # Options, or whole sections, that may differ, such as [optim.lr, data]; the run goes on with the new values, and
    # identity.json keeps both.
    allow: tuple[str, ...] = ()


class Run(Node):
    """One run. Sections that change results come first, then those that do not (see NOT_IN_IDENTITY)."""

    # The method, with its options.
    objective: Annotated[SerializeAsAny[Node], BeforeValidator(OBJECTIVES.read)] = Field(
        json_schema_extra={"choose": OBJECTIVES.config_of}  # type: ignore[dict-item]
    )
    backbone: Backbone
    data: Data
    batch: int = Field(gt=0)  # images per step, over all processes
    # Images whose losses depend on each other, over all processes; null: all that are taken through the model at once.
    coupled_batch: int | None = Field(None, gt=0)
    length: Duration  # how long the run trains
    # The optimizer, with its options.
    optim: Annotated[SerializeAsAny[Optimizer], BeforeValidator(OPTIMIZERS.read)] = Field(
        json_schema_extra={"choose": OPTIMIZERS.config_of}  # type: ignore[dict-item]
    )
    mix: Mixing = Mixing()
    init: Init | None = None  # the weights to start with; they decide what the backbone is
    average: Average | None = None  # the moving average of the weights over the run; null: none
    # The precision of the forward and backward pass; weights and their updates are float32.
    precision: Precision = "bf16"
    # Decides all that is random: initial weights, order, crops, masks and the rest.
    seed: int = Field(0, ge=0, lt=2**63)
    validation: Validation = Validation()
    diagnose: Diagnose = Diagnose()
    # What else is measured while the run trains: names or files of evaluators, with their options. null in place of the
    # options of one evaluator: this one is not measured; null in place of the whole section: none is.
    evaluate: Annotated[dict[str, SerializeAsAny[Evaluation]], BeforeValidator(read_sections)] = Field(
        default={},
        json_schema_extra={"choose_by_key": EVALUATORS.config_of},  # type: ignore[dict-item]
    )
    checkpoint: Checkpoint = Checkpoint()
    # Where the numbers of the run are shown, beside metrics.jsonl.
    track: Annotated[SerializeAsAny[Track], BeforeValidator(trackers.read)] = Field(
        default_factory=lambda: cast(Track, TRACKERS.read("none")),
        json_schema_extra={"choose": TRACKERS.config_of},  # type: ignore[dict-item]
    )
    guard: Guard = Guard()
    resume: Resume = Resume()
    machine: Machine = Machine()

    @property
    def name(self) -> str:
        """Returns the objective's name."""
        name: str = getattr(self.objective, "name")  # noqa: B009 -- every objective's options have one, of its own type
        return name

    @property
    def couples_samples(self) -> bool:
        """Returns whether a sample's loss depends on the others that are taken with it."""
        return bool(getattr(self.objective, "couples_samples", False))

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """Returns the sections of what measures the model while it trains, by the name of the evaluator."""
        sections = {"diagnose": self.diagnose, "validation": self.validation, **self.evaluate}
        return {name: section for name, section in sections.items() if section.every is not None}

    def resolved(self) -> dict[str, Any]:
        """Returns every value, defaults included, as plain data; without the two lists of what else, if empty."""
        empty: dict[str, Any] = ({} if self.evaluate else {"evaluate": True}) | (
            {} if self.track.also else {"track": {"also"}}
        )
        return self.model_dump(mode="json", exclude=empty)

    def identity(self, data: str, order_version: int = ORDER_VERSION) -> dict[str, Any]:
        """Returns what decides the results: the tree without the machine's part, the data by content, not by path."""
        kept = {key: value for key, value in self.resolved().items() if key not in NOT_IN_IDENTITY}
        kept["data"] = {"content": data} | {key: v for key, v in kept["data"].items() if key not in _IN_THE_CONTENT}
        kept["order_version"] = order_version
        if self.init is not None:
            kept["init"] = self.init.identity()
        augment = kept["data"]["augment"]
        chain = augment if isinstance(augment, list) else [augment]
        if chain is augment:  # by position, so that an option that is new to one of them has its default
            kept["data"]["augment"] = {str(place): section for place, section in enumerate(chain)}
        for section in (kept["objective"], kept["optim"], *chain):
            path = Path(section["name"])
            if path.suffix == outside.SUFFIX:  # a part in a file outside mrp is what its code says, not where it is
                section |= {"name": path.name, "content": outside.digest(path)}
        return kept


def default_identity(run: Run) -> dict[str, Any]:
    """Returns the default of every option of a run's identity that has one, as dotted keys and plain data.

    A new option's default has to be what runs did before the option existed. Then a run's folder that does not know
    the option goes on as if it had been made with the default (see `mrp.folder`).
    """
    return {key: value for key, value in _defaults(run, "").items() if key.partition(".")[0] not in NOT_IN_IDENTITY}


def _defaults(node: Node, prefix: str) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for name, field in type(node).model_fields.items():
        key, value = f"{prefix}{field.alias or name}", getattr(node, name)
        if not field.is_required():
            default = field.get_default(call_default_factory=True)
            plain = type(node).model_construct(**{name: default}).model_dump(mode="json", include={name}, by_alias=True)
            defaults |= flat({key: next(iter(plain.values()))})
        inside = {f"{key}.{n}.": one for n, one in enumerate(value)} if isinstance(value, tuple) else {f"{key}.": value}
        for start, section in inside.items():
            defaults = (_defaults(section, start) if isinstance(section, Node) else {}) | defaults
    return defaults


def recipes() -> Path:
    """Returns the folder of the recipes that come with mrp: inside an installed package, or beside it in a checkout."""
    inside = Path(mrp.__file__).parent / "configs"
    return inside if inside.is_dir() else Path(mrp.__file__).parent.parent / "configs"


def find_recipe(name: str) -> Path:
    """Returns a file by its path, or one of our recipes by its name (`demo`, `demo.yaml` or `configs/demo.yaml`)."""
    path = Path(name)
    if path.is_file():
        return path
    known = recipes() / (path.name if path.suffix else f"{path.name}.yaml")
    if known.is_file() and path.parent.name in {"", "configs"}:
        return known
    hint = nearest(path.stem, (recipe.stem for recipe in recipes().glob("*.yaml")))
    raise ConfigError(f"{name}: is neither a file nor a recipe that comes with mrp{hint}; 'mrp recipes' lists them")


def run_folder(recipe: str | Path, folder: str | Path | None = None) -> Path:
    """Returns the folder that a run is written into: the given one, or one that is named like the recipe."""
    return Path(os.path.expanduser(folder)) if folder else Path("runs") / Path(recipe).stem


def load(name: str | Path, overrides: Iterable[str] = (), folder: Path | None = None) -> Run:
    """Reads a run from a file, or from one of our recipes; `folder`, where it is written, may hold it already."""
    path, words = find_recipe(str(name)), list(overrides)
    recipe = compose(path, find=find_recipe)
    chosen = overridden(recipe, words)
    other = [word for word in words if word.partition("=")[0].strip() != "optim.name"]
    if len(other) < len(words):
        chosen = _with_shared_options(overridden(recipe, other), chosen)
    tree = Tree(outside.located(chosen.values, _run_of(path), folder), chosen.origins)
    if tree.values.get("init") is not None:
        from mrp.interop.init import completed

        tree = completed(tree, folder)
    elif "objective" in tree.values and tree.values.get("backbone") is None:
        raise ConfigError(
            f"{tree.origins['']}: backbone: this key is required and missing; add it, or take it from pretrained "
            "weights with init=RUN, as 'mrp finetune' does"
        )
    run = build(Run, tree)
    for line in (*_no_longer_used(recipe.values, chosen.values), *_switched_off(chosen.values.get("evaluate"))):
        progress.say(f"mrp: {line}")
    return run


def _with_shared_options(unnamed: Tree, chosen: Tree) -> Tree:
    """Returns the values with those options of the optimizer before that the one named instead has too.

    Only the name was written, and to all optimizers a learning rate or a warm-up is the same thing.
    """
    before, after = (tree.values.get("optim") for tree in (unnamed, chosen))
    config = OPTIMIZERS.config_of(after)
    if not isinstance(before, dict) or not isinstance(after, dict) or config is None:
        return chosen
    kept = {key: value for key, value in before.items() if key in config.model_fields and key not in after}
    places = tuple(f"optim.{key}" for key in kept)
    origins = {path: origin for path, origin in unnamed.origins.items() if path.startswith(places)}
    return Tree(chosen.values | {"optim": kept | after}, origins | chosen.origins)


def _no_longer_used(recipe: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    """Yields what the command line drops from a recipe when it gives a section another name, one line per section."""
    for key, before in recipe.items():
        after = values.get(key)
        if isinstance(before, dict) and isinstance(after, dict) and before.get("name") != after.get("name"):
            dropped = [name for name in before if name not in after]
            if dropped:
                yield f"{key}: {after['name']} does not take over the recipe's {', '.join(dropped)}"


def _switched_off(evaluate: Any) -> Iterator[str]:
    """Yields which evaluators have null for options: who has forgotten to write any reads it in time."""
    if names := [name for name, options in evaluate.items() if options is None] if isinstance(evaluate, dict) else []:
        yield f"evaluate: {', '.join(names)}: null, so not measured"


def _run_of(config: Path) -> Path | None:
    """Returns the run whose folder holds this configuration and copies of the files that it names, if there is one."""
    folders = config.absolute().parents[:3]  # the run's own, or that of one of its checkpoints or incidents
    return next((path for path in folders if (path / IDENTITY).is_file() and (path / outside.KEPT).is_dir()), None)
