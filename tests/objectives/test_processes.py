"""Two processes give the loss and the gradient of one on the same global batch: every method, at one start."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as distributed
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from mrp.build import build_step, measure_cost
from mrp.check.processes import WORLD, Stepped, agree, averaged, close, in_two, one_step, share
from mrp.methodkit import gram_penalty
from mrp.run import Run
from tests.objectives.test_every_objective import NAMES, gradients, make_batch, make_run

COMPILED = ["u-mae", "mae-sigreg", "capi", "probe"]  # those that speak to the other processes in their forward pass
BUCKET = 2**14  # bytes of gradients: DDP sends so many at once, and the compiler cuts the graph there
BACKBONE = {"drop_path": 0.2, "relative_bias": "shared", "layer_scale": 0.5}


def make(name: str) -> Run:
    return make_run(name, backbone=BACKBONE)


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


def penalty_gradient(penalty: Any, rank: int) -> Tensor:
    """The gradient of a shared matrix that all features go through, averaged as a weight's would be."""
    matrix = torch.eye(6, requires_grad=True)
    penalty(free_features()[rank * 4 : rank * 4 + 4] @ matrix).backward()
    assert matrix.grad is not None
    return averaged(matrix.grad)


def work(rank: int, names: list[str]) -> dict[str, Any]:
    distributed._DEFAULT_FIRST_BUCKET_BYTES = BUCKET  # type: ignore[attr-defined]
    found: dict[str, Any] = {name: tuple(one_step(make(name), make_batch(make(name)), rank)) for name in names}
    for name in COMPILED:
        run = make(name)
        step = build_step(run)
        torch._dynamo.reset()
        graphs: list[str] = []

        def counting(graph: Any, inputs: Any, graphs: list[str] = graphs) -> Any:
            graphs.append("one")
            return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

        step.compile(backend=counting, fullgraph=True, dynamic=False)
        model = DistributedDataParallel(step, bucket_cap_mb=BUCKET / 2**20, gradient_as_bucket_view=True)
        output = model(share(make_batch(run), rank))
        output.loss.backward()
        found[f"{name}, compiled"] = averaged(output.loss.detach()), gradients(step), {}
        found[f"{name}, graphs"] = len(graphs)
    found["flops"] = measure_cost(make("u-mae")).forward_flops
    found["ours"] = penalty_gradient(lambda features: gram_penalty(features[None]), rank)
    found["released"] = penalty_gradient(released_penalty, rank)
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found: dict[str, Any] = in_two(work, NAMES, tmp_path_factory.mktemp("two"))
    return found


@pytest.mark.parametrize("name", NAMES + [f"{name}, compiled" for name in COMPILED])
def test_loss_gradients_and_what_follows_agree(name: str, two: dict[str, Any]) -> None:
    run = make(name.removesuffix(", compiled"))
    one, found = one_step(run, make_batch(run)), Stepped(*two[name])
    assert one.gradients.keys() == found.gradients.keys()
    agree(one if found.state else one._replace(state={}), found)
    if name.endswith(", compiled"):
        cut = two[name.replace("compiled", "graphs")] > 2
        assert cut != name.startswith("probe")  # a linear head alone has too few gradients


def test_the_penalty_has_the_gradient_of_one_process_and_the_released_gather_half_of_it(two: dict[str, Any]) -> None:
    matrix = torch.eye(6, requires_grad=True)
    gram_penalty((free_features() @ matrix)[None]).backward()
    assert matrix.grad is not None
    assert close(two["ours"], matrix.grad)
    assert not close(two["released"], matrix.grad, 0.4)
    assert close(two["released"], matrix.grad / WORLD)


def test_counting_the_cost_needs_no_other_process(two: dict[str, Any]) -> None:
    assert two["flops"] == measure_cost(make("u-mae")).forward_flops
