"""Measuring what a backbone has learned: frozen features, and what can be read out of them."""
