"""A run on a GPU that is emulated: all that is torch's for CUDA but the kernels (tools/gpu_emulated.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mrp.cli import main
from tests.emulation import LACKS
from tests.trained import NARROW

TOOL = Path(__file__).parents[1] / "tools" / "gpu_emulated.py"
needs_headers = pytest.mark.skipif(bool(LACKS), reason=LACKS)
# They read features in the midst of training, and compute with them on the device.
EVALUATE = {"knn": {}, "centroid": {}, "geometry": {"images": 60, "views": 2}}
OF_THE_MACHINE = {"loader", "memory", "checkpoint"}
EXAMPLES = """
import torch

there = torch.arange(6.0).reshape(2, 3).cuda().requires_grad_()
(there @ there.T).relu().sum().backward()
assert there.grad.device == there.device and there.grad.tolist() == [[6, 10, 14], [6, 10, 14]]
row = there.detach()[1]
row.add_(1).squeeze_()
assert there.tolist() == [[0, 1, 2], [4, 5, 6]]
torch.cuda.set_sync_debug_mode("error")
waits = [
    lambda: there.sum().item(), lambda: there[torch.tensor([1])], lambda: there[there > 2], lambda: there.cpu(),
    lambda: torch.tensor([1.0, 2.0], device="cuda"), lambda: torch.ones(3).cuda(), lambda: bool((there > 2).any()),
]
for wait in waits:
    try:
        wait()
    except RuntimeError as error:
        assert "synchronizing" in str(error), error
    else:
        raise AssertionError(f"the host does not wait: {waits.index(wait)}")
there + torch.ones(3).pin_memory().to("cuda", non_blocking=True) + torch.tensor(2.0)
try:
    there + torch.ones(3)
except RuntimeError as error:
    print(error)
"""


def emulated(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(TOOL.parents[1])}
    command = [sys.executable, "-W", "ignore", str(TOOL), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def without_times(line: dict[str, float]) -> dict[str, float]:
    return {name: line[name] for name in line if name.partition("/")[0] not in OF_THE_MACHINE and "second" not in name}


@needs_headers
def test_it_computes_waits_and_refuses_as_a_gpu_does(tmp_path: Path) -> None:
    (tmp_path / "examples.py").write_text(EXAMPLES)
    done = emulated(str(tmp_path / "examples.py"))
    assert done.returncode == 0, done.stderr
    assert "expected all tensors to be on the same device, but one of (3,) is on cpu" in done.stdout


@pytest.mark.slow
@needs_headers
def test_a_run_on_it_is_that_of_a_cpu(tmp_path: Path) -> None:
    """Training, its average, evaluators, and checkpoints through page-locked memory."""
    sections = {name: options | {"every": "2 steps"} for name, options in EVALUATE.items()}
    words = [
        *NARROW, "backbone.depth=1", "length=2 steps", "optim.warmup=1 steps", "checkpoint.every=1 steps",
        "track.every=1", "average={decay: 0.5}", "machine.workers=0", f"evaluate={json.dumps(sections)}",
    ]  # fmt: skip
    main(["pretrain", *words, "--folder", str(tmp_path / "cpu")])
    done = emulated("-m", "mrp", "pretrain", *words, "--folder", str(tmp_path / "gpu"))
    assert done.returncode == 0, done.stderr
    assert ", fp32, on cuda" in done.stdout
    cpu, gpu = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("cpu", "gpu")
    )
    assert all(line["memory/device_peak_gib"] > 0 for line in gpu)
    assert "geometry/average/rank_me" in gpu[-1]
    assert [*map(without_times, gpu)] == [pytest.approx(without_times(line), rel=1e-2) for line in cpu]
