"""The part `faster` of tools/gpu.py: which candidates of gpu_candidates.py make a step faster, judged by numbers.

Each candidate is compared with the product's own step in a process of its own: loss and gradient first, then time, in
turns. Several processes compile at once, and then measure one after another, so that nothing else uses the GPU.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench_step import METHODS
from gpu_candidates import CANDIDATES, CIFAR, Candidate, Model, compile_blocks, whole
from gpu_setup import CONTEXT, Process, Row, Scale, make_batch, make_run
from roofline import REACH, Gpu, Shape, gpu_named
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from mrp.build import build_optimizer, build_step
from mrp.lab.estimate import Estimate
from mrp.monitor.guard import Guard
from mrp.optim.average import Average
from mrp.optim.config import Average as AverageConfig
from mrp.processes.wrapping import clip
from mrp.run import Run
from mrp.step import Step
from mrp.tensors import move_towards

_AT_ONCE = 5  # processes that compile at the same time: each needs up to 12 GiB for the product's step in float32
# The tests try the others on a CPU. torch for CPUs alone comes without Triton.
_REHEARSED = ("visible", "residual", "linear", *(["fused"] if importlib.util.find_spec("triton") else []))
_ROUNDS = 10  # of both in turns: Student's interval then has nine degrees of freedom
_WORTH = 0.005  # the share of the time below which a gain is not worth code
_LOOSER = 1.5  # how much farther from float32 than the product's step any candidate's may be
_KERNELS = 25
_KINDS = {
    "fused elementwise": r"^triton_(poi|red|per)",  # named after all that is fused in them
    "attention": r"flash|fmha|attention|sdpa",
    "products": r"^triton_tem|gemm|cutlass|nvjet|xmma|splitk|addmm|::mm|::bmm|convol|conv2d",
    "optimizer and norm": r"multi_tensor|adam|foreach",
    "sorting": r"sort|radix",
    "copies": r"memcpy|memset|copy",
    "other elementwise": r"elementwise|vectorized|reduce|norm|gelu|aten::",
}


def faster(scale: Scale) -> Iterator[Row]:
    """Foretells and measures every candidate, the kernels of attention and the moving average; stores a profile."""
    for name, candidate in CANDIDATES.items():
        yield _foretold(name, candidate)
    names, at_once = list(_REHEARSED if scale.rehearsal else CANDIDATES), scale.of(_AT_ONCE, 2)
    first, *rest = (names[start : start + at_once] for start in range(0, len(names), at_once))
    yield from _tried(first, scale)
    for rows in (_profile, _attention, _average):
        yield from _apart(rows, scale)
    for group in rest:
        yield from _tried(group, scale)


def _foretold(name: str, candidate: Candidate) -> Row:
    model, numbers = candidate.model, dict[str, float]()
    numbers["percent"] = 100 * candidate.foretold(_shape(model))
    value = f"{numbers['percent']:+.1f} % of this step"
    if model is not CIFAR:
        for size in ("base", "large"):
            numbers[size] = 100 * candidate.foretold(_shape(whole(model.method, size)))
        value += f", {numbers['base']:+.1f} % of a whole ViT-B's, {numbers['large']:+.1f} % of a ViT-L's"
    return Row(f"{name}, foretold: {candidate.what}", value, None, numbers)


@functools.cache
def _shape(model: Model) -> Shape:
    return Shape.of(_run(model, Scale(False, Path())), _gpu())  # in a rehearsal too: nothing is computed


def _gpu() -> Gpu:
    """Returns the limits of the GPU that is there; those of an H100 where there is none."""
    return gpu_named(torch.cuda.get_device_name() if torch.cuda.is_available() else "")


def _run(model: Model, scale: Scale, precision: str = "bf16") -> Run:
    more: dict[str, Any] = {"precision": precision, "batch": scale.of(model.batch, 2)}
    if not scale.rehearsal:
        more["objective"] = METHODS[model.method] | dict(model.objective)
        more["data"] = {"train": "none", "size": model.size}
    return make_run(model.method, scale, dict(model.backbone), **more)


class Trainer:
    """A step with its optimizer and all that the training loop does per step, on one batch again and again."""

    def __init__(self, run: Run, scale: Scale, candidate: Candidate | None = None, compiled: bool = True) -> None:
        self.device, self._updates = scale.device, 0
        self.step = perturbed(build_step(run)).to(self.device)
        if candidate is not None:
            candidate.change(self.step)
        self.optimizer = build_optimizer(run.optim, self.step)
        self.guard = Guard(self.optimizer, self.device, lambda flags: flags)
        if compiled and not scale.rehearsal:  # a CPU would compile for minutes
            if candidate is not None and candidate.blocks_only:
                compile_blocks(self.step)
            else:
                options = dict(candidate.options) if candidate is not None else {}
                self.step.compile(dynamic=False, options=options or None)
        self.batch = make_batch(run, run.batch).to(self.device)

    def gradient(self) -> tuple[float, Tensor]:
        """Returns the loss and the whole gradient, as one vector, of the weights as they are."""
        loss = self._backward()
        gradients = [p.grad.float().flatten() for p in self.step.parameters() if p.grad is not None]
        self.optimizer.zero_grad()
        return float(loss), torch.cat(gradients)

    def update(self) -> None:
        """Trains one step, as `mrp.train.update` does; the host waits for nothing."""
        loss = self._backward()
        updated = self.guard.check(self._updates, loss, clip(self.step, None))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step.after_step(self._updates, updated)
        self._updates += 1

    def _backward(self) -> Tensor:
        if self.device.type == "cuda":  # on a CPU its import alone takes seconds
            torch.compiler.cudagraph_mark_step_begin()
        loss: Tensor = self.step(self.batch).loss
        loss.backward()
        return loss.detach()

    def memory(self) -> int:
        """Returns the bytes that an update needs beyond what it finds."""
        if self.device.type == "cpu":
            return 0
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.update()
        return torch.cuda.max_memory_allocated() - before


@torch.no_grad()
def perturbed(step: Step) -> Step:
    """Moves every trained weight a little, since a bias or a table that starts at zero hides what forgets it."""
    generator = torch.Generator().manual_seed(0)
    for parameter in step.parameters():
        if parameter.requires_grad:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return step


def apart(one: tuple[float, Tensor], other: tuple[float, Tensor]) -> tuple[float, float]:
    """Returns how far two losses and two gradients are from each other, relative to the second.

    A candidate that gives no gradient to some parameters is infinitely far.
    """
    if len(one[1]) != len(other[1]):
        return math.inf, math.inf
    loss = abs(one[0] - other[0]) / abs(other[0])
    return loss, float((one[1] - other[1]).norm() / other[1].norm())


def agrees(ours: tuple[float, float], theirs: tuple[float, float], further: tuple[float, float]) -> bool:
    """Returns whether a candidate is not much farther from float32 than the product; NaN never agrees."""
    return all(new <= _LOOSER * old + more for old, new, more in zip(ours, theirs, further, strict=True))


def verdict(low: float, high: float) -> str:
    """Returns what the interval of a candidate's time, as a multiple of the product's, says."""
    return "pays" if high < 1 else "does not pay" if low > 1 - _WORTH else "undecided"


def in_turns(
    first: Callable[[], object], second: Callable[[], object], repeats: int, rounds: int, wait: Callable[[], None]
) -> tuple[list[float], list[float]]:
    """Returns the seconds of a call of each, measured in turns, whose order changes from round to round."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            wait()
            begin = time.perf_counter()
            for _ in range(repeats):
                (first, second)[which]()
            wait()
            times[which].append((time.perf_counter() - begin) / repeats)
    return times


