"""Measures a training step of each method: time, images per second, FLOP/s, peak memory, and the gain of several masks.

    python tools/bench_step.py                                  # CPU: ViT-S/16 at 224, batch 8, fp32
    python tools/bench_step.py --backbone vit_base_patch16_224 vit_large_patch16_224 --batch 256 --compile no yes

Each case runs in a process of its own, so that peak memory is its own; the cases of a method take turns over `--rounds`
rounds, so that a machine that slows down slows all of them. FLOPs are counted, forward and backward, teacher included.
The share of the peak is relative to a large matrix product (bf16 on a GPU) that is measured in the same run. On a GPU
each time is the mean of five steps, after which the host waits for it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch._dynamo.utils import counters

from mrp.batch import Batch
from mrp.build import build_optimizer, build_step, measure_cost
from mrp.config import Tree, build
from mrp.run import Run

METHODS: dict[str, dict[str, Any]] = {
    "mae": {"name": "mae"},
    "umae": {"name": "mae", "uniformity": 0.01},
    "simmim": {"name": "simmim"},
    "usimmim": {"name": "simmim", "uniformity": 0.01},
    "data2vec": {"name": "data2vec"},
    "data2vec2": {"name": "data2vec2", "masks": 1},
    "supervised": {"name": "classify", "classes": 1000},
    "crossmae": {"name": "crossmae", "predicted": 0.75, "decoder": {"depth": 12}},
    "maskfeat": {"name": "maskfeat"},
    "mae_sigreg": {"name": "mae", "uniformity": {"weight": 0.02, "kind": "sigreg"}},
    "ijepa": {"name": "ijepa", "predictor": {"width": 384, "depth": 6}},
}
COLUMNS = (
    *("method", "M", "backbone", "precision", "compiled", "ms per step (range)"),
    *("images/s", "views/s", "GFLOP per image", "TFLOP/s", "% of peak", "GiB"),
)
# Further options of the official recipes' backbones.
BACKBONES: dict[str, dict[str, Any]] = {
    "simmim": {"positions": "none", "relative_bias": "shared", "layer_scale": 0.1, "qkv_bias": "query_value"},
    "data2vec": {"positions": "none", "relative_bias": "shared", "layer_scale": 1e-4, "qkv_bias": "query_value"},
    "data2vec2": {"norm": "post"},
    "ijepa": {"class_token": False},
}
BACKBONES["usimmim"] = BACKBONES["simmim"]
MULTIPLE = {"mae", "umae", "data2vec2"}  # methods with M masks per image


@dataclass(frozen=True)
class Case:
    """What is measured: one row of the table."""

    method: str
    masks: int
    backbone: str
    size: int
    batch: int
    precision: str
    compile: str  # yes or no
    seconds: float
    backend: str = "inductor"  # of torch.compile
    fused: bool = (
        True  # False: attention as separate products and softmax, and one kernel per parameter in the optimizer
    )
    deterministic: bool = False


def make_run(case: Case) -> Run:
    """Returns the run whose step is measured."""
    options = METHODS[case.method] | ({"masks": case.masks} if case.method in MULTIPLE else {})
    backbone = {"name": case.backbone} | BACKBONES.get(case.method, {})
    values: dict[str, Any] = {"objective": options, "backbone": backbone, "batch": case.batch}
    values |= {"data": {"train": "none", "size": case.size}, "length": "1 steps", "optim": {"lr": 1e-4}}
    return build(Run, Tree(values | {"precision": case.precision}, {}))


class Trainer:
    """A step with its optimizer and one batch, which is trained on again and again."""

    def __init__(self, case: Case) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        run = make_run(case)
        self.step = build_step(run).to(self.device)
        self.optimizer = build_optimizer(run.optim, self.step)
        if not case.fused:
            for module in self.step.modules():
                if hasattr(module, "fused_attn"):
                    module.fused_attn = False  # type: ignore[assignment]
            self.optimizer = torch.optim.AdamW(self.step.parameters(), lr=1e-4, foreach=False)
        if case.compile == "yes":
            self.step.compile(dynamic=False, backend=case.backend)
        # Colour beside colour, as the loader gives them.
        images = torch.randint(0, 256, (case.batch, case.size, case.size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        labels = torch.zeros(case.batch, dtype=torch.int64)
        self.batch = Batch(images, torch.arange(case.batch), labels=labels).to(self.device)
        self._updates = 0

    def update(self, steps: int = 1) -> float:
        """Trains so many steps, between which nobody waits for the device; returns the seconds of each."""
        begin = time.perf_counter()
        for _ in range(steps):
            self.step(self.batch).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step.after_step(self._updates, torch.ones((), dtype=torch.bool, device=self.device))
            self._updates += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / steps


def run_case(case: Case) -> dict[str, Any]:
    """Builds, warms up and times one case, in this process."""
    if case.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    trainer = Trainer(case)
    cuda = trainer.device.type == "cuda"
    warm_up = [trainer.update() for _ in range(5 if cuda else 2)]
    # In a run the host is steps ahead of a GPU. One that waits after each step would add the time until the next one's
    # first kernel, 1 or 2 ms of Python.
    times, begin, together = list[float](), time.perf_counter(), 5 if cuda else 1
    while time.perf_counter() - begin < case.seconds or len(times) < 3:
        times.append(trainer.update(together))
    cost = measure_cost(make_run(case))
    return {
        "times": times,
        "first": warm_up[0],  # with compilation
        # Whether all graphs were on the disk.
        "warm": counters["inductor"]["fxgraph_cache_hit"] > 0 and not counters["inductor"]["fxgraph_cache_miss"],
        "flops": cost.training_flops,
        "memory": torch.cuda.max_memory_allocated() if cuda else _resident(),
        "estimate": cost.memory(case.batch),
    }


def _resident() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def peak_rate(size: int | None = None) -> float:
    """Returns the FLOP/s of a large matrix product: bf16 on a GPU, float32 on a CPU."""
    cuda = torch.cuda.is_available()
    size = size or (8192 if cuda else 2048)
    left, right = (
        torch.randn(size, size, device="cuda" if cuda else "cpu", dtype=torch.bfloat16 if cuda else torch.float32)
        for _ in range(2)
    )
    times: list[float] = []
    for _ in range(12):
        begin = time.perf_counter()
        left @ right
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / statistics.median(times[2:])


def isolated(words: list[str]) -> dict[str, Any]:
    """Runs one measurement in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def row(case: Case, result: dict[str, Any], peak: float) -> str:
    """Returns one line of the table."""
    name = f"| {case.method} | {case.masks} | {case.backbone} | {case.precision} | {case.compile} "
    if "error" in result:
        return f"{name}| {result['error'][:60]} |" + " - |" * 6
    middle = statistics.median(result["times"])
    rate = result["flops"] * case.batch / middle
    low, high = min(result["times"]), max(result["times"])
    times = f"{1e3 * middle:.1f} ({1e3 * low:.1f} to {1e3 * high:.1f}, n={len(result['times'])})"
    gib = result["memory"] / 2**30
    return (
        f"{name}| {times} | {case.batch / middle:.1f} | {case.masks * case.batch / middle:.1f} "
        f"| {result['flops'] / 1e9:.1f} | {rate / 1e12:.3g} | {100 * rate / peak:.0f} | {gib:.2f} |"
    )


