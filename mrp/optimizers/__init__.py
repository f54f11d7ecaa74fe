"""The optimizers, one file each: `Config`, its typed options, and `Optimizer`, built from groups and options."""

from mrp.registry import Registry

OPTIMIZERS = Registry("optimizer", __name__, ("Config", "Optimizer"), default="adamw")
