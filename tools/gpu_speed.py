"""The measurements of tools/gpu.py: how fast a step is, and how much of that a whole run reaches."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import reproduce
import torch
from bench_step import Case, peak_rate, run_case
from gpu_setup import Process, Row, Scale, mrp, photographs
from torchvision.io import ImageReadMode, decode_jpeg

from mrp.data.augment import View
from mrp.data.config import Config
from mrp.data.held import Holding
from mrp.data.loader import Loader
from mrp.data.open import open_source
from mrp.data.order import Order
from mrp.data.quarantine import Quarantine
from mrp.data.resident import ResidentLoader
from mrp.data.source import Arrays
from mrp.files import write_atomically


def warm(scale: Scale) -> Iterator[Row]:
    """Compiles the graphs that later parts need, while the GPU has little to do: those parts find them on the disk."""
    cases = [_compiled("mae", "base", 256), _compiled("mae", "base", 512), _compiled("mae", "large", 256)]
    cases = [*cases, replace(cases[0], deterministic=True)]  # in this order two processes share them out evenly
    for case in scale.left([_tiny(cases[0], "yes")] if scale.rehearsal else cases):
        result = isolated(replace(case, seconds=0.0), scale)
        value = result["error"] if "error" in result else _first_step(result)
        yield Row(_name(case), value)


def fast(scale: Scale) -> Iterator[Row]:
    """Measures the step of MAE compiled, deterministic, and eager with nothing fused."""
    case = _compiled("mae", "base", 256)
    steady, plain = replace(case, deterministic=True), replace(case, compile="no", fused=False)
    milliseconds = {}
    for row in _measured(scale, [case, _compiled("mae", "large", 256), steady, plain]):
        milliseconds[row.what] = row.numbers.get("milliseconds", float("nan"))
        yield row
    if _name(case) in milliseconds and _name(steady) in milliseconds:
        cost = 100 * (milliseconds[_name(steady)] / milliseconds[_name(case)] - 1)
        yield Row("cost of machine.deterministic", f"{cost:.1f} %", None, {"percent": cost})


def more(scale: Scale) -> Iterator[Row]:
    """Measures the step of other batches, sizes and methods, compiled."""
    cases = [
        ("mae", "base", 512), ("mae", "large", 512), ("mae", "small", 256), ("simmim", "base", 256),
        ("data2vec", "base", 256), ("data2vec2", "base", 128), ("mae", "huge", 128),
    ]  # fmt: skip
    yield from _measured(scale, [_compiled(*case) for case in cases])


def _backbone(size: str) -> str:
    return f"vit_{size}_patch{14 if size == 'huge' else 16}_224"


def _compiled(method: str, size: str, batch: int) -> Case:
    return Case(method, 1, _backbone(size), 224, batch, "bf16", "yes", 4.0)


def _tiny(case: Case, compile: str) -> Case:
    return replace(
        case, method="supervised", backbone="test_vit", size=32, batch=2, precision="fp32", seconds=0.0,
        compile=compile, backend="eager",
    )  # fmt: skip


def _name(case: Case) -> str:
    how = "compiled" if case.compile == "yes" else "eager" if case.fused else "eager, nothing fused"
    how = f"{how}, deterministic" if case.deterministic else how
    return f"{case.method} {case.backbone}, batch {case.batch}, {case.precision}, {how}"


def _measured(scale: Scale, cases: list[Case]) -> Iterator[Row]:
    peak = peak_rate(scale.of(8192, 256))
    yield Row("peak of a matrix product", f"{peak / 1e12:.3g} TFLOP/s", None, {"tflops": peak / 1e12})
    for case in [_tiny(cases[-1], "no")] if scale.rehearsal else cases:
        if not scale.knows(_name(case)):
            yield _row(case, isolated(case, scale), peak)


def isolated(case: Case, scale: Scale) -> dict[str, Any]:
    """Measures a case in a process of its own."""
    out = scale.folder / f"case-{os.getpid()}.json"
    out.unlink(missing_ok=True)
    ended = Process(out.with_suffix(".log"), _write_case, case, out).wait(scale.seconds(300))
    if not out.exists():
        return {"times": [float("nan")], "error": ended.text.strip()[-300:] or "over its time"}
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def _write_case(case: Case, out: Path) -> None:
    write_atomically(out, json.dumps(run_case(case)))


def _first_step(result: dict[str, Any]) -> str:
    return f"first step {result['first']:.0f} s ({'warm' if result['warm'] else 'cold'})"


def _row(case: Case, result: dict[str, Any], peak: float) -> Row:
    if "error" in result:
        return Row(_name(case), result["error"], False)
    seconds = statistics.median(result["times"])
    rate = result["flops"] * case.batch / seconds
    numbers = {
        "images_per_second": case.batch / seconds, "milliseconds": 1e3 * seconds, "tflops": rate / 1e12,
        "percent_of_peak": 100 * rate / peak, "gib": result["memory"] / 2**30,
        "gib_estimated": result["estimate"] / 2**30, "seconds_of_first_step": result["first"],
    }  # fmt: skip
    value = (
        f"{numbers['images_per_second']:.0f} images/s, {numbers['milliseconds']:.1f} ms, {numbers['tflops']:.3g} "
        f"TFLOP/s ({numbers['percent_of_peak']:.0f} % of peak), {numbers['gib']:.1f} GiB (estimated "
        f"{numbers['gib_estimated']:.1f}), {_first_step(result)}"
    )
    return Row(_name(case), value, None, numbers)


def whole(scale: Scale) -> Iterator[Row]:
    """Measures a run of MAE on shards of JPEG files against its step alone, and the features of its model."""
    images, batch = scale.of(8192, 64), scale.of(512, 16)
    run = scale.folder / f"whole-{time.time_ns()}"
    shards = _shards(scale, images)
    if isinstance(shards, Row):
        yield shards
        return
    words = [
        "pretrain", "mae_vit_base_in1k", f"data.train={shards}", "data.test=null",
        *scale.words(_backbone("base")), f"batch={batch}", f"length={scale.of(120, 6)} steps", "optim.warmup=0 steps",
        f"machine.workers={scale.of(15, 0)}", f"track.every={scale.of(10, 1)}", "validation.every=null",
        "diagnose.every=null", "checkpoint.every=1000 steps", "--folder", str(run),
    ]  # fmt: skip
    usage = _Usage(scale)
    process = mrp(words, scale.folder / "run.log")
    ended = process.wait(scale.seconds(300))
    percent = usage.stop()
    if ended.code != 0:
        yield Row("a whole run", ended.text[-300:], False)
        return
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rate = statistics.median(line["images_per_second"] for line in lines[len(lines) // 3 :])
    yield Row("a whole run on shards", f"{rate:.0f} images/s", None, {"images_per_second": rate})
    if not scale.rehearsal:
        alone = batch / statistics.median(isolated(_compiled("mae", "base", batch), scale)["times"])
        share = 100 * rate / alone
        yield Row("its share of the step alone", f"{share:.0f} % of {alone:.0f} images/s", None, {"percent": share})
        yield Row("GPU in use, all of the run", f"{percent:.0f} %", None, {"percent": percent})
    begin = time.perf_counter()
    words = ["features", str(run), "--split", "train", "--out", str(scale.folder / "features.npy")]
    ended = mrp(words, scale.folder / "features.log").wait(scale.seconds(120))
    features = images / (time.perf_counter() - begin)
    passed = None if ended.code == 0 else False
    value = f"{features:.0f} images/s, the start included" if ended.code == 0 else ended.text[-300:]
    yield Row("features", value, passed, {"images_per_second": features})


def decoding(scale: Scale) -> Iterator[Row]:
    """Measures the loader alone, and decoding on the GPU (nvJPEG) with its crops, which `mrp` does not do."""
    folder, batch = photographs(scale, scale.of(2048, 16)), scale.of(256, 8)
    source = open_source(str(folder), "train")
    view, workers = View(Config(train=str(folder), size=scale.side), train=True), scale.of(15, 1)
    loader = Loader(
        source, Order(len(source), batch, 0), view, group=batch, micro_batch=batch, rank=0, world=1, workers=workers,
        pin_memory=scale.device.type == "cuda",
    )  # fmt: skip
    steps, warm = scale.of(60, 4), 2 * workers
    began = 0.0
    for step, _ in enumerate(loader.steps(0, warm + steps)):  # the first ones were made before they were asked for
        began = time.perf_counter() if step == warm - 1 else began
    rate = steps * batch / (time.perf_counter() - began)
    loader.close()
    yield Row(f"the loader alone, {workers} workers", f"{rate:.0f} images/s", None, {"images_per_second": rate})
    files = [torch.from_numpy(np.fromfile(path, np.uint8)) for path in sorted(folder.rglob("*.jpg"))[:batch]]
    try:
        decoded = decode_jpeg(files, ImageReadMode.RGB, device=scale.device)
    except RuntimeError as error:  # of a torchvision that was built without nvJPEG
        yield Row("JPEG on the GPU", f"left out: {str(error).splitlines()[0][:200]}")
        return
    apart = max(
        int((one.cpu().int() - decode_jpeg(file, ImageReadMode.RGB).int()).abs().max())
        for one, file in zip(decoded, files, strict=True)
    )
    yield Row("JPEG on the GPU beside the CPU's pixels", f"up to {apart} of 255 apart", None, {"levels": apart})
    for cropped in (False, True):
        times = [_seconds(files, scale, cropped) for _ in range(scale.of(12, 2))]
        rate = batch / statistics.median(times)
        what = "JPEG on the GPU, with a crop resized there" if cropped else "JPEG on the GPU"
        yield Row(what, f"{rate:.0f} images/s", None, {"images_per_second": rate})


def _seconds(files: list[torch.Tensor], scale: Scale, cropped: bool) -> float:
    """Returns how long it takes to decode a batch on the device, and to cut and resize a part of each image."""
    began = time.perf_counter()
    images = decode_jpeg(files, ImageReadMode.RGB, device=scale.device)
    if cropped:
        parts = [one[None, :, one.shape[1] // 6 :, one.shape[2] // 6 :].float() for one in images]
        for part in parts:
            torch.nn.functional.interpolate(part, (scale.side, scale.side), mode="bicubic", antialias=True)
    if scale.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def certify(scale: Scale) -> Iterator[Row]:
    """Trains MAE eager in fp32 and bf16 and compiled in bf16 with two seeds: the gaps stay within the seeds' spread."""
    shards = _shards(scale, scale.of(8192, 64))
    if isinstance(shards, Row):
        yield shards
        return
    folder, steps = scale.folder / "certify", scale.of(300, 40)
    ways = scale.of(2, 1)  # in a rehearsal without the compiled one, whose graphs take a minute on a CPU
    words = [
        "certify", "mae_vit_base_in1k", f"data.train={shards}", "data.test=null", *scale.words(_backbone("base")),
        f"batch={scale.of(256, 8)}", f"machine.workers={scale.of(15, 0)}", "--steps", str(steps), "--folder",
        str(folder), *(word for name in ("eager bf16", "compiled bf16")[:ways] for word in ("--way", name)),
    ]  # fmt: skip
    ended = Process(scale.folder / "certify.log", _certify, words).wait(scale.seconds(600))
    if not (folder / "certify.json").exists():
        yield Row("certify", ended.text[-300:], False)
        return
    for way in json.loads((folder / "certify.json").read_text())["ways"]:
        shares = [abs(gap) / spread for gap, spread in zip(way["gaps"], way["spread"], strict=True)]
        value = f"largest gap {max(shares):.2f} of the seeds' spread, {way['speed']:.2f} times as fast"
        passed = None if scale.rehearsal else max(shares) <= 1
        yield Row(f"{way['way']} beside eager fp32, {steps} steps", value, passed, {"share": max(shares)})


