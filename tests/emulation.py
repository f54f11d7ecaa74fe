"""What the tests need that compile for a GPU, or run on one, where there is none (tools/gpu_absent.c)."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import torch

_HEADERS = [*Path(torch.__file__).parents[1].glob("nvidia/*/include/driver_types.h")]
LACKS = (
    ""
    if _HEADERS and shutil.which("cc") and (torch.version.cuda or "").startswith("13")
    and importlib.util.find_spec("triton") and not torch.cuda.is_available()
    else "needs a C compiler, CUDA 13 with its headers, Triton, and no GPU"
)  # fmt: skip
