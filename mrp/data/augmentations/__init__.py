"""What training sees of an image, one augmentation per file: `Config` and `Augmentation`, built from it.

A user's own is reached by its path (`name: ./mine.py`) or, once installed, by an entry point of the group
`mrp.data.augmentations`.
"""

from mrp.registry import Registry

AUGMENTATIONS = Registry("augmentation", __name__, ("Config", "Augmentation"), example="crop")