def _compared(
    first: Callable[[], object], second: Callable[[], object], scale: Scale, repeats: int = 10
) -> tuple[str, dict[str, float]]:
    """Measures both in turns; returns what came out in words and in numbers."""
    wait = torch.cuda.synchronize if scale.device.type == "cuda" else (lambda: None)
    for _ in range(scale.of(3, 1)):
        first(), second()
    ours, theirs = in_turns(first, second, scale.of(repeats, 1), scale.of(_ROUNDS, 2), wait)
    logs = torch.tensor([theirs, ours], dtype=torch.float64).log()
    found = Estimate.over_seeds(logs[0] - logs[1])
    value, low, high = (float(torch.tensor(x).exp()) for x in (found.value, found.low, found.high))
    numbers = {"percent": 100 * (value - 1), "low": 100 * (low - 1), "high": 100 * (high - 1)}
    numbers |= {"milliseconds_without": 1e3 * statistics.median(ours), "milliseconds": 1e3 * statistics.median(theirs)}
    ranges = " -> ".join(
        f"{1e3 * statistics.median(times):.3g} ms ({1e3 * min(times):.3g} to {1e3 * max(times):.3g})"
        for times in (ours, theirs)
    )
    interval = f"{numbers['low']:+.1f} to {numbers['high']:+.1f} at 95 %, n={len(ours)}"
    return f"{verdict(low, high)}: {numbers['percent']:+.1f} % ({interval}); {ranges}", numbers


