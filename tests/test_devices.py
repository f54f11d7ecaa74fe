"""Training on tensors that claim to lie on a GPU, without one: nothing is left on the host by mistake.

Nothing is computed; torch only follows where each tensor lies. Reading a value on the host is an error, and so is a
copy for which the host waits. Not seen are kernels, streams and events, the backward pass, compiled graphs, and what
comes after the first value that the host has to read: log points, checkpoints, and heads on features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.cuda.amp.common
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mrp.batch import Batch, Output
from mrp.build import build_optimizer, build_step
from mrp.check.tiny import tiny_batch
from mrp.data.config import Config
from mrp.data.held import Held
from mrp.data.order import Order
from mrp.data.resident import ResidentLoader
from mrp.evaluate.readout import Readout
from mrp.monitor.guard import Guard
from mrp.objectives import mae
from mrp.optim.average import Average
from mrp.optim.config import Average as AverageSection
from mrp.optimizers import OPTIMIZERS
from mrp.plan import Job
from mrp.processes.transfer import Transfer
from mrp.processes.unused import unused_parameters
from mrp.run import Run
from mrp.schedules import Length
from mrp.step import Step
from mrp.train import update
from tests.objectives.test_every_objective import NAMES, SHAPES, make_run

GPU = torch.device("cuda:0")
_COPIES = {torch.ops.aten._to_copy.default: 0, torch.ops.aten.copy_.default: 1}  # and which argument is the source
_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class Waits(RuntimeError):
    """The host would wait for the device."""


class NoWaiting(TorchDispatchMode):
    """Refuses copies between host and device for which the host waits."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pinned: list[Tensor] = []

    def pin(self, tensor: Tensor) -> Tensor:
        """Stands for `Tensor.pin_memory`."""
        self._pinned.append(tensor.clone())
        return self._pinned[-1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _COPIES:
            source: Tensor = args[_COPIES[func]]
            asynchronous = (kwargs or {}).get("non_blocking", False) or True in args[2:]
            pinned = any(one is source for one in self._pinned)
            if out.device != source.device and not (asynchronous and pinned):
                raise Waits(f"a copy of {tuple(source.shape)} from {source.device} to {out.device}")
        elif func in _INDEXED and args[0].device == GPU:
            for index in pytree.tree_leaves(args[1]):
                if isinstance(index, Tensor) and index.device != GPU:  # torch would copy it by itself
                    raise Waits(f"an index of {tuple(index.shape)} on {index.device}")
        return out


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[NoWaiting]:
    """In a test that takes this, no tensor has content and tensors may lie on a GPU."""
    watch, stream = NoWaiting(), SimpleNamespace(wait_stream=lambda other: None)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "Event", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *tensors, **options: None)  # it says nothing of shapes
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: watch.pin(tensor))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield watch


def built(run: Run) -> Step:
    """Returns a step whose parameters and buffers lie on the GPU; what it holds otherwise stays where it is."""
    with torch.utils._python_dispatch._disable_current_modes():
        step = build_step(run)
    moved: dict[int, nn.Parameter] = {}
    for module in step.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                data = torch.empty(parameter.shape, dtype=parameter.dtype, device=GPU)
                placed = moved.setdefault(id(parameter), nn.Parameter(data, parameter.requires_grad))
                module._parameters[name] = placed
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=GPU)
    return step


def goes_back(step: Step) -> Callable[[Tensor], None]:
    """Stands for the backward pass: torch's own would look for a GPU."""

    def backward(loss: Tensor) -> None:
        assert loss.requires_grad
        for parameter in step.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)

    return backward


def trained(run: Run, watch: NoWaiting, *batches: Batch) -> Step:
    """Makes one step of training as the loop makes it, evaluates, and reads features; returns the step."""
    step = built(run)
    optimizer = build_optimizer(run.optim, step)
    state = SimpleNamespace(
        step=3, module=step, model=step, optimizer=optimizer, average=Average(AverageSection(decay=0.9), step),
        guard=Guard(optimizer, GPU, lambda flag: flag), incidents=SimpleNamespace(remember=lambda *what: None),
    )  # fmt: skip
    session = SimpleNamespace(
        rank=0, phase=lambda *what: None, signals=SimpleNamespace(asked=None), to_device=Transfer(GPU),
        accelerator=SimpleNamespace(backward=goes_back(step), no_sync=nullcontext),
    )  # fmt: skip
    plan = SimpleNamespace(length=Length(10, 2.0, 8), warmup=1, drops=())
    job = Job(run, cast(Any, plan), cast(Any, None), None, cast(Any, None), memory=0)  # without data
    micro_batches = [batch.pin_memory() for batch in batches or (tiny_batch(run), tiny_batch(run))]
    with watch, torch.no_grad():
        with torch.enable_grad():
            done = update(cast(Any, state), micro_batches, job, cast(Any, session))
        step.eval()
        batch, readout = session.to_device(micro_batches[0]), Readout.last(step)
        outputs = [step(batch), step(batch, features=True), step(batch, features=readout)]
        step.train()
    optimized = [optimizer.state, optimizer.found_inf]  # type: ignore[attr-defined]
    found = [done.metrics, done.gradient_norm, outputs, optimized, state.average.tensors(), step.state_dict()]
    assert not [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor) and leaf.device != GPU]
    return step


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_every_method_stays_on_the_gpu(gpu: NoWaiting, name: str) -> None:
    trained(make_run(name, precision="bf16"), gpu)


