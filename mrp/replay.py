"""Repeats the step of an incident in one process, from the state before it, and finds the module where it began."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mrp.batch import Batch, Output
from mrp.build import build_step, open_source
from mrp.checkpoint import checkpoints
from mrp.config import ConfigError
from mrp.data.augment import View
from mrp.data.loader import Loader
from mrp.data.quarantine import Bad, Quarantine
from mrp.data.source import Source
from mrp.monitor.incident import CONFIG, FILE, where
from mrp.plan import length_of, plan_order
from mrp.processes.join import join
from mrp.run import Run
from mrp.run import load as load_run
from mrp.step import Step, seed_step

_NAMED = 8  # samples that are named; the incident's file lists all of them


@dataclass
class Replay:
    """Whether the fault occurred again, and where it began, in sentences."""

    repeated: bool = False
    lines: list[str] = field(default_factory=list)


def replay(folder: Path) -> Replay:
    """Repeats the step of an incident's folder, one micro-batch at a time, until one is not finite again."""
    incident, run = _read(folder)
    checkpoint = checkpoints.newest(folder)
    if checkpoint is None:
        raise ConfigError(f"{folder}: holds no checkpoint of the state before the step, so it cannot be repeated")
    device = join().device
    step = build_step(run).to(device)
    step.load_state_dict(checkpoint.weights())
    source = open_source(run, "train")
    length = length_of(run, plan_order(run, source, incident.get("order_version", 1)).steps_per_epoch)
    step.before_step(incident["checkpoint"], length)
    result = Replay(lines=[f"step {incident['step']} of {folder}, alone on {device}, from the state before it"])
    if incident.get("data", source.identity) != source.identity:  # earlier incidents do not say
        result.lines.append("the training data are others now (added, removed or renamed): other samples follow")
    if broken := _broken_tensor(step):
        result.lines.append(
            f"before the step, {broken} is not finite: the fault arose at an earlier step or at the start"
        )
    for part in _micro_batches(run, source, incident):
        if part.number == 0 or run.couples_samples:
            seed_step(run.seed, incident["checkpoint"], part.rank)
        fault = _repeat(step, part.batch.to(device), incident["accumulation"])
        if fault is None:
            continue
        result.repeated = True
        result.lines.append(f"again not finite: micro-batch {part.number} of process {part.rank}")
        if not broken:
            rows_are_samples = fault.rows and len(part.samples) == len(part.batch.keys)
            rows = fault.rows if rows_are_samples else list(range(len(part.samples)))
            result.lines += [fault.text, _samples(source, rows, part)]
        return result
    result.lines.append(
        "the loss and every gradient are finite this time: the fault lies in what differs here (the compiled model, "
        "the kind of device, the sum over processes), or came from the hardware"
    )
    return result


def _read(folder: Path) -> tuple[dict[str, Any], Run]:
    try:
        incident = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"{folder}: is not the folder of an incident; they are in RUN/incidents") from None
    return incident, load_run(folder / CONFIG)


@dataclass(frozen=True)
class _MicroBatch:
    """A micro-batch as a process took it in the run: its number within the step, its content and its samples."""

    rank: int
    number: int
    batch: Batch
    samples: list[int]


def _micro_batches(run: Run, source: Source, incident: dict[str, Any]) -> Iterator[_MicroBatch]:
    """Yields the micro-batches of the step as they were, those whose loss was not finite first.

    Where samples act on each other, a micro-batch is what all processes took together.
    """
    processes, accumulation = incident["processes"], incident["accumulation"]
    size = incident["micro_batch"] * (processes if run.couples_samples else 1)
    version = incident.get("order_version", 1)  # incidents did not record it when there was no other
    order, number = plan_order(run, source, version), incident["checkpoint"]
    quarantine = Quarantine(run.data.damaged, (Bad(*bad) for bad in incident["quarantine"]))
    loader = Loader(
        source, order, View(run.data, train=True), group=run.coupled_batch or run.batch, micro_batch=size,
        quarantine=quarantine,
    )  # fmt: skip
    (batches,) = loader.steps(number, number + 1)
    samples = torch.tensor(order.slots(number).samples).view(len(batches), -1).tolist()
    parts = []
    for index, batch in enumerate(batches):
        rank, part = (0, index) if run.couples_samples else divmod(index, accumulation)
        parts.append(_MicroBatch(rank, part, batch, samples[index]))
    suspects = {
        (0 if run.couples_samples else suspect["rank"], suspect["micro_batch"]) for suspect in incident["suspects"]
    }
    last = {rank: max(part for other, part in suspects if other == rank) for rank, _ in suspects}
    # Those before a suspect in the same process come with it, since they draw from the same generator.
    yield from sorted(parts, key=lambda part: part.number > last.get(part.rank, -1))