def _tried(names: list[str], scale: Scale) -> Iterator[Row]:
    """Compiles these candidates at once, and measures them one after another; what an earlier call has is kept."""
    children, outs = {}, {name: scale.folder / f"faster-{name}.json" for name in names}
    began = time.perf_counter()
    try:
        for name, out in outs.items():
            if not out.exists():
                ready, turn = CONTEXT.Event(), CONTEXT.Event()
                process = Process(out.with_suffix(".log"), _try, name, scale, out, ready, turn)
                children[name] = process, ready, turn
        for name, (process, ready, _) in children.items():
            limit = scale.of(CANDIDATES[name].seconds, 3600)
            while not ready.wait(0.2) and process.alive() and time.perf_counter() - began < limit:
                pass
        for process, ready, _ in children.values():
            if not ready.is_set():
                process.kill()  # else it would still compile while the others are measured
        for name, out in outs.items():
            said = ""
            if name in children:
                process, ready, turn = children[name]
                turn.set()
                said = process.wait(scale.of(60, 3600) if ready.is_set() else 0).text
            if out.exists():
                yield Row(**json.loads(out.read_text()))
            else:  # that a candidate cannot be computed on this GPU is a result; in a rehearsal it is a fault
                yield Row(name, f"left out: {_last(said)}", False if scale.rehearsal else None)
    finally:
        for process, *_ in children.values():
            process.kill()


def _last(said: str) -> str:
    return (said.strip().splitlines() or ["over its time"])[-1][:300]


def _try(name: str, scale: Scale, out: Path, ready: Any, turn: Any) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # true float32 in the reference
    candidate = CANDIDATES[name]
    truth = Trainer(_run(candidate.model, scale, "fp32"), scale, compiled=False).gradient()
    run, firsts, trainers, gaps = _run(candidate.model, scale), [], [], []
    for changed in (None, candidate):
        # A candidate never takes what is in torch's caches, whose keys do not hold the kernel of attention.
        anew = changed is not None or candidate.starts
        with torch._inductor.config.patch(force_disable_caches=anew):
            begin = time.perf_counter()
            trainers.append(Trainer(run, scale, changed))
            gaps.append(apart(trainers[-1].gradient(), truth))
            firsts.append(time.perf_counter() - begin)
    if not scale.rehearsal:
        torch.cuda.empty_cache()
    ready.set()
    turn.wait(900)
    value, numbers = _compared(trainers[0].update, trainers[1].update, scale)
    gib = [trainer.memory() / 2**30 for trainer in trainers]
    right = agrees(gaps[0], gaps[1], candidate.further)
    numbers |= dict(zip(("loss_without", "gradient_without", "loss", "gradient"), (*gaps[0], *gaps[1]), strict=True))
    numbers |= {"gib_without": gib[0], "gib": gib[1], "first": firsts[1]}
    value += f"; {gib[0]:.2f} -> {gib[1]:.2f} GiB; "
    if candidate.starts:
        numbers["first_without"] = firsts[0]
        value += f"first step {firsts[0]:.0f} -> {firsts[1]:.0f} s; "
    if skips := counters["inductor"]["cudagraph_skips"]:
        value += f"CUDA graphs not made, {skips} times; "
    value += (
        f"from float32: loss {gaps[0][0]:.1e} -> {gaps[1][0]:.1e}, gradient {gaps[0][1]:.1e} -> {gaps[1][1]:.1e} "
        f"(allowed: {_LOOSER} times and {candidate.further[0]:.0e}, {candidate.further[1]:.0e} more)"
    )
    out.write_text(json.dumps(asdict(Row(f"{name}, measured", value, right, numbers))))


def _apart(rows: Callable[[Scale], Iterator[Row]], scale: Scale) -> Iterator[Row]:
    """Yields what a function yields in a process of its own, or has in an earlier call; a failure is a row."""
    name = rows.__name__.strip("_")
    out = scale.folder / f"faster-{name}.jsonl"
    said = ""
    if not out.exists():
        said = Process(out.with_suffix(".log"), _write, rows, scale, out).wait(scale.of(150, 3600)).text
    path = out if out.exists() else _unfinished(out)
    for line in path.read_text().splitlines() if path.exists() else ():
        yield Row(**json.loads(line))
    if not out.exists():
        yield Row(name, _last(said), False)


def _write(rows: Callable[[Scale], Iterator[Row]], scale: Scale, out: Path) -> None:
    with _unfinished(out).open("w") as file:
        for row in rows(scale):
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
    _unfinished(out).rename(out)


def _unfinished(out: Path) -> Path:
    return out.with_suffix(".part")