def main() -> None:
    """Measures all cases in turns and prints a table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--backbone", nargs="+", default=["vit_small_patch16_224"])
    words.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    words.add_argument(
        "--masks", nargs="+", type=int, default=[1, 4, 8], help="for methods with several masks per image"
    )
    words.add_argument("--size", type=int, default=224)
    words.add_argument("--batch", type=int, default=8)
    words.add_argument("--precision", nargs="+", default=None, help="default: bf16 on a GPU, fp32 on a CPU")
    words.add_argument("--compile", nargs="+", choices=["no", "yes"], default=["no"])
    words.add_argument("--rounds", type=int, default=2)
    words.add_argument("--seconds", type=float, default=4.0, help="time for each case in each round")
    words.add_argument("--case", help=argparse.SUPPRESS)
    words.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    options = words.parse_args()
    if options.case:
        print(json.dumps(run_case(Case(**json.loads(options.case)))))
        return
    if options.peak:
        print(json.dumps({"peak": peak_rate()}))
        return
    cuda = torch.cuda.is_available()
    cases = [
        Case(method, masks, backbone, options.size, options.batch, precision, compiled, options.seconds)
        for backbone in options.backbone
        for precision in options.precision or (["bf16"] if cuda else ["fp32"])
        for compiled in options.compile
        for method in options.methods
        for masks in (options.masks if method in MULTIPLE else [1])
    ]
    results: dict[Case, dict[str, Any]] = {}
    peaks = []
    for _ in range(options.rounds):
        peaks.append(isolated(["--peak"])["peak"])
        for case in cases:
            new = isolated(["--case", json.dumps(asdict(case))])
            results[case] = joined(results[case], new) if case in results else new
    device = torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{device}; torch {torch.__version__}; batch {options.batch} at {options.size}; ", end="")
    print(f"peak {max(peaks) / 1e12:.3g} TFLOP/s\n\n| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for case in cases:
        print(row(case, results[case], max(peaks)))


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Returns the measurements of two rounds together."""
    if "error" in old or "error" in new:
        return old if "error" in new else new
    return new | {"times": old["times"] + new["times"], "memory": max(old["memory"], new["memory"])}


if __name__ == "__main__":
    main()
