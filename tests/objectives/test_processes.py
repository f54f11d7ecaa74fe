"""Two processes give the loss and the gradient of one on the same global batch: every method, at one start."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from mrp.batch import Batch
from mrp.build import build_step, measure_cost
from mrp.methodkit import gram_penalty
from mrp.run import Run
from tests.objectives.test_every_objective import NAMES, gradients, make_batch, make_run

WORLD = 2
COMPILED = ["u-mae", "probe"]  # those that speak to the other processes in their forward pass
BACKBONE = {"drop_path": 0.2, "relative_bias": "shared", "layer_scale": 0.5}


def make(name: str) -> Run:
    return make_run(name, backbone=BACKBONE)


def part(batch: Batch, rank: int) -> Batch:
    rows = slice(rank * len(batch.keys) // WORLD, (rank + 1) * len(batch.keys) // WORLD)
    assert batch.labels is not None
    return Batch(batch.images[rows], batch.keys[rows], batch.labels[rows], step=batch.step)


def free_features() -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(3)) + 0.5


class ReleasedGather(torch.autograd.Function):
    """The gather of U-MAE's released code: its backward keeps the local slice of a gradient that nobody has summed."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        context.rows = len(tensor)
        parts = [torch.zeros_like(tensor) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradient: Tensor) -> Tensor:
        start = distributed.get_rank() * context.rows
        return gradient[0][start : start + context.rows]


def released_penalty(features: Tensor) -> Tensor:
    directions = ReleasedGather.apply(functional.normalize(features, dim=-1))
    return (directions @ directions.T).square().mean()


def averaged(tensor: Tensor) -> Tensor:
    """As DDP averages gradients over processes."""
    tensor = tensor.clone()
    distributed.all_reduce(tensor)
    return tensor / WORLD


def penalty_gradient(penalty: Any, rank: int) -> Tensor:
    """The gradient of a shared matrix that all features go through, averaged as a weight's would be."""
    matrix = torch.eye(6, requires_grad=True)
    penalty(free_features()[rank * 4 : rank * 4 + 4] @ matrix).backward()
    assert matrix.grad is not None
    return averaged(matrix.grad)


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    found: dict[str, Any] = {}
    for name in NAMES:
        run = make(name)
        step = build_step(run)
        model = DistributedDataParallel(step)
        output = model(part(make_batch(run), rank))
        output.loss.backward()
        step.after_step(0, torch.tensor(True))
        found[name] = averaged(output.loss.detach()), gradients(step), step.state_dict()
    for name in COMPILED:
        run = make(name)
        step = build_step(run)
        torch._dynamo.reset()
        output = torch.compile(step, backend="eager", fullgraph=True)(part(make_batch(run), rank))
        output.loss.backward()
        found[f"{name}, compiled"] = (
            averaged(output.loss.detach()),
            {key: averaged(gradient) for key, gradient in gradients(step).items()},
            {},
        )
    found["flops"] = measure_cost(make("u-mae")).forward_flops
    found["ours"] = penalty_gradient(lambda features: gram_penalty(features[None]), rank)
    found["released"] = penalty_gradient(released_penalty, rank)
    if rank == 0:
        torch.save(found, folder / "found.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("two")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mrp.run", "mrp.train"])
    processes = [context.Process(target=work, args=(rank, folder)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found: dict[str, Any] = torch.load(folder / "found.pt")
    return found


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> bool:
    scale = theirs.norm().clamp(min=1e-2)  # some gradients cancel to almost nothing
    return bool((ours - theirs).norm() <= tolerance * scale)


@pytest.mark.parametrize("name", NAMES + [f"{name}, compiled" for name in COMPILED])
def test_loss_gradients_and_what_follows_agree(name: str, two: dict[str, Any]) -> None:
    run = make(name.removesuffix(", compiled"))
    step = build_step(run)
    output = step(make_batch(run))
    output.loss.backward()
    step.after_step(0, torch.tensor(True))
    loss, theirs, state = two[name]
    assert close(loss, output.loss.detach())
    ours = gradients(step)
    assert ours.keys() == theirs.keys()
    assert not [key for key in ours if not close(theirs[key], ours[key])]
    assert not [key for key, tensor in state.items() if not close(tensor, step.state_dict()[key])]


def test_the_penalty_has_the_gradient_of_one_process_and_the_released_gather_half_of_it(two: dict[str, Any]) -> None:
    matrix = torch.eye(6, requires_grad=True)
    gram_penalty((free_features() @ matrix)[None]).backward()
    assert matrix.grad is not None
    assert close(two["ours"], matrix.grad)
    assert not close(two["released"], matrix.grad, 0.4)
    assert close(two["released"], matrix.grad / WORLD)


def test_counting_the_cost_needs_no_other_process(two: dict[str, Any]) -> None:
    assert two["flops"] == measure_cost(make("u-mae")).forward_flops
