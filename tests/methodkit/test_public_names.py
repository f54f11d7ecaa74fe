"""What a method's author imports: `mrp.Objective` and its like, and the names of `mrp.methodkit`."""

from __future__ import annotations

import subprocess
import sys

import mrp
from mrp import methodkit


def test_public_names_are_there_and_import_mrp_loads_no_torch() -> None:
    code = (
        "import sys, mrp; assert 'torch' not in sys.modules; "
        "assert {'Batch', 'Objective', 'Output', 'load'} <= set(dir(mrp)); "
        "assert mrp.Batch and mrp.Output and 'timm' not in sys.modules; "
        "import mrp.methodkit; assert mrp.Objective is mrp.methodkit.Objective"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert mrp.Output(loss=0.0).metrics == {}


def test_the_kit_explains_every_name_that_it_offers() -> None:
    documented = [name for name in methodkit.__all__ if callable(getattr(methodkit, name))]
    assert len(documented) == len(methodkit.__all__) - 1  # the constant NO_UNIFORMITY
    assert all(getattr(methodkit, name).__doc__ for name in documented)
