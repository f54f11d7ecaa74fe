"""What the author of a training method builds on; `mrp/objectives/mae.py` and `docs/own-method.md` show how.

`Objective` is the base class of every method and `Masked` that of methods which hide patches. The rest are parts that
several methods share: images as rows of patches, a teacher, the uniformity penalty, scheduled numbers, means over all
processes.
"""

from mrp.methodkit.masked import BlockMasked, Masked, MaskedConfig, PixelMasked, collapse_loss, count_visible, mask_unit
from mrp.methodkit.objective import Objective, Reconstruction, freeze
from mrp.methodkit.patches import patch_statistics, patchify, pixel_weights, unpatchify
from mrp.methodkit.processes import mean_over_processes, num_processes, over_processes
from mrp.methodkit.scheduled import Scheduled, ScheduledCount
from mrp.methodkit.standardise import Standardise
from mrp.methodkit.teacher import Teacher, TeacherConfig
from mrp.methodkit.uniformity import (
    NO_UNIFORMITY,
    UniformityConfig,
    gram_penalty,
    sigreg_statistic,
    uniformity_feature,
    uniformity_penalty,
)

__all__ = [
    "NO_UNIFORMITY", "BlockMasked", "Masked", "MaskedConfig", "Objective", "PixelMasked", "Reconstruction",
    "Scheduled", "ScheduledCount", "Standardise", "Teacher", "TeacherConfig", "UniformityConfig", "collapse_loss",
    "count_visible", "freeze", "gram_penalty", "mask_unit", "mean_over_processes", "num_processes",
    "over_processes", "patch_statistics", "patchify", "pixel_weights", "sigreg_statistic", "uniformity_feature",
    "uniformity_penalty", "unpatchify",
]  # fmt: skip
