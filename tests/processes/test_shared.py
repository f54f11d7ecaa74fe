"""Memory that the processes of a node share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import LONG

PROGRAM = """
import os, sys
import torch
from accelerate import Accelerator
from mrp.config import ConfigError
from mrp.processes.shared import filled
from mrp.processes.signals import Interrupted

accelerator, filled_here = Accelerator(cpu=True), []

def fill(memory):
    filled_here.append(1)
    if sys.argv[1] == "damaged":
        raise ConfigError("image 3: damaged")
    if sys.argv[1] == "interrupted":
        raise Interrupted
    memory.copy_(torch.arange(1000).byte())

if sys.argv[1] == "hidden":  # as where the processes of a node are in containers of their own
    import mrp.processes.shared as shared
    def refused(path):
        raise PermissionError(path)
    if accelerator.process_index:
        shared._mapped = refused
try:
    memory = filled(1000, fill, accelerator)
except ConfigError as error:
    print(f"refused {error}", flush=True)
    sys.exit()
except Interrupted:
    print("interrupted", flush=True)
    sys.exit()
assert torch.equal(memory, torch.arange(1000).byte())
accelerator.wait_for_everyone()
if accelerator.is_main_process:
    memory[0] = 9
accelerator.wait_for_everyone()
print(f"filled {sum(filled_here)} shared {memory[0] == 9}", flush=True)
"""


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("whole", ["filled 0 shared True", "filled 1 shared True"]),
        ("hidden", ["filled 1 shared False", "filled 1 shared True"]),
        ("damaged", ["refused image 3: damaged"] * 2),
        ("interrupted", ["interrupted"] * 2),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every process fills its own memory")
def test_two_processes_share_what_one_fills(case: str, said: list[str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run([*two, str(program), case], capture_output=True, text=True, timeout=LONG, check=False)
    assert sorted(done.stdout.splitlines()) == said, done.stderr