@dataclass(frozen=True)
class _Fault:
    """What was not finite, in one sentence, and the rows of the micro-batch in which, where they are known."""

    text: str
    rows: list[int]


def _repeat(step: Step, batch: Batch, accumulation: int) -> _Fault | None:
    """Runs a forward and, where that is finite, a backward pass; returns the first thing that was not finite."""
    if not _finite(batch.images):
        return _Fault("the images themselves are not finite, before any module", _rows(batch.images, len(batch.keys)))
    trace = _Trace(step, len(batch.keys))
    try:
        output: Output = step(batch)
        if not bool(torch.isfinite(output.loss)):
            return trace.forward or _Fault("only the loss itself is not finite", [])
        (output.loss / accumulation).backward()
        return trace.backward
    finally:
        trace.close()
        step.zero_grad()


class _Trace:
    """Hooks on every module's output and on every parameter's gradient, which keep the first that is not finite."""

    def __init__(self, step: Step, size: int) -> None:
        self.forward: _Fault | None = None
        self.backward: _Fault | None = None
        self._size = size
        self._before = "what follows from it"
        self._last = "the input"
        self._handles: list[Any] = []
        for name, module in step.named_modules():
            if name:
                self._handles.append(module.register_forward_hook(partial(self._after_forward, name)))
        for name, parameter in step.named_parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(partial(self._after_gradient, name)))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _after_forward(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        kind = f"{name} ({type(module).__name__})"
        tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        broken = [tensor for tensor in tensors if not _finite(tensor)]
        if broken and self.forward is None:
            given = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
            state = "finite" if all(map(_finite, given)) else "not finite either, and no module made it"
            self.forward = _Fault(
                f"the first module whose output is not finite is {kind}; its input is {state}; the module that ended "
                f"before it is {self._last}",
                _rows(broken[0], self._size),
            )
        self._last = kind
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(partial(self._after_backward, kind))

    def _after_backward(self, kind: str, gradient: Tensor) -> None:
        self._check(f"the gradient at the output of {kind}", gradient)

    def _after_gradient(self, name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._check(f"the gradient of the parameter {name}", parameter.grad)

    def _check(self, what: str, gradient: Tensor) -> None:
        if self.backward is None and not _finite(gradient):
            self.backward = _Fault(
                f"the loss is finite, and so is, going back from it, {self._before}; the first that is not is {what}",
                _rows(gradient, self._size),
            )
        self._before = what


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _rows(tensor: Tensor, size: int) -> list[int]:
    """Returns the samples in which a tensor is not finite, where it has one row per sample."""
    if tensor.ndim < 2 or len(tensor) != size:
        return []
    rows: list[int] = (~torch.isfinite(tensor)).flatten(1).any(1).nonzero().flatten().tolist()
    return rows


def _broken_tensor(step: Step) -> str | None:
    """Returns the first parameter or buffer that is not finite."""
    for kind, tensors in (("the parameter", step.named_parameters()), ("the buffer", step.named_buffers())):
        for name, tensor in tensors:
            if not _finite(tensor):
                broken = int((~torch.isfinite(tensor)).sum())
                return f"{kind} {name} ({broken} of {tensor.numel()} numbers)"
    return None


def _samples(source: Source, rows: list[int], part: _MicroBatch) -> str:
    total = len(part.samples)
    count = f"{len(rows)} of its {total} samples" if len(rows) < total else f"all {total} samples"
    named = "; ".join(
        f"{where(source, part.samples[row])} (sample {part.samples[row]}, key {int(part.batch.keys[row])})"
        for row in rows[:_NAMED]
    )
    more = f"; and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f"{count}: {named}{more}"
