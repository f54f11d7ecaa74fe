"""Experiments on the claims of the two founding papers: each has a command, a prediction, numbers and pictures."""