def _certify(words: list[str]) -> None:
    """Runs `mrp certify`; its trainings are forked from the server, since a new interpreter needs seconds to start."""
    from mrp import certify as trainings
    from mrp.cli import main

    def run(command: list[str], stdout: IO[str], **_: object) -> SimpleNamespace:
        code = mrp(command[3:], Path(stdout.name)).wait(None).code
        return SimpleNamespace(returncode=1 if code is None else code)

    trainings.subprocess = SimpleNamespace(run=run)  # type: ignore[assignment, attr-defined]
    main(words)


def learn(scale: Scale) -> Iterator[Row]:
    """Compares images that the device holds with the loader's, and runs U-MAE's speedrun if CIFAR-10 is given."""
    count, batch = scale.of(50_000, 600), scale.of(1024, 64)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    source, config = Arrays("noise", pixels, np.zeros(count, np.int64), ("one",)), Config(train="none", size=32)
    holding, order = Holding(source, config, (32, 32)), Order(count, batch, 0)
    memory = torch.empty(holding.bytes, dtype=torch.uint8)
    holding.decode(memory, Quarantine(), workers=0)
    share: dict[str, Any] = {"group": batch, "micro_batch": batch, "rank": 0, "world": 1}
    ours = ResidentLoader(holding.in_memory(memory).to(scale.device), order, config, **share).micro_batches()
    theirs = Loader(source, order, View(config, True), **share, workers=0, pin_memory=False).micro_batches()
    equal = all(torch.equal(next(ours).images.cpu(), next(theirs).images) for _ in range(scale.of(8, 2)))
    begin, batches = time.perf_counter(), scale.of(100, 2)
    for _ in range(batches):
        last = next(ours)
    last.images.cpu()  # the host has waited for the device
    rate = batch * batches / (time.perf_counter() - begin)
    value = f"{rate:,.0f} crops/s of 32 pixels, pixels {'equal to' if equal else 'other than'} the loader's"
    yield Row("images held on the device", value, equal, {"images_per_second": rate})
    rehearsed = scale.rehearsal and importlib.util.find_spec("sklearn")  # digits are scikit-learn's
    data = scale.cifar or (Path("digits") if rehearsed else None)
    if data is None:
        yield Row("speedrun of U-MAE", "left out: --cifar names no data")
        return
    row = reproduce.PLANS["speedrun"][1]
    for _ in reproduce.work(row, 0, scale.folder, data, scale.rehearsal, reproduce.Piece(scale.of(500, 3600))):
        pass
    told = dict(zip(reproduce.TITLES, reproduce.cells(row, 0, scale.folder), strict=True))
    yield Row("speedrun of U-MAE", ", ".join(f"{title}: {cell}" for title, cell in told.items() if cell != "-"))


def _shards(scale: Scale, images: int) -> Path | Row:
    """Returns the folder of shards of photographs, or what went wrong with them."""
    shards = scale.folder / "shards"
    if not (shards / "complete").exists():
        shutil.rmtree(shards, ignore_errors=True)
        words = ["shards", "build", str(photographs(scale, images)), str(shards)]
        ended = mrp([*words, "--workers", str(scale.of(15, 1))], scale.folder / "shards.log").wait(scale.seconds(120))
        if ended.code != 0:
            return Row("shards", ended.text[-300:], False)
        (shards / "complete").touch()
    return shards


class _Usage:
    """The share of the time in which the GPU was in use, as nvidia-smi sees it once per second."""

    def __init__(self, scale: Scale) -> None:
        self._values: list[float] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if not scale.rehearsal and shutil.which("nvidia-smi"):
            self._thread.start()

    def _watch(self) -> None:
        words = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._stopped.wait(1.0):
            answer = subprocess.run(words, capture_output=True, text=True).stdout.split()
            self._values += [float(answer[0])] if answer and answer[0].isdigit() else []

    def stop(self) -> float:
        """Returns the mean, in percent."""
        self._stopped.set()
        return statistics.fmean(self._values) if self._values else float("nan")
