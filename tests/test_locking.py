"""The lock of a run's folder, where the machine that held it is gone."""

from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path

import pytest

from mrp import locking
from mrp.config import ConfigError


def held_by(folder: Path, host: str) -> locking.TextIO:
    lock = locking.take(folder)
    locking.sign(lock)
    (folder / locking.LOCK).write_text(json.dumps({"host": host, "pid": 1}))
    return lock


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_lock_of_another_machine_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], elsewhere: bool
) -> None:
    """A file server keeps the lock of a machine without power for a while, and the run is requeued before."""
    monkeypatch.setattr(locking, "_MEANWHILE", 0.05)
    lock = held_by(tmp_path, "gone" if elsewhere else locking.Holder.here().host)
    release = threading.Timer(0.5, fcntl.flock, (lock, fcntl.LOCK_UN))
    try:
        if elsewhere:
            release.start()
            locking.take(tmp_path).close()
            assert "gone holds its lock; waiting up to 120 s" in capsys.readouterr().out
        else:
            with pytest.raises(ConfigError, match="another process is writing this run"):
                locking.take(tmp_path)
    finally:
        if elsewhere:
            release.join()
        lock.close()
