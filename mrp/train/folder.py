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

import mrp
from mrp.config import ConfigError, dump

CONFIG, IDENTITY, ENVIRONMENT = "config.yaml", "identity.json", "environment.json"
_LOCK, _TEMPORARY = ".lock", ".tmp"
_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "safetensors", "simplejpeg", "pydantic")


def claim(folder: Path, config: Mapping[str, Any], identity: Mapping[str, Any]) -> TextIO:
    """Write who this run is into its folder, or check that the folder is this run's; hold the lock that is returned."""
    _check(folder, flat(identity))  # before anything is written into a folder that is not ours
    lock = _lock(folder)
    try:
        _check(folder, flat(identity))
        _write(folder / IDENTITY, json.dumps(flat(identity), indent=1))  # first: it makes the folder ours
        _write(folder / CONFIG, dump(config))
        _write(folder / ENVIRONMENT, json.dumps(environment(), indent=1))
    except BaseException:
        lock.close()
        raise
    return lock


def _lock(folder: Path) -> TextIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a")
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written: {error.strerror}; choose another with --folder FOLDER"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if not isinstance(error, BlockingIOError):
            raise ConfigError(
                f"{folder}: cannot be locked: {error.strerror}; choose a folder on another disk"
            ) from None
        raise ConfigError(
            f"{folder}: another process is writing this run; wait for it, or use --folder FOLDER"
        ) from None
    return lock


def _check(folder: Path, new: Mapping[str, Any]) -> None:
    """Refuse a folder that holds another run, or something that is no run at all."""
    known = folder / IDENTITY
    if not folder.is_dir():
        return
    if not known.exists():
        if any(path.name not in {_LOCK, IDENTITY + _TEMPORARY} for path in folder.iterdir()):
            raise ConfigError(
                f"{folder}: is not empty and not a run of mrp; choose another folder with --folder FOLDER"
            )
        return
    try:
        old = json.loads(known.read_text(encoding="utf-8"))
        _compare(folder, old, new)
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError):
        raise ConfigError(f"{known}: is damaged, so this run cannot be recognised; use --folder FOLDER") from None


def _compare(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for key in dict.fromkeys([*new, *old]):
        if old.get(key) != new.get(key):
            raise ConfigError(
                f"{folder}: this run was made with {key} = {old.get(key)!r}, not {new.get(key)!r}; "
                "restore that value, or start another run with --folder FOLDER"
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
    temporary = path.with_name(path.name + _TEMPORARY)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror}; free some space, or use --folder FOLDER"
        ) from None


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
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return commit + ("+changes" if changes else "") or mrp.__version__


def _git(root: Path, *words: str) -> str:
    """What git answers; nothing where there is no git, or where it refuses."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)  # noqa: S607
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
