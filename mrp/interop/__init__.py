"""Checkpoint formats of other projects, read and written; `reading.read` returns the weights that a path holds."""
