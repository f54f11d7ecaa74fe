"""Mask-reconstruction pretraining of Vision Transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrp.model import Model as Model
    from mrp.model import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`mrp.load` and `mrp.Model`; torch is imported when one of them is asked for, and not by `import mrp`."""
    if name in {"load", "Model"}:
        from mrp import model

        return getattr(model, name)
    raise AttributeError(f"module 'mrp' has no attribute '{name}'")
