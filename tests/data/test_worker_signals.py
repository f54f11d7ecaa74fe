"""The fork server of the loader's workers: no request to end stops it, and what it has imported stays shared."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.waiting import LONG

# In a process of its own: a fork server stays for as long as the process that has started it.
SERVER = """
import os, signal, sys, time
from multiprocessing import forkserver, get_context, resource_tracker
from mrp.data import worker_signals

number = signal.Signals[sys.argv[1]]
before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
worker_signals.start_fork_server([])
server, tracker = forkserver._forkserver._forkserver_pid, resource_tracker._resource_tracker._pid
assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before, "this process no longer listens"
for one in (server, tracker):
    os.kill(one, number)  # while its interpreter starts
for turn in range(2):
    code = "import gc, sys, time; time.sleep(60 * turn); sys.exit(0 if gc.get_freeze_count() else 'searches all again')"
    worker = get_context("forkserver").Process(target=exec, args=(code, {"turn": turn}))
    worker.start()
    if turn == 0:
        worker.join()
        assert worker.exitcode == 0, worker.exitcode
        for one in (server, tracker):
            os.kill(one, number)  # once it runs
    else:
        worker.kill()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL, worker.exitcode
assert forkserver._forkserver._forkserver_pid == server, "the server died and was started again"
assert os.waitpid(tracker, os.WNOHANG) == (0, 0), "the tracker of shared memory died"
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_the_fork_server_outlives_what_is_sent_to_the_whole_job(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", SERVER, name], capture_output=True, text=True, timeout=LONG)
    assert (done.returncode, done.stderr) == (0, "")


def test_workers_of_other_kinds_can_be_ended() -> None:
    """A fork server that has imported `worker_signals` ignores what should end it, and so do its children."""
    code = "import sys, mrp.data.shardtool.build, mrp.check.processes; print('mrp.data.worker_signals' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
