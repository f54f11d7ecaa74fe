"""Checkpoints: read, saved, chosen, sealed."""
