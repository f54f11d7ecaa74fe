"""What can be mended is said in one line."""

from __future__ import annotations

import pytest
from torch._inductor.exc import InvalidCxxCompiler

from mrp.ending import line_of


@pytest.mark.parametrize("error", [InvalidCxxCompiler(), RuntimeError("Failed to find C compiler. Please specify")])
def test_a_compiler_that_is_missing_is_one_line(error: Exception) -> None:
    line = line_of(error)
    assert line is not None
    assert line.startswith("machine.compile: torch finds no compiler")
