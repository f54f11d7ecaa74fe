"""A trained run in a few words: `mrp.load("runs/demo").features(images)`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from mrp import export_features, imported, interop, probing
from mrp.batch import Batch, Output
from mrp.config import ConfigError
from mrp.data.augment import View
from mrp.data.loader import EvalLoader
from mrp.data.order import keys
from mrp.evaluate.diagnose import Sampled
from mrp.evaluate.processes import meet
from mrp.evaluate.table import Store
from mrp.interop import Weights, runs
from mrp.models.vit import VisionTransformer
from mrp.objectives._helpers import Objective
from mrp.probing import Options, Probed
from mrp.run import Run
from mrp.run import load as load_run
from mrp.train.folder import CONFIG
from mrp.train.step import Step

PROBE = "probe.json"


@dataclass(frozen=True)
class Model:
    """A run's model at one of its checkpoints, ready to be asked."""

    run: Run
    folder: Path
    step: int
    module: Step
    weights: Weights = "student"
    source: Mapping[str, Any] = field(default_factory=dict)  # where imported weights are from; see mrp.imported

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


def load(path: str | Path, weights: Weights | None = None, step: int | None = None) -> Model:
    """The model of a run at its newest checkpoint or at a step, of one checkpoint, or of anything that can be imported.

    `weights` are the student's, the teacher's or the average's: by default the average where the run keeps one.
    """
    place = Path(path)
    if not runs.is_ours(place) and (place.exists() or str(path).startswith("hf:")):
        found = interop.read(path, weights or "student", step)
        run = imported.run_of(found)
        source = imported.provenance(found)[imported.KEY]
        return Model(run, place, 0, imported.step_of(found, run), weights or "student", source)
    folder, held = runs.locate(place, step)
    run = load_run(runs.configuration(folder, held))
    chosen = weights or ("average" if runs.has_average(held) else "student")
    module = run.build_step()
    try:
        module.load_state_dict(runs.weights_of(held, chosen))
    except RuntimeError as error:
        reason = " ".join(str(error).split(":", 1)[-1].split())
        raise ConfigError(f"{held.folder}: its weights do not fit its configuration: {reason}") from None
    return Model(run, folder, held.step, module.eval(), chosen, held.state().get(imported.KEY, {}))


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


def probe(
    path: str | Path,
    options: Options = Options(),  # noqa: B008 -- frozen
    weights: Weights | None = None,
    step: int | None = None,
    baseline: bool = False,
    data: Iterable[str] = (),
    cache: str | Path | None = None,
) -> Probed:
    """What the features of a backbone are good for, also written to its run's folder.

    `baseline` measures the untrained backbone too, `data` are words such as `data.fraction=0.1`, and `cache` is the
    folder that keeps the features. Of several processes the first one gets the results.
    """
    model = load(path, weights, step)
    run = probing.with_data(model.run, data)
    ours = runs.is_ours(Path(path))
    folder = model.folder if ours else Path("runs") / f"probe-{Path(str(path)).name}"
    images = probing.Images(run, Store(Path(cache) if cache else folder / probing.CACHE), meet())
    images.check(folder)
    modules = {"trained": model.module}
    if baseline:
        modules["untrained"] = model.run.build_step().eval()
    results = {name: probing.judge(images, module, options) for name, module in modules.items()}
    asked = step is not None or (ours and Path(path).resolve() != model.folder.resolve())
    name = "".join([Path(PROBE).stem, f"-{model.step:08d}" if asked else "", f"-{weights}" if weights else "", ".json"])
    steps = {"trained": model.step, "untrained": 0}
    judged = {
        key: {"step": steps[key], "weights": model.weights, **found}
        for key, found in results.items()
        if found is not None
    }
    return probing.write(folder / name, judged)


def features(
    path: str | Path,
    out: Path,
    split: Literal["train", "test"] = "test",
    layer: int | None = None,
    pooling: str | None = None,
    weights: Weights | None = None,
    step: int | None = None,
    data: Iterable[str] = (),
    cache: str | Path | None = None,
) -> tuple[int, int]:
    """Write the features of a split to a file, .npy or .parquet; how many images, and how many numbers each.

    Of several processes the first one writes, and the others give 0.
    """
    export_features.check(out)
    model = load(path, weights, step)
    folder = model.folder if runs.is_ours(Path(path)) else Path("runs") / f"probe-{Path(str(path)).name}"
    images = probing.Images(
        probing.with_data(model.run, data), Store(Path(cache) if cache else folder / probing.CACHE), meet()
    )
    found = probing.features(images, model.module, split, layer, pooling)
    if found is None:
        return 0, 0
    columns, labels = found
    export_features.write(out, columns, labels, images.source(split))
    return columns.shape[0], columns.shape[1]
