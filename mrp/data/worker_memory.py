"""Imported last by the fork server: its workers never look for garbage in what it has imported.

They share those modules' memory until they write to it, and Python's search for garbage writes to every object: each
worker would hold 47 MB more, and each of its full searches would take 0.2 s.
"""

from __future__ import annotations

import gc

from mrp.data.worker_signals import is_fork_server

if is_fork_server():
    gc.freeze()
