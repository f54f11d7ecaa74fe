"""What the command line does, for Python: `mrp.load("runs/demo").features(images)`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from torch import Tensor

from mrp.build import build_step, open_source
from mrp.data.augment import View
from mrp.data.loader import EvalLoader
from mrp.data.subset import fixed_sample
from mrp.evaluate import feature_files, probing
from mrp.evaluate.probing import Options, Probed
from mrp.evaluate.table import Store
from mrp.interop import runs
from mrp.interop.config import WeightsName
from mrp.model import Model as Model
from mrp.model import load as load
from mrp.model import read as read
from mrp.model import untrained as untrained
from mrp.processes.join import meet
from mrp.run import Run

PROBE = "probe.json"


def held_out(run: Run, count: int) -> Tensor:
    """Some test images as the model takes them; training images where the run has no others."""
    source = open_source(run, "test" if run.data.test else "train")
    count = min(count, len(source))
    loader = EvalLoader(
        fixed_sample(source, count),
        View(run.data, train=False),
        batch=count,
        rank=0,
        world=1,
        workers=0,
        pin_memory=False,
    )
    return next(iter(loader)).images


def probe(
    path: str | Path,
    options: Options = Options(),  # noqa: B008 -- frozen
    weights: WeightsName | None = None,
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
        modules["untrained"] = build_step(model.run).eval()
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
    weights: WeightsName | None = None,
    step: int | None = None,
    data: Iterable[str] = (),
    cache: str | Path | None = None,
) -> tuple[int, int]:
    """Write the features of a split to a file, .npy or .parquet; how many images, and how many numbers each.

    Of several processes the first one writes, and the others give 0.
    """
    feature_files.check(out)
    model = load(path, weights, step)
    folder = model.folder if runs.is_ours(Path(path)) else Path("runs") / f"probe-{Path(str(path)).name}"
    images = probing.Images(
        probing.with_data(model.run, data), Store(Path(cache) if cache else folder / probing.CACHE), meet()
    )
    found = probing.features(images, model.module, split, layer, pooling)
    if found is None:
        return 0, 0
    columns, labels = found
    feature_files.write(out, columns, labels, images.source(split))
    return columns.shape[0], columns.shape[1]
