from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from mrp.processes import halves

ASK = "from mrp.processes.halves import bf16_slowdown; print(bf16_slowdown())"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the variable is for x86")
def test_a_processor_without_instructions_for_bfloat16_is_found() -> None:
    """An old processor is played by the one that is there."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    assert float(done.stdout) > halves.SLOW


def test_what_is_measured_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for measured, slow in ((0.3, False), (4.0, True)):
        monkeypatch.setattr(halves, "bf16_slowdown", lambda measured=measured: measured)
        assert halves.is_bf16_slow(torch.device("cpu")) is slow
