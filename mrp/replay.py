"""An incident repeated alone: the step that was not finite, from the state before it, with an eye on every module."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
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
from mrp.plan import plan_order
from mrp.processes.join import join
from mrp.run import Run
from mrp.run import load as load_run
from mrp.step import Step, seed_step

_NAMED = 8  # samples that are named; all of them stand in the incident's file


@dataclass
class Verdict:
    """Whether the fault came again, and where it arose, in sentences."""

    repeated: bool = False
    lines: list[str] = field(default_factory=list)


def replay(place: Path) -> Verdict:
    """Repeat the step of an incident's folder, a micro-batch at a time, until one is not finite again."""
    incident, run = _read(place)
    found = checkpoints.newest(place)
    if found is None:
        raise ConfigError(f"{place}: holds no checkpoint of the state before the step, so it cannot be repeated")
    device = join().device
    step = build_step(run).to(device)
    step.load_state_dict(found.weights())
    source = open_source(run, "train")
    verdict = Verdict(lines=[f"step {incident['step']} of {place}, alone on {device}, from the state before it"])
    if ill := _ill(step):
        verdict.lines.append(
            f"before the step, {ill} is not finite: the fault arose at an earlier step or at the start"
        )
    shown = list(_parts(run, source, incident))
    for rank, part, batch, samples in shown:
        if part == 0 or run.couples_samples:
            seed_step(run.seed, incident["checkpoint"], rank)
        fault = _repeat(step, batch.to(device), incident["accumulation"])
        if fault is None:
            continue
        verdict.repeated = True
        verdict.lines.append(f"again not finite: micro-batch {part} of process {rank}")
        if ill:
            return verdict
        verdict.lines.append(fault.text)
        rows = fault.rows if fault.rows and len(samples) == len(batch.keys) else list(range(len(samples)))
        verdict.lines.append(_samples(source, rows, samples, batch))
        return verdict
    verdict.lines.append(
        "the loss and every gradient are finite this time: the fault lies in what differs here (the compiled model, "
        "the kind of device, the sum over processes), or came from the hardware"
    )
    return verdict


def _read(place: Path) -> tuple[dict[str, Any], Run]:
    try:
        incident = json.loads((place / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"{place}: is not the folder of an incident; they are in RUN/incidents") from None
    return incident, load_run(place / CONFIG)


def _parts(run: Run, source: Source, incident: dict[str, Any]) -> Iterator[tuple[int, int, Batch, list[int]]]:
    """The micro-batches as they were: process, number, content and samples; those under suspicion come first.

    Where samples act on each other, a micro-batch is what all processes took together.
    """
    processes, accumulation = incident["processes"], incident["accumulation"]
    each = incident["micro_batch"] * (processes if run.couples_samples else 1)
    order, number = plan_order(run, source, incident.get("order_version", 1)), incident["checkpoint"]
    quarantine = Quarantine(run.data.damaged, (Bad(*bad) for bad in incident["quarantine"]))
    loader = Loader(
        source, order, View(run.data, train=True), group=run.coupled_batch or run.batch, micro_batch=each, rank=0,
        world=1, workers=0, pin_memory=False, quarantine=quarantine,
    )  # fmt: skip
    (batches,) = loader.steps(number, number + 1)
    samples = torch.tensor(order.slots(number).samples).view(len(batches), -1).tolist()
    found = []
    for index, batch in enumerate(batches):
        rank, part = (0, index) if run.couples_samples else divmod(index, accumulation)
        found.append((rank, part, batch, samples[index]))
    suspects = {(0 if run.couples_samples else one["rank"], one["micro_batch"]) for one in incident["suspects"]}
    last = {rank: max(part for other, part in suspects if other == rank) for rank, _ in suspects}
    # Those before a suspect in the same process come with it, since they draw from the same generator.
    first = [one for one in found if one[1] <= last.get(one[0], -1)]
    yield from chain(first, (one for one in found if one[1] > last.get(one[0], -1)))


@dataclass(frozen=True)
class _Fault:
    text: str
    rows: list[int]  # of the micro-batch, where they can be told


def _repeat(step: Step, batch: Batch, accumulation: int) -> _Fault | None:
    """One forward and, where that is finite, one backward pass; what first was not."""
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
    """Hooks on every module's output and on every parameter's gradient; keeps the first that is not finite."""

    def __init__(self, step: Step, size: int) -> None:
        self.forward: _Fault | None = None
        self.backward: _Fault | None = None
        self._size = size
        self._before = "what follows from it"
        self._last = "the input"
        self._handles: list[Any] = []
        for name, module in step.named_modules():
            if name:
                self._handles.append(module.register_forward_hook(partial(self._passed, name)))
        for name, parameter in step.named_parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(partial(self._gathered, name)))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _passed(self, name: str, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        kind = f"{name} ({type(module).__name__})"
        tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        broken = [tensor for tensor in tensors if not _finite(tensor)]
        if broken and self.forward is None:
            inputs = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]
            state = "finite" if all(map(_finite, inputs)) else "not finite either, and no module made it"
            self.forward = _Fault(
                f"the first module whose output is not finite is {kind}; its input is {state}; the module that ended "
                f"before it is {self._last}",
                _rows(broken[0], self._size),
            )
        self._last = kind
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(partial(self._returned, kind))

    def _returned(self, kind: str, gradient: Tensor) -> None:
        self._see(f"the gradient at the output of {kind}", gradient)

    def _gathered(self, name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._see(f"the gradient of the parameter {name}", parameter.grad)

    def _see(self, what: str, gradient: Tensor) -> None:
        if self.backward is None and not _finite(gradient):
            self.backward = _Fault(
                f"the loss is finite, and so is, going back from it, {self._before}; the first that is not is {what}",
                _rows(gradient, self._size),
            )
        self._before = what


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _rows(tensor: Tensor, size: int) -> list[int]:
    """The samples of a micro-batch in which a tensor is not finite, where it has a row for each."""
    if tensor.ndim < 2 or len(tensor) != size:
        return []
    rows: list[int] = (~torch.isfinite(tensor)).flatten(1).any(1).nonzero().flatten().tolist()
    return rows


def _ill(step: Step) -> str | None:
    """The first weight or buffer that is not finite."""
    for kind, tensors in (("the parameter", step.named_parameters()), ("the buffer", step.named_buffers())):
        for name, tensor in tensors:
            if not _finite(tensor):
                broken = int((~torch.isfinite(tensor)).sum())
                return f"{kind} {name} ({broken} of {tensor.numel()} numbers)"
    return None


def _samples(source: Source, rows: list[int], samples: list[int], batch: Batch) -> str:
    count = f"{len(rows)} of its {len(samples)} samples" if len(rows) < len(samples) else f"all {len(samples)} samples"
    named = "; ".join(
        f"{where(source, samples[row])} (sample {samples[row]}, key {int(batch.keys[row])})" for row in rows[:_NAMED]
    )
    more = f"; and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f"{count}: {named}{more}"
