"""A trained model and how it is loaded: from a run, from one of its checkpoints, or from other people's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mrp.batch import Batch, Output
from mrp.config import ConfigError, Tree, build
from mrp.data.order import keys
from mrp.folder import CONFIG
from mrp.interop import reading, runs
from mrp.interop.config import WeightsName
from mrp.interop.found import Found
from mrp.methodkit import Objective
from mrp.models.vit import VisionTransformer
from mrp.run import Run
from mrp.run import load as load_run
from mrp.step import Step

NO_DATA = "none given at import"
KEY = "imported"  # of a checkpoint's state: where its weights are from, and what is not among them
# What training would need and no file of weights tells; a run of no steps cannot be trained by accident.
_UNTOLD: dict[str, Any] = {"batch": 256, "length": "0 steps", "optim": {"lr": 1e-3}, "precision": "fp32"}


def run_of(found: Found, data: Mapping[str, Any] | None = None) -> Run:
    """The run that some weights fit; `data` says what they are to be judged on."""
    section: dict[str, Any] = {"train": NO_DATA, "size": list(found.size), "channels": found.channels}
    if found.mean and found.std:
        section |= {"mean": list(found.mean), "std": list(found.std)}
    values = {
        "objective": {"name": found.method, **found.objective},
        "backbone": found.backbone.model_dump(mode="json"),
        "data": section | dict(data or {}) | {"size": list(found.size), "channels": found.channels},
    }
    return build(Run, Tree(values | _UNTOLD, {"": found.source}))


def step_of(found: Found, run: Run) -> Step:
    """The model with these weights; what they do not hold is as it was built, from the run's seed."""
    step = run.build_step()
    own = step.state_dict()
    step.load_state_dict(own | {f"objective.{name}": tensor for name, tensor in found.tensors.items()})
    return step.eval()


def provenance(found: Found) -> dict[str, Any]:
    """Where the weights are from, for a checkpoint's state."""
    source = found.source if "://" in found.source or found.source.startswith("hf:") else Path(found.source).name
    return {KEY: {"source": source, "sha256": found.digest, "missing": list(found.missing)}}


@dataclass(frozen=True)
class Model:
    """A run's model at one of its checkpoints, ready to be asked."""

    run: Run
    folder: Path
    step: int
    module: Step
    weights: WeightsName = "student"
    source: Mapping[str, Any] = field(
        default_factory=dict
    )  # where imported weights are from; see mrp.exchange.imported

    @property
    def missing(self) -> tuple[str, ...]:
        """Parts that the file of an import did not hold: as untrained as they were built."""
        return tuple(self.source.get("missing", ()))

    def to(self, device: torch.device | str) -> Model:
        """The same model on a device, to which images follow by themselves."""
        return replace(self, module=self.module.to(device))

    @property
    def objective(self) -> Objective:
        """The training method, with all of its parts."""
        return cast(Objective, self.module.objective)

    @property
    def backbone(self) -> VisionTransformer:
        """The encoder: a timm VisionTransformer."""
        return self.objective.backbone

    def features(self, images: Tensor) -> Tensor:
        """One vector an image; images as uint8, uint16 or float in [0, 1], of the run's size."""
        with torch.no_grad():
            output: Output = self.module(self._batch(images), features=True)
        assert output.features is not None
        return output.features

    def reconstruct(self, images: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
        """What was hidden (B, patches), and every patch as the model paints it, in [0, 1]."""
        if any(not name.startswith("backbone.") for name in self.missing):
            raise ConfigError(f"{self.folder}: was imported without '{self.missing[0]}', so it cannot paint")
        batch = self._batch(images, seed)
        with torch.no_grad():
            painted = self.objective.reconstruct(batch.with_images(self.module.prepare(batch.images)))
        return painted.mask, self.module.prepare.undo(painted.images)

    def _batch(self, images: Tensor, seed: int = 0) -> Batch:
        expected = (self.run.data.channels, *self.run.data.shape)
        if images.shape[1:] != expected:
            raise ValueError(
                f"images of shape (count, {', '.join(map(str, expected))}) are expected, not {tuple(images.shape)}"
            )
        device = self.module.prepare.mean.device
        numbers = torch.arange(len(images)).numpy()
        return Batch(images.to(device), torch.from_numpy(keys(seed, 0, numbers)).to(device))


def load(path: str | Path, weights: WeightsName | None = None, step: int | None = None) -> Model:
    """The model of a run at its newest checkpoint or at a step, of one checkpoint, or of anything that can be imported.

    `weights` are the student's, the teacher's or the average's: by default the average where the run keeps one.
    """
    place = Path(path)
    if not runs.is_ours(place) and (place.exists() or str(path).startswith("hf:")):
        found = reading.read(path, weights or "student", step)
        run = run_of(found)
        source = provenance(found)[KEY]
        return Model(run, place, 0, step_of(found, run), weights or "student", source)
    folder, held = runs.locate(place, step)
    run = load_run(runs.configuration(folder, held))
    chosen = weights or ("average" if runs.has_average(held) else "student")
    module = run.build_step()
    try:
        module.load_state_dict(runs.weights_of(held, chosen))
    except RuntimeError as error:
        reason = " ".join(str(error).split(":", 1)[-1].split())
        raise ConfigError(f"{held.folder}: its weights do not fit its configuration: {reason}") from None
    return Model(run, folder, held.step, module.eval(), chosen, held.state().get(KEY, {}))


def untrained(folder: str | Path) -> Model:
    """The same model with the weights it started from: the baseline of every claim."""
    run = read(Path(folder))
    return Model(run, Path(folder), 0, run.build_step().eval())


def read(folder: Path) -> Run:
    """The configuration of a run's folder."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: is not the folder of a run (it has no {CONFIG}); 'mrp pretrain' makes one")
    return load_run(folder / CONFIG)
