"""A run's folder: claimed before the first step, and never shared by two configurations or two processes."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml

import mrp
from mrp.config import ConfigError

CONFIG, IDENTITY, ENVIRONMENT = "config.yaml", "identity.json", "environment.json"
_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "safetensors", "simplejpeg", "pydantic")


def claim(folder: Path, config: Mapping[str, Any], identity: Mapping[str, Any]) -> TextIO:
    """Write who this run is into its folder, or check that the folder is this run's; hold the lock that is returned."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}; choose another with --run FOLDER") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ConfigError(f"{folder}: another process is writing this run; wait for it, or use --run FOLDER") from None
    known = folder / IDENTITY
    if known.exists():
        _compare(folder, json.loads(known.read_text()), flat(identity))
    elif any(path.name != ".lock" for path in folder.iterdir()):
        raise ConfigError(f"{folder}: is not empty and not a run of mrp; choose another folder with --run FOLDER")
    _write(folder / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, default_flow_style=None, width=120))
    _write(folder / ENVIRONMENT, json.dumps(environment(), indent=1))
    _write(known, json.dumps(flat(identity), indent=1))
    return lock


def _compare(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for key in dict.fromkeys([*new, *old]):
        if old.get(key) != new.get(key):
            raise ConfigError(
                f"{folder}: this run was made with {key} = {old.get(key)!r}, not {new.get(key)!r}; "
                "restore that value, or start another run with --run FOLDER"
            )


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """A tree as dotted keys."""
    if not isinstance(values, Mapping):
        return {prefix: list(values) if isinstance(values, tuple) else values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _write(path: Path, text: str) -> None:
    """Replace a small file in one step; a full disk leaves the old one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; free some space, or use --run FOLDER") from None


def environment() -> dict[str, Any]:
    """What this process runs on: enough to tell two runs apart, nothing private."""
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


def code_version() -> str:
    """The commit of a checkout ('+changes' when it was edited), or the installed version."""
    root = Path(mrp.__file__).parent.parent
    if not (root / ".git").exists():
        return mrp.__version__
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    changes = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True)
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "") or mrp.__version__
