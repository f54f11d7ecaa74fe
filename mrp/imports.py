"""Imports without Python's searches for garbage, which take a quarter of their time and find none."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_OF_PYTHON = 1000  # objects: Python 3.12 itself sets aside a few hundred


@contextmanager
def undisturbed() -> Iterator[None]:
    """Lets Python search again, if it did before, once what is inside has been imported.

    What was imported then counts as old: as new it would be searched through three more times. Where nothing was
    imported, nothing is done: Python counts one by one what has been set aside, a million objects in a loader's worker.
    """
    searched, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if searched and len(sys.modules) > known and gc.get_freeze_count() < _OF_PYTHON:
            gc.freeze()  # what someone has set aside stays there, and is more than that
            gc.unfreeze()  # into the oldest generation
        if searched:
            gc.enable()
