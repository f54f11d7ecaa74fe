"""Which kernels a compiled step becomes on an H100, and what they read and write: told by a machine without a GPU.

    python tools/gpu_kernels.py                                 # MAE with a ViT-B, batch 256
    python tools/gpu_kernels.py --method simmim --backbone shallow
    python tools/gpu_kernels.py --candidate residual            # a way of tools/gpu_candidates.py
    python tools/gpu_kernels.py --out kernels                   # and the code that the compiler has written
    python tools/gpu_kernels.py --attention                     # of every method, in seconds: its kernels of attention

torch's compiler is told of an H100 by a small library in place of CUDA's (gpu_absent.c, built by `cc`). It chooses the
kernel of attention, fuses, and writes Triton's code as it would there; nothing is compiled further or run. Bytes are
what each kernel takes and gives, once. What the compiler would decide by measuring is left undecided: whether a product
of an odd size is padded, and how a kernel is divided.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_PRETENDED = "MRP_GPU_IS_ABSENT"
_CAPABILITY = 90
_LONGEST = 12


def pretend() -> None:
    """Starts this program again with the library that stands in for CUDA's; returns in the program so started."""
    if os.environ.get(_PRETENDED):
        return
    import torch
    import triton  # type: ignore[import-untyped]

    installed = Path(torch.__file__).parents[1]
    headers = [*installed.glob("nvidia/*/include/driver_types.h")]
    if not headers:
        sys.exit("gpu_kernels: CUDA's headers are not there; they come with torch's wheels for Linux from 2.11 on")
    include = [headers[0].parent, Path(triton.__file__).parent / "backends/nvidia/include"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libcuda.so.1"  # found under this name by those who look for the driver
        source = Path(__file__).with_name("gpu_absent.c")
        words = ["cc", "-shared", "-fPIC", "-w", *(f"-I{path}" for path in include), str(source), "-o", str(library)]
        subprocess.run([*words, "-ldl"], check=True)
        paths = os.environ.get("LD_LIBRARY_PATH", "")
        more = {"LD_PRELOAD": str(library), "LD_LIBRARY_PATH": f"{folder}:{paths}".rstrip(":"), _PRETENDED: "yes"}
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=os.environ | more).returncode)


@dataclass(frozen=True)
class Kernel:
    """A kernel, or a call of a library."""

    kind: str
    bytes: int
    shapes: str
    sources: str  # lines of Python that it computes

    @classmethod
    def of(cls, node: Any) -> Kernel:
        """Returns that of a node of the compiler's schedule."""
        from torch._inductor.scheduler import NopKernelSchedulerNode

        nodes = node.get_nodes()
        buffers = [each.node for each in nodes]
        first = type(buffers[0]).__name__
        called = getattr(buffers[0], "python_kernel_name", None)
        kind = called.split(".")[1 if called.startswith("extern") else 3] if called else "fused"
        if first == "UserDefinedTritonKernel":
            kind = called = buffers[0].get_kernel_and_metadata()[0].__name__
        shapes = [] if called else [f"{tuple(buffer.get_size())}" for buffer in buffers]
        origins = {origin for buffer in buffers for origin in buffer.origins}
        lines = {line for origin in origins if (line := _line(origin.meta.get("stack_trace") or ""))}
        if first == "MultiOutput" or isinstance(node, NopKernelSchedulerNode):  # a part of a call; memory, unwritten
            return cls("", 0, "", "")
        # Triton's kernel is given the tensors that it writes, and they are counted once.
        written = first == "UserDefinedTritonKernel"
        moved = node.get_read_buffer_sizes() if written else node.get_read_write_buffers_sizes()
        return cls(kind, int(moved), " ".join(dict.fromkeys(shapes)), " ".join(sorted(lines)))


def _line(trace: str) -> str:
    """Returns the place in mrp or timm where an operation was written."""
    places = [line.split('"') for line in trace.splitlines() if "/mrp/" in line or "/timm/" in line]
    if not places:
        return ""
    _, path, rest = places[-1][:3]
    return f"{Path(path).name}:{rest.split('line ')[1].split(',')[0]}"