def _attention(scale: Scale) -> Iterator[Row]:
    """Compares the kernels of attention, forward and backward, with the one that torch takes by itself."""
    shapes = {"MAE's encoder": (12, 50, 64), "MAE's decoder": (16, 197, 32), "SimMIM, biased": (12, 197, 64)}
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    for what, (heads, patches, width) in shapes.items():
        rows, tokens = scale.of(256, 2), scale.of(patches, 5)
        sizes = [(rows, heads, tokens, width)] * 3 + [(1, heads, tokens, tokens)] * ("biased" in what)
        given = [torch.randn(size, device=scale.device, dtype=torch.bfloat16, requires_grad=True) for size in sizes]
        query, key, value, bias = given[0], given[1], given[2], given[3] if given[3:] else None
        chosen = SDPBackend(torch._fused_sdp_choice(query, key, value, bias)).name
        plain = functools.partial(_attend, given, None)
        for backend in [SDPBackend.MATH] if scale.rehearsal else backends:
            row = f"attention, {what} ({tokens} tokens, {heads} heads of {width}): {backend.name}"
            alone = functools.partial(_attend, given, backend)
            try:
                alone()
                result, numbers = _compared(plain, alone, scale, repeats=20)
            except RuntimeError as error:  # there is no such kernel for these tensors
                result, numbers = f"none: {str(error).splitlines()[0][:150]}", {}
            yield Row(row, f"{result}; torch takes {chosen}", None, numbers)


def _attend(given: list[Tensor], backend: SDPBackend | None) -> None:
    """Computes attention and its gradients, by one kernel or by the one that torch chooses."""
    with nullcontext() if backend is None else sdpa_kernel(backend):
        out = scaled_dot_product_attention(given[0], given[1], given[2], given[3] if given[3:] else None)
        torch.autograd.grad(out, given, torch.ones_like(out))


def _average(scale: Scale) -> Iterator[Row]:
    """Compares the moving average of the weights with the same arithmetic compiled into one pass over them."""
    run = make_run("mae", scale, "vit_base_patch16_224")
    step = build_step(run).to(scale.device)
    ours, theirs = Average(AverageConfig(decay=0.999), step), Average(AverageConfig(decay=0.999), step)
    perturbed(step.cpu()).to(scale.device)
    fused = move_towards if scale.rehearsal else torch.compile(move_towards, dynamic=False)
    updated, rate = (torch.ones((), device=scale.device), torch.full((), 1 - 0.999, device=scale.device))
    weights = [parameter.detach() for parameter in step.parameters() if parameter.requires_grad]
    bytes_less = 20 * sum(weight.numel() for weight in weights)  # 12 in place of 32 per weight
    foretold = 1e3 * bytes_less / _gpu().bandwidth / REACH["memory"]
    yield Row("average, foretold: compiled into one pass", f"-62 %, -{foretold:.2f} ms per step of a ViT-B", None)
    averages = list(theirs.tensors().values())
    value, numbers = _compared(lambda: ours.follow(updated), lambda: fused(averages, weights, rate), scale)
    gap = max(float((a - b).abs().max()) for a, b in zip(ours.tensors().values(), averages, strict=True))
    yield Row("average, measured", f"{value}; averages up to {gap:.1e} apart", gap < 1e-5, numbers | {"gap": gap})


def _profile(scale: Scale) -> Iterator[Row]:
    """Stores which kernels take the time of a step of MAE with a ViT-B, to be read beside tools/roofline.py."""
    trainer, steps = Trainer(_run(whole("mae", "base"), scale), scale), scale.of(3, 1)
    for _ in range(scale.of(5, 1)):
        trainer.update()
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU if scale.rehearsal else kinds.CUDA]) as profile:
        for _ in range(steps):
            trainer.update()
        if not scale.rehearsal:
            torch.cuda.synchronize()
    named = "self_cpu_time_total" if scale.rehearsal else "self_device_time_total"
    times = {
        event.key: getattr(event, named) / 1e3 / steps for event in profile.key_averages() if getattr(event, named)
    }
    table, shares = kernels(times)
    path = scale.folder / "profile.md"
    path.write_text(table)
    said = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
    yield Row(
        "where a step's time goes: MAE, ViT-B, batch 256", f"{said}; {path.name} names {_KERNELS} kernels", None, shares
    )


def kernels(times: dict[str, float]) -> tuple[str, dict[str, float]]:
    """Returns the kernels that take most of a step as a table, and the share of each kind; times are milliseconds."""
    total, shares = sum(times.values()), dict.fromkeys([*_KINDS, "other"], 0.0)
    lines = ["| kernel | kind | ms per step | share |", "|---|---|---|---|"]
    for number, (name, milliseconds) in enumerate(sorted(times.items(), key=lambda item: -item[1])):
        kind = next((kind for kind, words in _KINDS.items() if re.search(words, name, re.IGNORECASE)), "other")
        shares[kind] += milliseconds / total
        if number < _KERNELS:
            lines.append(
                f"| {name[:120].replace('|', '/')} | {kind} | {milliseconds:.3f} | {milliseconds / total:.1%} |"
            )
    lines.append(f"| all | | {total:.3f} | 100.0% |")
    return "\n".join(lines) + "\n", shares
