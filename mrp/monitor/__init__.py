"""Watches a run while it trains: numbers, progress, values that are not finite, processes that stand still."""
