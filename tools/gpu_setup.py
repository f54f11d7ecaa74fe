"""What the parts of tools/gpu.py share: their scale, synthetic photographs, and mrp in a process of its own."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
import torch
from bench_step import BACKBONES, METHODS

from mrp.batch import Batch
from mrp.config import Tree, build
from mrp.run import Run

if os.environ.get("MRP_GPU_IS_EMULATED"):  # here and in each process that is forked from the server below
    import gpu_emulated  # noqa: F401

T = TypeVar("T")
# Children are forked from a server that has imported everything and touched no GPU, so each starts at once.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mrp.train", "mrp.api", "gpu_right", "gpu_speed", "gpu_faster"])
_TINY_DECODER = {"width": 32, "depth": 1, "heads": 2}
_TINY: dict[str, dict[str, Any]] = {
    "mae": {"decoder": _TINY_DECODER},
    "umae": {"decoder": _TINY_DECODER},
    "simmim": {"mask_unit": 4},
    "usimmim": {"mask_unit": 4},
    "data2vec": {"smallest_block": 4, "layers": 1},
    "data2vec2": {"layers": 1, "decoder": {"width": 32, "depth": 1, "groups": 4}},
    "crossmae": {"decoder": _TINY_DECODER},
    "maskfeat": {"smallest_block": 4, "cell": 4},
    "mae_sigreg": {"decoder": _TINY_DECODER},
    "ijepa": {"predictor": {"width": 32, "depth": 1}},
}


# As wide as a ViT-Ti at 224 x 224, and shallow: a CPU computes it in seconds, and it is compiled in seconds.
SHALLOW = {"name": None, "width": 192, "depth": 4, "heads": 3, "patch": 16}
_SHALLOW_OPTIONS: dict[str, dict[str, Any]] = {
    "mae": {"decoder": {"depth": 2}}, "umae": {"decoder": {"depth": 2}}, "mae_sigreg": {"decoder": {"depth": 2}},
    "data2vec": {"layers": 2}, "data2vec2": {"layers": 2},
    "crossmae": {"decoder": {"depth": 2}}, "ijepa": {"predictor": {"depth": 2}},
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One result: what was checked or measured, its value, and whether it is as it must be (None: only a number)."""

    what: str
    value: str
    passed: bool | None = None
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """How large everything is: as on a GPU, or tiny for a rehearsal on a CPU."""

    rehearsal: bool
    folder: Path  # for runs and photographs
    cifar: Path | None = None  # CIFAR-10, where it is at hand
    share: tuple[int, int] = (0, 1)  # which process of a part this is, of how many that divide its work
    known: frozenset[str] = frozenset()  # results that an earlier call has found

    @property
    def device(self) -> torch.device:
        """Returns the device that is examined: in a rehearsal without a GPU, the CPU."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def backend(self) -> str:
        """Returns the backend of torch.compile; in a rehearsal graphs are made but not turned into kernels."""
        return "eager" if self.rehearsal else "inductor"

    @property
    def side(self) -> int:
        """Returns the side of the images that a model receives."""
        return 16 if self.rehearsal else 224

    def methods(self, *tiny: str) -> list[str]:
        """Returns the methods that are left to this process; in a rehearsal only of those that are named."""
        return [name for name in self.left(tiny if self.rehearsal else METHODS) if not self.knows(f"{name}: ")]

    def left(self, items: Iterable[T]) -> list[T]:
        """Returns this process's share of the items."""
        number, count = self.share
        return [*items][number::count]

    def knows(self, what: str) -> bool:
        """Returns whether an earlier call has found a result that begins in this way."""
        return any(known.startswith(what) for known in self.known)

    def of(self, large: int, tiny: int) -> int:
        """Returns the first number on a GPU, the second in a rehearsal."""
        return tiny if self.rehearsal else large

    def seconds(self, most: float) -> float:
        """Returns a limit of time; a rehearsal on a busy machine may take twenty times as long."""
        return most * self.of(1, 20)

    def words(self, name: str) -> list[str]:
        """Returns what makes a recipe of MAE use this backbone; in a rehearsal everything is tiny."""
        tiny = ["precision=fp32", "objective.decoder={width: 32, depth: 1, heads: 2}"] if self.rehearsal else []
        return [f"data.size={self.side}", f"backbone={json.dumps(self.backbone(name))}", *tiny]

    def backbone(self, name: str | dict[str, Any] | None) -> dict[str, Any]:
        """Returns the options of a backbone."""
        if self.rehearsal:
            return {"name": None, "width": 32, "depth": 2, "heads": 2, "patch": 4}
        return name if isinstance(name, dict) else {"name": name}


