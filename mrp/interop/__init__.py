"""Other people's checkpoint formats, both ways: `read(path, weights)` gives the weights of whatever lies at a path."""

from mrp.interop.found import Found as Found
from mrp.interop.found import Weights as Weights
from mrp.interop.reading import read as read
