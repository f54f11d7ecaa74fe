"""The multi-view data model of Pan, Zhou and Yan (ICLR 2023): which features do MRP and supervised learning capture?"""

from __future__ import annotations

from pathlib import Path


def run(out: Path) -> None:
    """Write the results to a folder."""
    raise NotImplementedError
