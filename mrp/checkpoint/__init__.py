"""Checkpoints: reads, saves, chooses and seals them."""
