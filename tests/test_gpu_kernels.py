"""Which kernel of attention an H100 would take, told where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulation import LACKS

TOOL = Path(__file__).parents[1] / "tools" / "gpu_kernels.py"


@pytest.mark.skipif(bool(LACKS), reason=LACKS)
def test_attention_with_a_relative_bias_is_one_kernel_on_a_gpu() -> None:
    command = [sys.executable, "-W", "ignore", str(TOOL), "--attention", "--method", "data2vec"]
    environment = os.environ | {"PYTHONPATH": str(TOOL.parents[1])}
    said = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    # Four blocks of the student, whose bias is learned, and four of the teacher; "math" would be several kernels.
    assert json.loads(said.stdout.removeprefix("data2vec ")) == {"cudnn": 4, "efficient": 4}
