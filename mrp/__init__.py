"""Masked-image pretraining of Vision Transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mrp import imports

if TYPE_CHECKING:
    from mrp.api import Model as Model
    from mrp.api import finetune as finetune
    from mrp.api import judge as judge
    from mrp.api import load as load
    from mrp.api import pretrain as pretrain
    from mrp.api import probe as probe
    from mrp.batch import Batch as Batch
    from mrp.batch import Output as Output
    from mrp.methodkit import Objective as Objective

__version__ = "0.1.0"

_MODULES = {
    "Batch": "mrp.batch",
    "Model": "mrp.api",
    "Objective": "mrp.methodkit",
    "Output": "mrp.batch",
    "finetune": "mrp.api",
    "judge": "mrp.api",
    "load": "mrp.api",
    "pretrain": "mrp.api",
    "probe": "mrp.api",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for, so that `import mrp` does not load torch."""
    if name not in _MODULES:
        raise AttributeError(f"module 'mrp' has no attribute '{name}'")
    with imports.undisturbed():
        module = import_module(_MODULES[name])
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*(name for name in globals() if name.startswith("__")), *_MODULES])
