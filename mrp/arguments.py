"""Numbers on the command line: which are allowed, and what is said of others."""

from __future__ import annotations

import argparse
import math


def number(word: str) -> int:
    """Reads a whole number from 0."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"'{word}' was given; allowed: a number from 0")
    return int(word)


def count(word: str) -> int:
    """Reads a whole number from 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"'{word}' was given; allowed: a number from 1")
    return int(word)


def positive(word: str) -> float:
    """Reads a number above 0."""
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{word}' was given; allowed: a number above 0")
    return value
