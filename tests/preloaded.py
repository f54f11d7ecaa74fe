"""What the first training of a process does once, done by the fork server for all that it forks."""

from __future__ import annotations

from mrp.build import check_best
from mrp.check.tiny import small, tiny_run
from mrp.cli import parser

parser()  # imports every verb
# A pass over tensors without content, but none backward: its threads would be missing after a fork.
check_best(tiny_run(small("mae"), checkpoint={"best": "loss"}))
