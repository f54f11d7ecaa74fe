"""A trained run in a few words: `mrp.api.load("runs/demo").features(images)`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mrp.batch import Batch, Output
from mrp.config import ConfigError
from mrp.data.augment import View
from mrp.data.loader import EvalLoader
from mrp.data.order import keys
from mrp.data.sources import Source
from mrp.evaluate import features as extraction
from mrp.evaluate import knn
from mrp.evaluate import probe as linear
from mrp.evaluate.diagnose import Sampled
from mrp.evaluate.processes import Accelerator, join
from mrp.models.vit import VisionTransformer
from mrp.objectives._helpers import Objective
from mrp.run import Run
from mrp.run import load as load_run
from mrp.train import checkpoint
from mrp.train.folder import CONFIG
from mrp.train.step import Step

PROBE = "probe.json"
_BATCH = 256  # images at once when features are extracted


@dataclass(frozen=True)
class Model:
    """A run's model at one of its checkpoints, ready to be asked."""

    run: Run
    folder: Path
    step: int
    module: Step

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


def load(folder: str | Path) -> Model:
    """The model of a run's newest checkpoint."""
    folder = Path(folder)
    run = read(folder)
    found = checkpoint.newest(folder)
    if found is None:
        raise ConfigError(
            f"{folder}: has no checkpoint yet; 'mrp pretrain' writes the first after {run.checkpoint.every}"
        )
    module = run.build_step()
    module.load_state_dict(found.weights())
    return Model(run, folder, found.step, module.eval())


def untrained(folder: str | Path) -> Model:
    """The same model with the weights it started from: the baseline of every claim."""
    run = read(Path(folder))
    return Model(run, Path(folder), 0, run.build_step().eval())


def read(folder: Path) -> Run:
    """The configuration of a run's folder."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: is not the folder of a run (it has no {CONFIG}); 'mrp pretrain' makes one")
    return load_run(folder / CONFIG)


def held_out(run: Run, count: int) -> Tensor:
    """Some test images as the model takes them; training images where the run has no others."""
    source = run.source("test" if run.data.test else "train")
    count = min(count, len(source))
    loader = EvalLoader(
        Sampled(source, count), View(run.data, train=False), batch=count, rank=0, world=1, workers=0, pin_memory=False
    )
    return next(iter(loader)).images


def probe(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Linear probe and kNN on the features of the trained and the untrained backbone, also written to the folder.

    Of several processes the first one gets the results.
    """
    folder = Path(folder)
    run = read(folder)
    if run.data.test is None:
        raise ConfigError(f"{folder}: data.test is not set, so there is nothing to judge the features on")
    train, test = run.source("train"), run.source("test")
    for name, source in (("train", train), ("test", test)):
        if not source.classes:
            raise ConfigError(f"{folder}: data.{name} has no labels, so features cannot be judged by accuracy")
    processes = join()
    results: dict[str, dict[str, Any]] = {}
    for name, model in (("trained", load(folder)), ("untrained", untrained(folder))):
        module = model.module.to(processes.device)
        seen, unseen = (features(module, source, run, processes) for source in (train, test))
        if not processes.is_main_process:  # extraction is shared, the judgement is not worth sharing
            continue
        rows = (seen.features, seen.labels, unseen.features, unseen.labels)
        results[name] = {"linear": asdict(linear.measure(*rows)), "knn": asdict(knn.measure(*rows)), "step": model.step}
    if processes.is_main_process:
        (folder / PROBE).write_text(json.dumps(results, indent=1))
    return results


def features(module: Step, source: Source, run: Run, processes: Accelerator) -> extraction.Features:
    """The features of every image of a source, as evaluation sees it."""
    loader = EvalLoader(
        source, View(run.data, train=False), batch=_BATCH, rank=processes.process_index, world=processes.num_processes,
        workers=run.machine.workers, pin_memory=processes.device.type == "cuda",
    )  # fmt: skip
    return extraction.extract(module, loader, processes, len(source))
