"""The lock of a run's folder: one process writes a run, and others see from the lock whether it is alive."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import NamedTuple, TextIO

from mrp import files, progress
from mrp.config import ConfigError, writing

LOCK = ".lock"  # names the process that holds it
_MEANWHILE = 0.5  # seconds in which a process that only looks whether a run is alive lets go of its lock
_LOST = 120.0  # seconds in which a file server takes a lock back from a machine that is gone; NFS does in 90


def take(folder: Path) -> TextIO:
    """Returns the lock of a folder, which is made if need be; refuses one that another process holds."""
    with writing(folder, "choose another with --folder FOLDER"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a")
    try:
        holder, begin, said = Holder.of(folder), time.monotonic(), False
        elsewhere = holder is not None and holder.host != Holder.here().host
        while not _taken(lock, fcntl.LOCK_EX) and time.monotonic() - begin < (_LOST if elsewhere else _MEANWHILE):
            if elsewhere and not said and time.monotonic() - begin > _MEANWHILE:
                assert holder is not None
                progress.tell(f"{folder}: {holder.host} holds its lock; waiting up to {_LOST:.0f} s, as it may be lost")
                said = True
            time.sleep(_MEANWHILE / 10)
        if not files.lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            progress.tell(
                f"warning: {folder}: this disk has no locks; heartbeats alone (machine.watchdog) tell whether another "
                "process writes here"
            )
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


def _taken(lock: TextIO, kind: int) -> bool:
    try:
        files.lock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sign(lock: TextIO) -> None:
    """Writes into the lock which process holds it: where a disk does not carry locks to other machines, this tells."""
    lock.truncate(0)
    lock.write(json.dumps(Holder.here()._asdict()))
    lock.flush()
    os.fsync(lock.fileno())  # or other machines would see it only once the disk's client writes it


class Holder(NamedTuple):
    """The process that holds a run's lock, or was the last one to do so."""

    host: str
    pid: int

    @classmethod
    def here(cls) -> Holder:
        """Returns this process."""
        return cls(socket.gethostname(), os.getpid())

    @property
    def is_alive_here(self) -> bool:
        """Returns whether a process of this number runs on this machine; it may be another one by now."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # somebody else's
        return True

    @classmethod
    def of(cls, folder: Path) -> Holder | None:
        """Returns the one that the lock names; None where there is no lock, or one of a version that named nobody."""
        try:
            return cls(**json.loads((folder / LOCK).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def is_locked(folder: Path) -> bool | None:
    """Returns whether a process writes this run now, as far as this machine sees locks; none outlives its process.

    Returns None where the disk has no locks.
    """
    try:
        with (folder / LOCK).open(encoding="utf-8") as lock:
            return False if files.lock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB) else None
    except BlockingIOError:
        return True
    except OSError:  # there is none, or it may not be read
        return False
