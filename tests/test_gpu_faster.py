"""The candidates of tools/gpu_candidates.py compute what the product computes, and what is wrong is noticed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gpu_faster
import pytest
import torch
from gpu_candidates import CANDIDATES, Candidate
from gpu_faster import Trainer, agrees, apart, in_turns, kernels, verdict
from gpu_setup import Scale, make_run
from roofline import GPUS, Shape, Ways, expected, gpu_named, parts
from torch import nn

from mrp.build import measure_cost
from mrp.step import Step

TINY = Scale(True, Path())
EXACT = ["visible", "hidden", "flash", "cudnn", "efficient", "linear", "region"]


def gaps(name: str | Candidate, precision: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns how far the product, in this precision, and a candidate are from the product in float32."""
    candidate = CANDIDATES[name] if isinstance(name, str) else name
    run = partial(gpu_faster._run, candidate.model, TINY)
    truth = Trainer(run("fp32"), TINY).gradient()
    ours, theirs = Trainer(run(precision), TINY).gradient(), Trainer(run(precision), TINY, candidate).gradient()
    return apart(ours, truth), apart(theirs, truth)


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_candidate_has_the_products_loss_and_gradient(name: str) -> None:
    assert max(gaps(name, "fp32")[1]) < 1e-5


@pytest.mark.parametrize(("name", "least", "most"), [("residual", 1e-5, 2e-2), ("fp8", 1e-2, 1.2e-1)])
def test_a_coarser_candidate_is_as_far_from_float32_as_it_says(name: str, least: float, most: float) -> None:
    ours, theirs = gaps(name, "bf16")
    assert abs(theirs[1] - ours[1]) > least  # it does compute in another way
    assert theirs[1] < most
    assert agrees(ours, theirs, CANDIDATES[name].further)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_relative_bias_by_flex_attention_gives_the_products_loss() -> None:
    run = gpu_faster._run(CANDIDATES["flex"].model, TINY, "fp32")
    ours, theirs = Trainer(run, TINY), Trainer(run, TINY, CANDIDATES["flex"])
    with torch.no_grad():  # on a CPU it has no backward pass
        assert float(theirs.step(theirs.batch).loss) == pytest.approx(float(ours.step(ours.batch).loss), rel=1e-5)


def forgets_a_bias(step: Step) -> None:
    step.objective.backbone.blocks[0].mlp.fc1.bias = None


def forgets_positions(step: Step) -> None:
    step.objective.backbone.pos_embed = None


def forgets_a_norm(step: Step) -> None:
    step.objective.decoder.norm = nn.Identity()  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", [forgets_a_bias, forgets_positions, forgets_a_norm])
def test_what_a_candidate_forgets_is_noticed(wrong: Callable[[Step], None]) -> None:
    candidate = Candidate("wrong", lambda shape: 0.0, wrong)
    run = gpu_faster._run(candidate.model, TINY)
    ours, theirs = Trainer(run, TINY), Trainer(run, TINY, candidate)
    assert not agrees((0.0, 0.0), apart(theirs.gradient(), ours.gradient()), candidate.further)


def test_nan_never_agrees() -> None:
    assert agrees((1e-3, 1e-3), (1e-3, 1e-3), (0.0, 0.0))
    assert not agrees((1e-3, 1e-3), (float("nan"), 1e-3), (1.0, 1.0))


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.97, 0.99, "pays"), (1.01, 1.02, "does not pay"), (0.997, 1.002, "does not pay"), (0.98, 1.01, "undecided")],
)
def test_the_verdict_follows_from_the_interval(low: float, high: float, said: str) -> None:
    assert verdict(low, high) == said


def test_both_are_called_in_turns_and_in_changing_order() -> None:
    called: list[str] = []
    times = in_turns(
        lambda: called.append("a"), lambda: called.append("b"), 2, 3, lambda: called.append("|")
    )  # fmt: skip
    assert "".join(called) == "|aa||bb||bb||aa||aa||bb|"
    assert [len(one) for one in times] == [3, 3]


def test_flops_of_the_parts_are_those_that_the_product_counts() -> None:
    run = make_run("mae", TINY)
    shape = Shape.of(run, GPUS["h100"])
    assert sum(part.flops for part in parts(shape)) == run.batch * measure_cost(run).training_flops
    fewer = sum(part.flops for part in parts(shape, Ways(visible=True, hidden=True)))
    assert fewer < sum(part.flops for part in parts(shape))


@pytest.mark.parametrize(
    "ways",
    [
        {"visible": True},
        {"hidden": True},
        {"epilogue": True},
        {"residual": 2},
        {"fused": True},
        {"gelu": True},
        {"fp8": True},
    ],
)
def test_each_way_is_foretold_to_save_a_part_of_a_large_step(ways: dict[str, Any]) -> None:
    shape = Shape.of(make_run("mae", Scale(False, Path()), "vit_base_patch16_224", batch=256), GPUS["h100"])
    assert 0.7 < expected(shape, Ways(**ways)) / expected(shape) < 0.995


def test_what_a_faster_memory_saves_is_foretold_for_the_gpu_that_is_there() -> None:
    run = make_run("mae", Scale(False, Path()), "vit_base_patch16_224", batch=256)
    h100, h200 = (Shape.of(run, gpu_named(name)) for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H200"))
    assert expected(h200) < expected(h100)
    gains = [1 - expected(shape, Ways(residual=2)) / expected(shape) for shape in (h100, h200)]
    assert gains[1] < gains[0]


def test_the_options_exist_in_this_torch() -> None:
    known = set(torch._inductor.list_options())
    assert all(set(candidate.options) <= known for candidate in CANDIDATES.values())


def test_kernels_are_named_by_what_they_do_and_in_the_order_of_their_time() -> None:
    names = {
        "nvjet_hsh_128x256": 5.0, "triton_per_fused_native_layer_norm_0": 2.0, "pytorch_flash::flash_bwd_kernel": 1.0,
        "multi_tensor_apply_kernel<FusedAdam>": 1.0, "Memcpy DtoD": 0.5, "mystery": 0.5,
    }  # fmt: skip
    table, shares = kernels(names)
    assert shares["products"] == 0.5
    assert shares["fused elementwise"] == 0.2
    assert shares["attention"] == shares["optimizer and norm"] == 0.1
    assert shares["other"] == shares["copies"] == 0.05
    assert table.splitlines()[2].startswith("| nvjet_hsh_128x256 | products | 5.000 | 50.0% |")
