"""Folders that are made once, and appear whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from mrp.config import ConfigError
from mrp.files import unfinished


def check_is_new(folder: Path) -> None:
    """Refuses a folder that holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already and not empty; choose another folder with --out FOLDER")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder under another name, which gets its own name when the block ends; an error leaves nothing."""
    temporary = unfinished(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except SafetensorError as error:
        raise ConfigError(
            f"{folder}: cannot be written: {error}; free some space, or choose another with --out"
        ) from None
    except OSError as error:
        error.filename = error.filename or str(folder)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
