"""The checks of tools/gpu.py: a GPU has to compute what a CPU computes, and a run on it has to behave as it must."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch._inductor.config
from gpu_setup import Row, Scale, make_batch, make_run, mrp, photographs
from torch import Tensor, nn
from torch._dynamo.utils import counters

from mrp import train
from mrp.batch import Batch
from mrp.build import build_step
from mrp.checkpoint import checkpoints

# How far a loss and the gradient (the norm of the difference, relative) may be from the reference.
_SINGLE, _HALF = (1e-4, 2e-3), (1e-2, 6e-2)
_LOG_EVERY, _COMPILED = 10, 5  # steps; before the second number torch still compiles
_BROKEN = """
from typing import Literal
import torch
from mrp.objectives import mae


class Config(mae.Config):
    name: Literal["broken"] = "broken"
    fault: Literal["nan", "memory"] = "nan"


class Objective(mae.Objective):
    def __init__(self, config, backbone):
        super().__init__(config, backbone)
        self.fault, self.calls = config.fault, 0

    def forward(self, batch):
        output = super().forward(batch)
        if len(batch.keys) == 8 and self.fault == "memory":
            torch.empty(1 << 46, dtype=torch.uint8, device=batch.images.device)
        if self.fault == "nan":
            output.loss = torch.where(batch.step == 4, torch.nan, 1.0).to(output.loss.device) * output.loss
        return output
"""


def agree(scale: Scale) -> Iterator[Row]:
    """Compares every method compiled and eager on the device with itself on a CPU, and with itself once more."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as machine.deterministic has it
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # true float32 on the device
    torch._inductor.config.compile_threads = 1  # the methods are compiled beside each other
    return _each(scale.methods("mae", "simmim"), scale, _agreement, _determinism)


def _each(methods: list[str], scale: Scale, *checks: Callable[[str, Scale], Iterable[Row]]) -> Iterator[Row]:
    """Yields the results of every method together; one that fails does not keep the others from being tried."""
    for method in methods:
        rows = list[Row]()
        for check in checks:
            try:
                rows += check(method, scale)
            except Exception as error:
                traceback.print_exc()
                rows.append(Row(f"{method}: {check.__name__.strip('_')}", " ".join(str(error).split())[:300], False))
        yield from rows


def _agreement(method: str, scale: Scale) -> Iterator[Row]:
    single, half = make_run(method, scale, precision="fp32"), make_run(method, scale, precision="bf16")
    batch = make_batch(single, 8)
    cpu = _gradient(build_step(single), batch)
    device = _gradient(build_step(single).to(scale.device), batch.to(scale.device))
    compiled = _gradient(_compiled(build_step(single), scale), batch.to(scale.device))
    halved = _gradient(build_step(half).to(scale.device), batch.to(scale.device))
    halved_compiled = _gradient(_compiled(build_step(half), scale), batch.to(scale.device))
    yield _compared(f"{method}: fp32, device against CPU", device, cpu, _SINGLE)
    yield _compared(f"{method}: fp32, compiled against CPU", compiled, cpu, _SINGLE)
    yield _compared(f"{method}: bf16, compiled against eager", halved_compiled, halved, _HALF)
    masks = [_mask(build_step(single).to(place), batch.to(place)) for place in ("cpu", scale.device)]
    if masks[0] is not None and masks[1] is not None:
        same = torch.equal(masks[0], masks[1])
        yield Row(f"{method}: masks, device against CPU", f"{int(masks[0].sum())} hidden patches", same)


