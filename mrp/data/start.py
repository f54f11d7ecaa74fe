"""How worker processes start; a file of its own, since a fork server that imports `worker_signals` ignores signals."""

import sys

# On macOS a process that was forked may crash in the system's libraries, which is why Python itself starts new
# interpreters there; each of them then imports torch, which takes seconds.
START = "spawn" if sys.platform == "darwin" else "forkserver"