@pytest.mark.parametrize(("data", "backbone"), SHAPES[1:])
def test_a_step_of_every_shape_stays_on_the_gpu(gpu: NoWaiting, data: dict[str, Any], backbone: dict[str, Any]) -> None:
    trained(make_run("simmim", data, backbone, machine={"checkpointing": True}), gpu)


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS.names() if name != "adamw"])
def test_a_step_of_every_optimizer_stays_on_the_gpu(gpu: NoWaiting, optimizer: str) -> None:
    optim = {"name": optimizer, "lr": 0.1, "weight_decay": {"kind": "linear", "value": 0.1, "end": 0.2}, "clip": 1.0}
    trained(make_run("mae", optim=optim), gpu)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("classify", {"mix": {"mixup": 0.8, "cutmix": 1.0, "erase": 0.5}, "optim": {"lr": 0.1, "layer_decay": 0.7}}),
        ("probe", {"data": {"size": 16, "channels": 5}, "mix": {"drop_channels": 0.5}}),
        ("mae", {"data": {"size": 16, "channels": 5, "views": 2}, "mix": {"drop_channels": 0.5}}),
    ],
)
def test_changed_images_stay_on_the_gpu(gpu: NoWaiting, name: str, more: dict[str, Any]) -> None:
    run = make_run(name, **more)
    batch = tiny_batch(run)
    batch.places, batch.present = torch.arange(8), torch.ones(8, run.data.num_channels, dtype=torch.bool)
    trained(run, gpu, batch)


def test_images_that_are_held_stay_on_the_gpu(gpu: NoWaiting) -> None:
    data = Config(train="digits", size=16, views=2)
    held = Held(torch.zeros(60, 20, 28, 3, dtype=torch.uint8), None).to(GPU)
    loader = ResidentLoader(held, Order(60, 12, 0), data, group=24, micro_batch=12, rank=0, world=1)
    with gpu:
        (batches,) = loader.steps(3, 4)
        for batch in batches:
            assert {leaf.device for leaf in pytree.tree_leaves(Transfer(GPU)(batch)) if leaf is not None} == {GPU}


def test_the_search_for_unused_parameters_stays_on_the_gpu(gpu: NoWaiting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.autograd, "grad", lambda loss, inputs, **options: [None] * len(inputs))
    step = built(make_run("data2vec2"))
    trained_names = [name for name, parameter in step.named_parameters() if parameter.requires_grad]
    assert unused_parameters(step, 3, (16, 16)) == trained_names


def _by_range(objective: mae.Objective, images: Tensor) -> Tensor:
    return torch.arange(len(images)).view(-1, 1, 1, 1)


def _by_attribute(objective: mae.Objective, images: Tensor) -> Tensor:
    return cast(Tensor, objective.table)


def _by_index(objective: mae.Objective, images: Tensor) -> Tensor:
    return images[torch.arange(len(images))]


def _by_tensor(objective: mae.Objective, images: Tensor) -> Tensor:
    return torch.tensor([1.0, 2.0, 3.0], device=images.device).view(1, 3, 1, 1)


def _by_value(objective: mae.Objective, images: Tensor) -> Tensor:
    return images * float(images.mean())


def _by_content(objective: mae.Objective, images: Tensor) -> Tensor:
    return images * (1 if (images > 0).any() else 2)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (_by_range, RuntimeError, "same device|different devices"),
        (_by_attribute, RuntimeError, "same device|different devices"),
        (_by_index, Waits, "index of \\(8,\\) on cpu"),
        (_by_tensor, Waits, "from cpu to cuda:0"),
        (_by_value, DataDependentOutputException, "_local_scalar_dense"),
        (_by_content, DataDependentOutputException, "_local_scalar_dense"),
    ],
)
def test_a_planted_fault_is_found(
    gpu: NoWaiting, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Tensor], error: type[Exception], words: str
) -> None:
    forward = mae.Objective.forward

    def broken(objective: mae.Objective, batch: Batch) -> Output:
        return forward(objective, batch.with_images(batch.images + fault(objective, batch.images)))

    monkeypatch.setattr(mae.Objective, "forward", broken)
    monkeypatch.setattr(mae.Objective, "table", torch.ones(3, 16, 16), raising=False)
    with pytest.raises(error, match=words):
        trained(make_run("mae"), gpu)


def test_a_batch_that_is_not_in_page_locked_memory_is_found(gpu: NoWaiting) -> None:
    with gpu, pytest.raises(Waits):
        Transfer(GPU)(tiny_batch(make_run("mae")))