def _determinism(method: str, scale: Scale) -> Iterator[Row]:
    """Trains twice as with machine.deterministic, which refuses an operation that cannot be repeated."""
    run = make_run(method, scale, precision="bf16")
    batch = make_batch(run, 8).to(scale.device)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (_gradient(build_step(run).to(scale.device), batch) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    furthest = float((first[1] - second[1]).abs().max())
    value = f"the gradients are {furthest:.1e} apart"
    yield Row(f"{method}: bf16, eager, deterministic, twice", value, first[0] == second[0] and furthest == 0)


def _compiled(step: nn.Module, scale: Scale, backend: str | None = None) -> nn.Module:
    torch._dynamo.reset()
    step = step.to(scale.device)
    step.compile(dynamic=False, fullgraph=True, backend=backend or scale.backend)
    return step


def _gradient(step: nn.Module, batch: Batch) -> tuple[float, Tensor]:
    """Returns the loss and the whole gradient, as one vector on the CPU."""
    torch.manual_seed(0)
    loss = step(batch).loss
    loss.backward()
    parts = [p.grad.double().flatten().cpu() for p in step.parameters() if p.grad is not None]
    return float(loss), torch.cat(parts)


def _mask(step: nn.Module, batch: Batch) -> Tensor | None:
    first_mask: Any = getattr(step.objective, "first_mask", None)
    return None if first_mask is None else first_mask(batch.keys).cpu()


def _compared(
    what: str, actual: tuple[float, Tensor], reference: tuple[float, Tensor], tolerance: tuple[float, float]
) -> Row:
    loss = abs(actual[0] - reference[0]) / abs(reference[0])
    gradient = float((actual[1] - reference[1]).norm() / reference[1].norm())
    value = f"loss {loss:.1e} (allowed {tolerance[0]:.0e}), gradient {gradient:.1e} (allowed {tolerance[1]:.0e})"
    return Row(what, value, loss <= tolerance[0] and gradient <= tolerance[1], {"loss": loss, "gradient": gradient})


def graphs(scale: Scale) -> Iterator[Row]:
    """Counts graph breaks, and graphs that are compiled anew when training, evaluation and features take turns."""
    return _each(scale.methods("mae"), scale, _graphs)


def _graphs(method: str, scale: Scale) -> Iterator[Row]:
    run = make_run(method, scale)
    counters.clear()
    step = _compiled(build_step(run), scale, "eager")  # graphs are counted, and need not become kernels
    _take_turns(step, run, scale)
    first = counters["stats"]["unique_graphs"]
    _take_turns(step, run, scale)
    more = counters["stats"]["unique_graphs"] - first
    breaks = sum(counters["graph_break"].values())
    value = f"{first} graphs at first, {more} more the second time, {breaks} breaks"
    yield Row(f"{method}: graphs", value, more == 0 and breaks == 0, {"graphs": first, "more": more})


def _take_turns(step: nn.Module, run: Any, scale: Scale) -> None:
    whole, odd = (make_batch(run, count).to(scale.device) for count in (8, 6))
    step.train()
    for number in range(3):
        step(make_batch(run, 8, step=number).to(scale.device)).loss.backward()
    step.eval()
    with torch.no_grad():
        for batch in (whole, odd):
            step(batch)
            step(batch, features=True)


def syncs(scale: Scale) -> Iterator[Row]:
    """Trains with an error wherever the host waits for the device between two log points."""
    watched: list[int] = []
    train.update = _watched(train.update, watched, scale)
    train.finish_step = _watched(train.finish_step, watched, scale)
    train.open_loader = _watched_loader(train.open_loader, scale)  # type: ignore[attr-defined]
    words = {"train": str(photographs(scale, 64)), "size": scale.side}
    methods = (("mae", "no"), ("simmim", "yes"), ("data2vec2", "no"))  # and whether images are held on the device
    for method, held in methods[: scale.of(3, 2)]:
        run = make_run(
            method, scale, data=words, batch=8, length="25 steps", track={"name": "none", "every": _LOG_EVERY},
            machine={"workers": scale.of(4, 0), "resident": held},
            average={"decay": 0.99}, checkpoint={"every": "1000 steps"},
        )  # fmt: skip
        watched.clear()
        what = f"{method}: the host waits only at log points{', images held' if held == 'yes' else ''}"
        try:
            train.train(run, scale.folder / f"syncs-{method}-{time.time_ns()}")
            yield Row(what, f"{len(watched)} calls watched", len(watched) > 20)
        except RuntimeError as error:
            traceback.print_exc()
            yield Row(what, " ".join(str(error).split())[:300], False)


def _watched(function: Callable[..., Any], watched: list[int], scale: Scale) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(state: Any, *arguments: Any) -> Any:
        number = state.step + (function.__name__ == "update")
        quiet = number > _COMPILED and number % _LOG_EVERY != 0 and number != 25
        if quiet:
            watched.append(number)
        with _no_waiting(quiet and scale.device.type == "cuda"):
            return function(state, *arguments)

    return call


def _watched_loader(function: Callable[..., Any], scale: Scale) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        loader = function(*arguments)
        steps = loader.steps

        def watched(start: int, stop: int) -> Iterator[Any]:
            made = steps(start, stop)
            for number in range(start, stop):
                with _no_waiting(number > _COMPILED and scale.device.type == "cuda"):
                    batches = next(made)
                yield batches

        loader.steps = watched
        return loader

    return call


@contextlib.contextmanager
def _no_waiting(refused: bool) -> Iterator[None]:
    """Lets CUDA raise an error inside the block where the host would wait for the device."""
    if refused:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if refused:
            torch.cuda.set_sync_debug_mode("default")


def kernels(scale: Scale) -> Iterator[Row]:
    """Names the kernels that attention is computed with."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [] if scale.rehearsal else [torch.profiler.ProfilerActivity.CUDA]
    for method, wanted in (("mae", r"flash|cudnn"), ("simmim", r"fmha|efficient|flash|cudnn")):
        run = make_run(method, scale, "vit_base_patch16_224")
        step, batch = build_step(run).to(scale.device), make_batch(run, 8).to(scale.device)
        step(batch).loss.backward()
        with torch.profiler.profile(activities=activities) as profile:
            step(batch).loss.backward()
        names = {event.key for event in profile.key_averages()}
        used = sorted(name for name in names if re.search(r"attention|fmha|flash|softmax", name, re.IGNORECASE))
        fused = any(re.search(wanted, name, re.IGNORECASE) for name in used) and not any(
            "math" in name for name in used
        )
        yield Row(f"{method}: attention", "; ".join(name[:70] for name in used), None if scale.rehearsal else fused)


def resume(scale: Scale) -> Iterator[Row]:
    """Kills a deterministic run, lets it go on, and compares it bit for bit with one that was left alone."""
    whole, killed = (scale.folder / f"{name}-{time.time_ns()}" for name in ("whole", "killed"))
    more = ["machine.deterministic=true", "length=100 steps", "checkpoint.every=10 steps"]
    undisturbed = mrp(_words(scale, whole, *more), scale.folder / "whole.log")
    process = mrp(_words(scale, killed, *more), scale.folder / "killed.log")
    while process.alive() and not checkpoints.listed(killed):
        time.sleep(0.01)
    process.kill()
    process.wait(10)
    at = max((checkpoint.step for checkpoint in checkpoints.listed(killed)), default=0)
    again = mrp(_words(scale, killed, *more), scale.folder / "again.log").wait(scale.seconds(150))
    ended = undisturbed.wait(scale.seconds(150))
    if ended.code != 0 or again.code != 0:
        yield Row("killed and resumed", (ended.text + again.text)[-300:], False)
        return
    last = [checkpoints.numbered(folder, 100).path(name).read_bytes()
            for folder in (whole, killed) for name in ("model", "optimizer")]  # fmt: skip
    yield Row("killed and resumed, bit for bit", f"killed at step {at} of 100", last[:2] == last[2:] and 0 < at < 100)


def faults(scale: Scale) -> Iterator[Row]:
    """Checks that a NaN stops a run before the weights, and that a lack of memory is one line."""
    (scale.folder / "broken.py").write_text(_BROKEN)
    cases = (
        ("nan", 3, r"^mrp: stopped: .*step 5 is not finite"),
        ("memory", 2, r"^mrp: error: machine\.micro_batch: 8 images at once need more memory"),
    )
    folders = {fault: scale.folder / f"{fault}-{time.time_ns()}" for fault, *_ in cases}
    started = {}
    for fault, folder in folders.items():
        objective = f"objective={{name: {scale.folder}/broken.py, fault: {fault}, decoder: {{width: 32, depth: 1}}}}"
        words = _words(scale, folder, objective, "length=8 steps", "machine.compile=no")  # nothing is optimised away
        started[fault] = mrp(words, scale.folder / f"{fault}.log")
    for fault, code, line in cases:
        ended = started[fault].wait(scale.seconds(150))
        found = re.search(line, ended.text, re.MULTILINE)
        passed = ended.code == code and found is not None and "Traceback" not in ended.text
        if fault == "nan":
            passed = passed and [checkpoint.step for checkpoint in checkpoints.listed(folders[fault])] == [4]
        yield Row(f"{fault}: exit code {ended.code}", found[0][:200] if found else ended.text[-300:], passed)


def _words(scale: Scale, folder: Path, *more: str) -> list[str]:
    return [
        "pretrain", "mae_vit_base_in1k", f"data.train={photographs(scale, 64)}", "data.test=null",
        *scale.words("vit_tiny_patch16_224"), "objective.decoder={width: 32, depth: 1, heads: 2}",
        "batch=8", "optim.warmup=0 steps", f"machine.workers={scale.of(4, 0)}", "validation.every=null",
        "diagnose.every=null", *more, "--folder", str(folder),
    ]  # fmt: skip
