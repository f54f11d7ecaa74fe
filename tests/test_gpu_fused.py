"""The kernels that tools/ has in Triton, without a GPU: interpreted, counted, and compiled for an H100."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.emulation import LACKS

ROOT = Path(__file__).parents[1]
WIDTHS = (192, 384, 512, 768, 1024, 1280)
TRITON = importlib.util.find_spec("triton")
pytestmark = pytest.mark.skipif(TRITON is None, reason="needs Triton")


@pytest.mark.slow
def test_the_kernels_give_what_torch_computes_and_every_gradient() -> None:
    said = other_process("interpreted", TRITON_INTERPRET="1")
    kernels, steps = said["kernels"], said["steps"]
    assert len(kernels) == 3 * len(WIDTHS) + 3
    assert all(gap < 1 for gap in kernels.values()), kernels
    for step in steps:
        assert max(step["fp32"][1]) < 1e-6
        assert step["agrees"]  # in bf16, as the part `faster` demands it


@pytest.mark.slow
def test_each_tensor_of_a_kernel_is_counted_once() -> None:
    if LACKS:
        pytest.skip(LACKS)
    forward, backward = other_process("counted")
    numbers = 2048 * 256  # rows and columns of a branch
    assert forward == pytest.approx(numbers * 12, rel=0.01)
    assert backward == pytest.approx(numbers * 16 + 256 * 3 * 256 * 4, rel=0.01)  # 256 programs write parts of three


@pytest.mark.parametrize("width", [192, 768, 1280])
def test_no_register_is_spilled_on_an_h100_and_enough_bytes_are_under_way(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (TRITON and TRITON.origin and (Path(TRITON.origin).parent / "backends/nvidia/bin/cuobjdump").is_file()):
        pytest.skip("needs the tools that Triton brings for NVIDIA's GPUs")
    if os.environ.get("TRITON_INTERPRET"):
        pytest.skip("the interpreter compiles nothing")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import gpu_fused

    for kernel in (gpu_fused._sum_and_norm_kernel, gpu_fused._sum_and_norm_backward_kernel):
        made = gpu_fused.built(kernel, width)
        assert made.spilled == 0
        assert made.kilobytes > 15  # of 132 multiprocessors, an H100's memory has as many under way


def other_process(function: str, **environment: str) -> Any:
    """Returns what a function of this file returns in a new process: how Triton works is decided at its import."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tools")))
    command = [sys.executable, "-W", "ignore", __file__, function]
    done = subprocess.run(command, env=os.environ | environment | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def interpreted() -> Any:
    """Returns how far the kernels and a step that uses them are from what torch computes."""
    from gpu_candidates import CANDIDATES
    from gpu_faster import agrees

    from tests.test_gpu_faster import gaps

    torch.manual_seed(0)
    kinds = [(torch.float32, torch.bfloat16), (torch.float32, torch.float32), (torch.float64, torch.float64)]
    kernels = {
        f"{width}, {kind} of {stream}": farthest(width, stream, kind, simple=kind == torch.float32)
        for width in WIDTHS
        for stream, kind in kinds
    }
    kernels |= {f"GELU, {kind} after {stream}": farthest_of_gelu(stream, kind) for stream, kind in kinds}
    steps = [
        {"fp32": gaps(name, "fp32"), "agrees": agrees(*gaps(name, "bf16"), CANDIDATES[name].further)}
        for name in ("fused", "gelu")
    ]
    return {"kernels": kernels, "steps": steps}


def farthest(width: int, stream: torch.dtype, kind: torch.dtype, simple: bool) -> float:
    """Returns the largest difference of a result or a gradient, in allowed ones; 15 rows are in no kernel's steps."""
    from gpu_fused import sum_and_norm

    def given(*shape: int, dtype: torch.dtype = stream) -> Tensor:
        return torch.randn(shape, dtype=dtype, requires_grad=True)

    x, branch, norm = given(3, 5, width), given(3, 5, width, dtype=kind), nn.LayerNorm(width, eps=1e-6).to(stream)
    nn.init.normal_(norm.weight)
    offset, scale = given(width), None if simple else given(width)
    factors = None if simple else torch.tensor([0, 1.25, 1.25], dtype=stream)  # the first sample skips the branch
    inputs = [each for each in (x, branch, norm.weight, norm.bias, offset, scale) if each is not None]
    weights = given(3, 5, width), given(3, 5, width, dtype=kind)

    def results(total: Tensor, normed: Tensor) -> list[Tensor]:
        return [total, normed, *torch.autograd.grad([total, normed], inputs, weights)]

    added = branch.to(stream) + offset
    total = x + (added if scale is None or factors is None else added * scale * factors[:, None, None])
    right = results(total, norm(total).to(kind))
    ours = results(*sum_and_norm(x, branch, norm, offset=offset, scale=scale, factors=factors))
    return farthest_of(ours, right)


def farthest_of_gelu(stream: torch.dtype, kind: torch.dtype) -> float:
    """Returns the same of GELU and the bias before it; 300 columns are not divided by a kernel's."""
    from gpu_gelu import gelu

    x, offset = (
        torch.randn(3, 5, 300, dtype=kind, requires_grad=True),
        torch.randn(300, dtype=stream, requires_grad=True),
    )
    weights, right = torch.randn(3, 5, 300, dtype=kind), functional.gelu(x.to(stream) + offset).to(kind)
    ours = gelu(x, offset)
    pairs = [[out, *torch.autograd.grad(out, (x, offset), weights)] for out in (ours, right)]
    return farthest_of(*pairs)


def farthest_of(ours: list[Tensor], right: list[Tensor]) -> float:
    # A number between two of bf16 may become the other one.
    allowed = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-4}
    return max(
        float((new - old).double().norm() / old.double().norm()) / allowed[new.dtype]
        for new, old in zip(ours, right, strict=True)
    )


def counted() -> Any:
    """Returns the bytes of a kernel's forward and backward pass."""
    import gpu_kernels

    gpu_kernels.pretend()
    from gpu_fused import sum_and_norm

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.offset = nn.LayerNorm(256), nn.Parameter(torch.zeros(256))
            self.linear = nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)

        def forward(self, tokens: Tensor) -> Any:
            branch = self.linear(tokens.bfloat16())
            total, normed = sum_and_norm(tokens, branch, self.norm, offset=self.offset)
            return SimpleNamespace(loss=(normed.sum() + total.sum()).float())

    made = gpu_kernels.graphs(Sum(), torch.randn(8, 256, 256), {})
    return [sum(each.bytes for each in graph.kernels if each.kind.startswith("_sum_and_norm")) for graph in made]


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
