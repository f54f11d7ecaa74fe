"""The kinds of sources: each file of this folder is one, with `Config`, `Source`, and `recognise` for texts.

A user's own kind is reached by its path (`name: ./mine.py`) or, once installed, by an entry point of the group
`mrp.data.sources` that points to a module with `Config` and `Source`.
"""

from mrp.registry import Registry

SOURCES = Registry("source", __name__, ("Config", "Source"))
RECOGNISED = (
    "digits",
    "shards",
    "arrays",
    "parquet",
    "cifar",
    "folder",
)  # the order in which they are asked whether a text names them
