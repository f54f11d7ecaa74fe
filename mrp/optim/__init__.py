"""Parameter groups, learning rates, moving averages."""