@dataclass(frozen=True)
class Graph:
    """What the compiler has made of a forward or a backward pass."""

    name: str
    seconds: float
    kernels: list[Kernel]
    code: str

    @property
    def bytes(self) -> int:
        """Returns what all kernels read and write."""
        return sum(kernel.bytes for kernel in self.kernels)


def graphs(step: Any, batch: Any, options: dict[str, Any]) -> list[Graph]:
    """Compiles the forward and the backward pass of a step as for an H100, and returns both."""
    from torch._inductor import compile_fx, config
    from torch._inductor.graph import GraphLowering
    from torch._subclasses.fake_tensor import FakeTensorMode

    made, schedules = list[Graph](), list[list[Kernel]]()
    _be_an_h100()
    codegen = GraphLowering.codegen

    def watched(graph: GraphLowering) -> Any:
        code = codegen(graph)
        schedules.append([Kernel.of(node) for node in graph.scheduler.nodes])
        return code

    def inner(module: Any, inputs: Any, **more: Any) -> Any:
        begin = time.perf_counter()
        compiled = compile_fx.compile_fx_inner(module, inputs, **more)
        name = "backward" if more.get("is_backward") else "forward"
        kernels = [kernel for kernel in schedules.pop() if kernel.kind]
        made.append(Graph(name, time.perf_counter() - begin, kernels, getattr(compiled, "source_code", "")))

        def traced(*given: Any) -> Any:  # in place of the kernels: only shapes are computed
            arguments = list(given[0]) if len(given) == 1 and isinstance(given[0], list) else given
            return module(*arguments)

        traced._boxed_call = True  # type: ignore[attr-defined]
        return traced

    setattr(GraphLowering, "codegen", watched)  # noqa: B010 -- a type checker refuses the plain way
    undecided = {"joint_graph_constant_folding": False, "shape_padding": False}  # these compute on the GPU
    with (
        config.patch(undecided | {"force_disable_caches": True, "compile_threads": 1} | options),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        there = _moved(step, batch)
        step.compile(dynamic=False, backend=lambda module, inputs: compile_fx.compile_fx(module, inputs, inner))
        step(there).loss.backward()
    return made


def attention(step: Any, batch: Any) -> dict[str, int]:
    """Returns how often each kernel of attention is chosen in a forward pass; "math": a softmax between products."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    chosen: collections.Counter[str] = collections.Counter()

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func.name().removeprefix("aten::").removeprefix("_scaled_dot_product_")
            if name.endswith("_attention"):
                chosen[name.removesuffix("_attention")] += 1
            elif name == "_safe_softmax":
                chosen["math"] += 1
            return func(*args, **(kwargs or {}))

    _be_an_h100()
    with FakeTensorMode(allow_non_fake_inputs=True):
        there = _moved(step, batch)
        with Watching():  # type: ignore[no-untyped-call]
            step(there)
    return dict(chosen)


def _moved(step: Any, batch: Any) -> Any:
    """Puts a step on the GPU that is not there; returns the batch there."""
    import torch
    from torch import nn
    from torch.utils import _pytree as pytree

    device, moved = torch.device("cuda:0"), dict[int, nn.Parameter]()
    for module in step.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                placed = nn.Parameter(torch.empty_like(tensor, device=device), tensor.requires_grad)
                module._parameters[name] = moved.setdefault(id(tensor), placed)
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = torch.empty_like(tensor, device=device)
    return pytree.tree_map_only(torch.Tensor, lambda x: torch.empty_like(x, device=device), batch)


def _be_an_h100() -> None:
    """Lets torch and Triton believe in the GPU where they ask more than the library answers."""
    import torch
    import torch._subclasses.fake_tensor as fake
    import triton
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.async_compile import AsyncCompile
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]

    known = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30,
        regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024, warp_size=32,
        shared_memory_per_block=49152, shared_memory_per_block_optin=232448, L2_cache_size=50 << 20,
    )  # fmt: skip
    torch.backends.cudnn.enabled = False  # it is asked for the layout of a convolution, and would look for the GPU
    interface, at_work = CudaInterface, CudaInterface.Worker
    answers: list[tuple[Any, str, Any]] = [
        (torch.accelerator, "is_available", lambda: False),
        (torch.cuda, "_lazy_init", lambda: None),
        (torch.cuda, "get_device_properties", lambda device=None: known),
        (torch.cuda, "get_rng_state", lambda device=None: torch.get_rng_state()),
        (torch.cuda, "set_rng_state", lambda state, device=None: None),
        (fake, "init_gpu_context", lambda device: None),
        (fake.FakeTensorMode, "avoid_device_init", property(lambda mode: True)),
        (interface, "get_device_properties", staticmethod(lambda device=None: known)),
        (interface, "get_compute_capability", staticmethod(lambda device=None: _CAPABILITY)),
        (interface, "current_device", staticmethod(lambda: 0)),
        (at_work, "get_device_properties", staticmethod(lambda device=None: known)),
        (at_work, "current_device", staticmethod(lambda: 0)),
        (AsyncCompile, "triton", lambda compiler, name, source, **more: SimpleNamespace()),
    ]
    for owner, name, answer in answers:
        setattr(owner, name, answer)
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", _CAPABILITY, 32), get_current_device=lambda: 0,
        get_device_interface=lambda: torch.cuda, get_active_torch_device=lambda: torch.device("cuda:0"),
    )  # fmt: skip
    triton.runtime.driver.set_active(driver)


def table(made: list[Graph]) -> str:
    """Returns, per pass, what each kind of kernel moves, and the fused kernels that move most."""
    lines = []
    for graph in made:
        lines += [
            f"{graph.name}: {len(graph.kernels)} kernels, {graph.bytes / 1e9:.2f} GB, written in {graph.seconds:.0f} s",
            "",
        ]
        lines += ["| kernels | number | GB | shapes | computes |", "|---|---|---|---|---|"]
        rows: dict[tuple[str, str, str], list[int]] = collections.defaultdict(list)
        for kernel in graph.kernels:
            fused = kernel.kind == "fused"
            rows[kernel.kind, kernel.shapes if fused else "", kernel.sources if fused else ""].append(kernel.bytes)
        largest = sorted(rows.items(), key=lambda row: -sum(row[1]))
        kept = [row for row in largest if row[0][0] != "fused"] + [row for row in largest if row[0][0] == "fused"][
            :_LONGEST
        ]
        for (kind, shapes, sources), moved in sorted(kept, key=lambda row: -sum(row[1])):
            lines.append(f"| {kind} | {len(moved)} | {sum(moved) / 1e9:.2f} | {shapes[:80]} | {sources[:90]} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Prints the kernels of a step."""
    pretend()
    from bench_step import METHODS
    from gpu_candidates import CANDIDATES
    from gpu_setup import Scale, make_batch, make_run

    from mrp.build import build_step

    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--method", choices=METHODS, help="default: mae, or all with --attention")
    words.add_argument("--backbone", default="vit_base_patch16_224", help="a name, or shallow: four narrow blocks")
    words.add_argument("--batch", type=int, default=256)
    words.add_argument("--candidate", choices=CANDIDATES)
    words.add_argument("--out", type=Path, help="a folder for the code that the compiler has written")
    words.add_argument("--attention", action="store_true", help="of every method: the kernels of attention, no others")
    options = words.parse_args()
    for method in ([options.method] if options.method else METHODS) if options.attention else ():
        run = make_run(method, Scale(False, Path()), precision="bf16")
        print(method, json.dumps(attention(build_step(run), make_batch(run, 8))), flush=True)
    if options.attention:
        return
    backbone = None if options.backbone == "shallow" else options.backbone
    run = make_run(options.method or "mae", Scale(False, Path()), backbone, precision="bf16", batch=options.batch)
    step, candidate = build_step(run), CANDIDATES[options.candidate] if options.candidate else None
    if candidate is not None:
        candidate.change(step)
    made = graphs(step, make_batch(run, options.batch), dict(candidate.options) if candidate else {})
    print(table(made))
    for graph in made if options.out else ():
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{graph.name}.py").write_text(graph.code)


if __name__ == "__main__":
    main()
