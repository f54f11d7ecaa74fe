"""What a step is said to cost, against formulas written by hand and against what a real step takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from mrp import build
from mrp.batch import Batch
from mrp.build import build_optimizer, build_step, measure_cost
from mrp.config import ConfigError
from mrp.plan import plan_run
from mrp.processes.container import host_memory
from mrp.processes.cost import Cost, device_memory
from mrp.run import Run, load

SHAPES = [
    [],
    ["backbone.class_token=false", "backbone.registers=3"],
    ["data.size=[12, 8]", "backbone.patch=[4, 2]", "data.channels=3", "data.mean=0.5", "data.std=0.5"],
    ["objective.mask_ratio=0.5", "backbone.depth=3", "objective.decoder.depth=0"],
]


CURIOUS = """
from typing import Literal
from mrp.objectives import mae

class Config(mae.Config):
    name: Literal["curious"] = "curious"

class Objective(mae.Objective):
    def forward(self, batch):
        assert float(batch.images.sum()) != 3
        return super().forward(batch)
"""


def linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def blocks(depth: int, tokens: int, width: int) -> tuple[int, int]:
    """FLOPs of the matrices of transformer blocks (qkv, projection, two of the MLP), and of their attention."""
    matrices = sum(linear(tokens, width, outputs * width) for outputs in (3, 1, 4, 4))
    return depth * matrices, depth * 2 * linear(tokens, width, tokens)


@pytest.mark.parametrize("words", SHAPES, ids=" ".join)
def test_flops_are_those_of_the_formula(words: list[str]) -> None:
    run = load("demo", words)
    vit, decoder = run.backbone, run.objective.decoder  # type: ignore[attr-defined]
    patch = (vit.patch, vit.patch) if isinstance(vit.patch, int) else vit.patch
    assert vit.width
    assert vit.depth
    assert patch
    patches = (run.data.shape[0] // patch[0]) * (run.data.shape[1] // patch[1])
    pixels = patch[0] * patch[1] * run.data.num_channels
    prefix = int(vit.class_token) + vit.registers
    visible = int(patches * (1 - run.objective.mask_ratio)) + prefix  # type: ignore[attr-defined]

    first = linear(patches, pixels, vit.width)
    encoder, attention = blocks(vit.depth, visible, vit.width)
    decoding, cross = blocks(decoder.depth, patches + prefix, decoder.width)
    ends = linear(visible, vit.width, decoder.width) + linear(patches + prefix, decoder.width, pixels)
    matrices, attention = first + encoder + decoding + ends, attention + cross

    cost = measure_cost(run)
    assert cost.forward_flops == matrices + attention
    # Backward: two products a matrix, but no gradient of the pixels; five products in attention, which computes its
    # scores once more instead of keeping them.
    assert cost.training_flops == 3 * matrices - first + attention + attention * 5 // 2


def test_parameters_are_counted_as_they_are_trained() -> None:
    run = load("demo")
    step = build_step(run)
    cost = measure_cost(run)
    assert cost.parameters == sum(parameter.numel() for parameter in step.parameters())
    assert cost.trainable == cost.parameters - 17 * 96, "the positions of 16 patches and the class token stay fixed"


@pytest.mark.parametrize(("ratio", "bound"), [("0.75", ""), ("{kind: linear, value: 0.75, end: 0.1}", "at most ")])
def test_work_that_changes_over_the_run_is_said_to_be_the_most(ratio: str, bound: str) -> None:
    """A table of two runs would else compare results at FLOPs that one of them never took."""
    assert measure_cost(load("demo", [f"objective.mask_ratio={ratio}"])).bound == bound


def test_a_cost_is_counted_once_and_anew_for_what_changes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, counted = tmp_path / "curious.py", []
    monkeypatch.setattr(build, "measure", lambda *words: counted.append(words) or Cost(1, 1, 1, 1, len(counted)))

    def count(seed: int, *words: str) -> int:
        return measure_cost(load("demo", [f"seed={seed}", *words])).activation_bytes

    assert [count(2**40), count(2**40), count(2**40, "diagnose.every=null")] == [1, 1, 1]
    assert count(2**40, "machine.checkpointing=true") == 2
    assert count(2**40, "precision=bf16") == 3
    for number, text in enumerate(("", "CHANGED = True\n")):
        method.write_text(text + CURIOUS)
        assert [count(2**40, f"objective.name={method}")] * 2 == [4 + number] * 2


def batch(run: Run, images: int) -> Batch:
    pixels = torch.zeros(images, run.data.num_channels, *run.data.shape, dtype=torch.uint8)
    return Batch(pixels, torch.arange(images) * 7919)


def kept(run: Run, images: int) -> int:
    """Bytes that a real forward pass allocates and does not give back before the backward pass."""
    step = build_step(run)
    step(batch(run, images)).loss.backward()  # what is allocated once and for all
    step.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        output = step(batch(run, images))
    assert output.loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in found.events() or ())


@pytest.mark.parametrize(
    "words", [["precision=fp32"], ["precision=bf16"], ["precision=fp32", "machine.checkpointing=true"]], ids=" ".join
)
def test_activations_are_those_of_a_real_step(words: list[str]) -> None:
    run = load("demo", words)
    measured = (kept(run, 48) - kept(run, 16)) / 32
    assert measure_cost(run).activation_bytes == pytest.approx(measured, rel=0.25)


def test_recomputed_activations_are_not_counted() -> None:
    assert (
        measure_cost(load("demo", ["machine.checkpointing=true"])).activation_bytes
        < measure_cost(load("demo")).activation_bytes / 2
    )


@pytest.mark.parametrize("name", ["adamw", "muon", "lars"])
def test_moments_are_those_that_the_optimizer_keeps(name: str) -> None:
    run = load("demo", [f"optim.name={name}", "backbone.depth=2"])
    step = build_step(run)
    optimizer = build_optimizer(run.optim, step)
    step(batch(run, 4)).loss.backward()
    optimizer.step()
    kept = sum(tensor.numel() for state in optimizer.state.values() for key, tensor in state.items() if key != "step")
    cost = measure_cost(run)
    assert cost.moments * cost.trainable == pytest.approx(kept)
    assert (cost.moments < 2) is (name != "adamw")


@pytest.mark.parametrize("images", [4, 256])  # most of it is for the weights, or for the activations
def test_memory_is_that_of_a_real_process(images: int) -> None:
    run = load("demo")
    step = build_step(run)
    optimizer = build_optimizer(run.optim, step)
    step(batch(run, 4)).loss.backward()
    optimizer.step()
    moments = [tensor for state in optimizer.state.values() for tensor in state.values()]
    gradients = [parameter.grad for parameter in step.parameters() if parameter.grad is not None]
    state = sum(tensor.nbytes for tensor in (*step.parameters(), *gradients, *moments))
    assert measure_cost(run).memory(images) == pytest.approx(state + kept(run, images), rel=0.25)


@given(share=st.integers(1, 2000), memory=st.integers(0, 10**9))
def test_the_micro_batch_is_the_largest_that_divides_and_fits(share: int, memory: int) -> None:
    cost = Cost(parameters=1000, trainable=900, forward_flops=1, training_flops=3, activation_bytes=10**6)
    size = cost.micro_batch(share, memory)
    assert share % size == 0
    assert size == 1 or cost.memory(size) < memory
    larger = [other for other in range(size + 1, share + 1) if share % other == 0]
    assert not larger or cost.memory(larger[0]) > 0.8 * memory


def test_the_memory_of_the_host_is_shared_by_its_processes() -> None:
    """Each takes some of it for itself before there is a model: torch alone is hundreds of MiB."""
    whole = host_memory()
    one, four = (device_memory(torch.device("cpu"), processes) for processes in (1, 4))
    own = whole - one
    assert 300 << 20 < own < 1 << 30
    assert four == whole // 4 - own
    assert device_memory(torch.device("cpu"), 10**6) == whole // 10**6 // 4  # and something is left on a small host
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert whole == pytest.approx(total, rel=0.01)
    assert whole > 2**20 * os.cpu_count()  # type: ignore[operator]


def test_a_method_that_asks_for_numbers_is_told_to_name_its_micro_batch(tmp_path: Path) -> None:
    method = tmp_path / "curious.py"
    method.write_text(CURIOUS)
    run = load("demo", [f"objective.name={method}"])
    with pytest.raises(ConfigError, match=r"objective: its forward pass needs numbers .* give machine.micro_batch a"):
        plan_run(run, 10, 1, 2**30)
    chosen = run.model_copy(update={"machine": run.machine.model_copy(update={"micro_batch": 1})})
    assert plan_run(chosen, 10, 1, 2**30).micro_batch == 1
