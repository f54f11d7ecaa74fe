"""What a sweep costs beside MAE's linear-probe protocol, and what nearest neighbours cost at the size of ImageNet.

    python tools/bench_probe.py RUN [data.fraction=0.2] [--cache FOLDER]
    python tools/bench_probe.py --knn 1000 --keys 1281167

The first counts the FLOPs of both on RUN's backbone and data, and measures the processor time of both: of the sweep in
full, of the protocol on a few batches (crops from the loader, forward pass, step of the head), then multiplied. It ends
with the FLOPs at the size of ImageNet. The second searches random half-precision keys on disk.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mrp import api, probing
from mrp.data.augment import View
from mrp.data.loader import Loader
from mrp.evaluate import neighbours, sweep
from mrp.evaluate.contract import Setting, never
from mrp.evaluate.heads import Schedule
from mrp.evaluate.interval import wilson
from mrp.evaluate.readout import Readout
from mrp.evaluate.split import split
from mrp.evaluate.tables import weights_digest
from mrp.objectives.classify import Config, Objective
from mrp.plan import plan_order
from mrp.step import Step

EPOCHS = 90  # of the protocol
IMAGENET = {"images": 1_281_167, "forward": 35.1e9, "width": 768, "classes": 1000}  # ViT-B/16 at 224: 17.6 G products
BATCH = 256


def sweep_flops(images: int, width: int, classes: int, layers: int = 4, poolings: int = 2) -> float:
    """Multiplications and additions of all heads, of their inputs' axes, and of the head that is fitted at the end."""
    blocks = [layers * poolings * [width], layers * [poolings * width], poolings * [layers * width]]
    widths = [one for group in blocks for one in group]
    settings = len(sweep.LRS) * len(sweep.DECAYS)
    _, _, epochs = Schedule().of(int(0.9 * images))
    a_sample = sum(2 * one * one + 4 * one * classes * settings for one in widths)  # forward, and the weights' gradient
    refit = 2 * max(widths) ** 2 + 4 * max(widths) * classes
    return float(images) * epochs * (a_sample + refit)


def compare(options: argparse.Namespace) -> None:
    """Both on the same frozen backbone and images."""
    model = probing.changed(api.load(options.run), probing.sections(options.overrides))
    cache = options.cache or tempfile.mkdtemp()
    setting = probing.setting_of(model, Path(cache), cache)
    count, width = len(setting.train), model.backbone.embed_dim
    classes = len(setting.train.classes)
    forward = _forward_flops(model)
    began = time.process_time()
    readout = Readout.last(model.backbone)
    with setting.tables.of(weights_digest(model.module)):
        train = setting.features(setting.train, model.module, readout, never)
    extraction = time.process_time() - began
    assert train is not None
    parts = split(train.labels, train.keys)
    began = time.process_time()
    choice = sweep.choose(train, parts, sweep.inputs(readout.layers, readout.poolings), torch.device("cpu"))
    head = sweep.fit(choice, train, torch.device("cpu"))
    heads = time.process_time() - began
    with setting.tables.of(weights_digest(model.module)):
        test = setting.test_features(model.module, readout, never).open(head)
    assert test is not None
    found = wilson(int((head.predict(test) == test.labels).sum()), len(test))
    print(f"{count:,} images, {width} wide, {classes} classes; torch {torch.__version__}")
    print(f"sweep: {len(choice.trials)} heads, {found.value:.4f} ({found.low:.4f} to {found.high:.4f}) on the test set")
    print(f"  taken: {choice.best}")
    print(f"  CPU seconds: {extraction:.1f} for features (0 if they were there), {heads:.1f} for all heads")
    batch_seconds = protocol_seconds(model, setting, options.batches)
    whole = batch_seconds * EPOCHS * count / BATCH
    print(f"protocol: {batch_seconds:.3f} CPU seconds a batch of {BATCH}; {whole:.0f} for {EPOCHS} epochs (multiplied)")
    for name, size in {
        "here": {"images": count, "forward": forward, "width": width, "classes": classes},
        "ImageNet, ViT-B/16": IMAGENET,
    }.items():
        once = size["images"] * size["forward"]
        ours = once + sweep_flops(int(size["images"]), int(size["width"]), int(size["classes"]))
        theirs = EPOCHS * (once + size["images"] * 4 * size["width"] * size["classes"])
        print(f"FLOPs, {name}: sweep {ours:.3g} (features {once:.3g}), protocol {theirs:.3g}: 1/{theirs / ours:.1f}")


def _forward_flops(model: api.Model) -> float:
    """Of the whole image: pretraining's own forward pass sees a part of it."""
    from torch.utils.flop_counter import FlopCounterMode

    blank = torch.zeros(2, model.run.data.num_channels, *model.run.data.shape)
    with FlopCounterMode(display=False) as counter:
        model.features(blank)
    return float(counter.get_total_flops()) / 2


def protocol_seconds(model: api.Model, setting: Setting, batches: int) -> float:
    """Processor time of one batch of the protocol: crops, the frozen backbone, a step of the head."""
    objective = Objective(
        Config(classes=len(setting.train.classes), pool="cls", frozen=True, head_std=0.01), model.backbone
    )
    step = Step(model.module.prepare, objective, model.run.precision).train()
    optimizer = torch.optim.SGD(objective.head.parameters(), 0.1, momentum=0.9)
    order = plan_order(model.run.model_copy(update={"batch": BATCH, "data": setting.data}), setting.train)
    loader = Loader(
        setting.train, order, View(setting.data, train=True), group=BATCH, micro_batch=BATCH, rank=0, world=1,
        workers=0, pin_memory=False,
    )  # fmt: skip
    began = time.process_time()
    for micro in loader.steps(0, batches):
        for batch in micro:
            step(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - began) / batches


def neighbour_seconds(options: argparse.Namespace) -> None:
    """A slice of the queries against all keys, which are read from a file."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.f16"
        with path.open("wb") as file:
            for start in range(0, options.keys, 16384):
                count = min(16384, options.keys - start)
                file.write(random.standard_normal((count, 768), np.float32).astype(np.float16).tobytes())
        keys = np.memmap(path, np.float16, "r", shape=(options.keys, 768))
        labels = torch.from_numpy(random.integers(0, 1000, options.keys))
        queries = random.standard_normal((options.knn, 768)).astype(np.float16)
        began, processor = time.perf_counter(), time.process_time()
        neighbours.predict(keys, labels, queries, neighbours.KS)
        wall, processor = time.perf_counter() - began, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"kNN: {options.knn:,} queries, {options.keys:,} keys of 768 on disk: {wall:.1f} s, {processor:.1f} CPU s, "
        f"peak {peak:.2f} GiB (mapped pages of the file included); {torch.get_num_threads()} threads"
    )
    print(f"50,000 queries: {50_000 / options.knn * processor / 60:.0f} CPU minutes, in the same memory")


def main() -> None:
    """The one measurement or the other."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("run", nargs="?")
    words.add_argument("overrides", nargs="*", default=[])
    words.add_argument("--cache")
    words.add_argument("--batches", type=int, default=4, help="of the protocol, that are measured")
    words.add_argument("--knn", type=int, metavar="QUERIES")
    words.add_argument("--keys", type=int, default=IMAGENET["images"])
    options = words.parse_args()
    if options.knn:
        neighbour_seconds(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
