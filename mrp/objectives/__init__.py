"""The training methods, one file each: `Config`, its typed options, and `Objective`, the method."""

from mrp.registry import Registry

OBJECTIVES = Registry("objective", __name__, ("Config", "Objective"))