def make_run(method: str, scale: Scale, backbone: str | dict[str, Any] | None = None, **more: Any) -> Run:
    """Returns a run of a method with its official recipe's options; without a backbone, on a shallow one."""
    fewer = _TINY if scale.rehearsal else {} if backbone else _SHALLOW_OPTIONS
    values = {
        "objective": METHODS[method] | fewer.get(method, {}),
        "backbone": (scale.backbone(backbone) if backbone or scale.rehearsal else SHALLOW) | BACKBONES.get(method, {}),
        "data": {"train": "none", "size": scale.side},
        "batch": 8, "length": "1 steps", "optim": {"lr": 1e-4},
    }  # fmt: skip
    return build(Run, Tree(values | more, {}))


def make_batch(run: Run, count: int, step: int = 0) -> Batch:
    """Returns a batch of random images."""
    generator = torch.Generator().manual_seed(step)
    size = (count, run.data.num_channels, *run.data.shape)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    return Batch(images, torch.arange(count) * 7919 + step, labels=torch.arange(count) % 10, step=torch.tensor(step))


def photographs(scale: Scale, count: int) -> Path:
    """Writes JPEG files of smooth noise, as large as ImageNet's, into folders of two classes; returns the folder."""
    folder = scale.folder / f"photographs-{count}"
    if folder.exists():
        return folder
    width, height = (32, 24) if scale.rehearsal else (500, 375)
    generator = np.random.default_rng(0)
    contents = [_photograph(generator, height, width) for _ in range(min(count, 256))]
    unfinished = folder.with_name(f"{folder.name}-{os.getpid()}")  # another part may be writing the same
    for index in range(count):
        path = unfinished / f"class{index % 2}" / f"{index:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[index % len(contents)])
    with contextlib.suppress(OSError):
        unfinished.rename(folder)
    return folder


def _photograph(generator: np.random.Generator, height: int, width: int) -> bytes:
    coarse = torch.from_numpy(generator.uniform(0, 255, (1, 3, 12, 16)))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    pixels = np.clip(smooth + generator.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
    content: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=90)
    return content


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (None: it was over its time, or was killed) and what it printed."""

    code: int | None
    text: str


class Process:
    """A function in a process and a session of its own; what it prints goes into a file."""

    def __init__(self, log: Path, function: Callable[..., object], *arguments: object) -> None:
        self._log = log
        self._process = CONTEXT.Process(target=_called, args=(log, function, arguments))
        self._process.start()

    def alive(self) -> bool:
        """Returns whether it still runs."""
        return self._process.is_alive()

    def kill(self) -> None:
        """Ends it and all that it has started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)

    def wait(self, seconds: float | None) -> Ended:
        """Returns how it ended; after so many seconds, where a number is given, it is killed."""
        try:
            self._process.join(seconds)
            code = self._process.exitcode
        finally:
            self.kill()
            self._process.join()
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return Ended(code if code is None or code >= 0 else None, text)


def _called(log: Path, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    os.setsid()
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    # What this process starts comes from the server that it was forked from; Python would start a second one for it.
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        function(*arguments)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


def _end_with(parent: Any) -> None:
    """Ends this process and its own when the one that started it has ended, so that nothing stays on the GPU."""
    parent.join()
    os.killpg(0, signal.SIGKILL)


def mrp(words: list[str], log: Path) -> Process:
    """Starts a command of mrp."""
    from mrp.cli import main

    return Process(log, main, words)
