"""What a process runs on: versions, the commit of the code, the device and the command."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import mrp

_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "safetensors", "simplejpeg", "pydantic")


def environment() -> dict[str, Any]:
    """Returns what this process runs on: enough to tell two runs apart, and nothing private."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    import torch

    return {
        "mrp": mrp.__version__,
        "code": code_version(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": versions,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "command": sys.argv[1:],
    }


def versions() -> dict[str, str]:
    """Returns the versions that results may depend on, by name."""
    known = environment()
    return {name: str(known[name]) for name in ("mrp", "code", "python")} | dict(known["packages"])


def code_version() -> str:
    """Returns the commit of a checkout ('+changes' when it was edited), or the installed version."""
    root = Path(mrp.__file__).parent.parent
    if not (root / ".git").exists():
        return mrp.__version__
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit + ("+changes" if changes else "") or mrp.__version__


def _git(root: Path, *words: str) -> str:
    """Returns git's answer, which is empty where there is no git or where it refuses."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)  # noqa: S607
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
