"""Weighted nearest-neighbour classification (Wu et al., 2018), in which nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mrp.config import ConfigError
from mrp.data.order import Ints
from mrp.evaluate.answers import best_class
from mrp.evaluate.interval import share_of
from mrp.evaluate.table import Columns

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
_QUERIES, _KEYS = 1024, 16384  # similarities that exist at once

Rows = Tensor | Columns  # N D, of any precision


def counted(right: Tensor, num_train: int, ks: Sequence[int] = KS, groups: Ints | None = None) -> list[dict[str, Any]]:
    """Returns the accuracy of every k, with its interval, from which answers were right (ks, queries)."""
    return [
        share_of(row, groups).of_accuracy() | {"k": k, "num_train": num_train, "num_test": len(row)}
        for k, row in zip(ks, right, strict=True)
    ]


def predict(
    keys: Rows,
    labels: Tensor,  # N
    queries: Rows,
    ks: Sequence[int] = (20,),
    temperature: float = TEMPERATURE,
    query_chunk: int = _QUERIES,
    key_chunk: int = _KEYS,
    device: torch.device | str = "cpu",
    among: Tensor | None = None,
) -> Tensor:
    """Returns each query's class for every k (ks, queries): its k nearest keys vote with exp(cosine / temperature).

    With `among`, the answer is the one of these classes that has the most votes.

    All keys are read once for each chunk of the queries, and only the similarities of one chunk of queries with one
    chunk of keys exist at once.
    """
    if int(labels.min()) < 0:
        raise ConfigError("nearest neighbours vote with their labels, but these data have none; give labelled data")
    votes = []
    for _, chunk in _chunks(queries, query_chunk, device):
        cosines, indices = _nearest(chunk, keys, max(ks), key_chunk)
        votes.append(
            _votes(cosines, labels[indices.cpu()].to(cosines.device), ks, int(labels.max()) + 1, temperature, among)
        )
    return torch.cat(votes, dim=1).cpu()


def tag_scores(
    keys: Rows,
    tags: Tensor,  # N T: 1 has it, 0 has it not, -1 nobody knows
    queries: Rows,
    k: int,
    temperature: float = TEMPERATURE,
    query_chunk: int = _QUERIES,
    key_chunk: int = _KEYS,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Returns the share of each query's k nearest keys that have each tag (queries, T), weighted as votes are.

    Keys of which a tag is not known do not count for it; where it is known of none of the k, the share is that of all.
    """
    every = (tags == 1).sum(0) / (tags >= 0).sum(0).clamp_min(1)
    found = []
    for _, chunk in _chunks(queries, query_chunk, device):
        cosines, indices = (part.cpu() for part in _nearest(chunk, keys, k, key_chunk))
        weights = ((cosines.double() - cosines[:, :1]) / temperature).exp()[:, :, None]  # Q k 1; the nearest one's is 1
        near = tags[indices]  # Q k T
        known, having = ((weights * part).sum(1) for part in (near >= 0, near == 1))
        found.append(torch.where(known > 0, having / known, every))
    return torch.cat(found)


def _nearest(queries: Tensor, keys: Rows, k: int, key_chunk: int) -> tuple[Tensor, Tensor]:
    """Returns cosine and index of the k nearest keys (of all, where there are fewer), the nearest first."""
    cosines = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start, chunk in _chunks(keys, key_chunk, queries.device):
        new = queries @ chunk.T  # Q K
        new, positions = new.topk(min(k, new.shape[1]), dim=1)
        cosines, indices = torch.cat([cosines, new], dim=1), torch.cat([indices, positions + start], dim=1)
        cosines, positions = cosines.topk(min(k, cosines.shape[1]), dim=1)
        indices = indices.gather(1, positions)
    return cosines, indices


def _chunks(rows: Rows, size: int, device: torch.device | str) -> Iterator[tuple[int, Tensor]]:
    """Yields the number of a chunk's first row, and its rows on the unit sphere."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        part = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
        yield start, F.normalize(part.to(device).float(), dim=1)


def _votes(
    cosines: Tensor, labels: Tensor, ks: Sequence[int], classes: int, temperature: float, among: Tensor | None
) -> Tensor:
    weights = ((cosines - 1) / temperature).exp()  # Q k; a factor that all share, so that nothing overflows
    found = []
    for k in ks:
        scores = weights.new_zeros(len(weights), classes)
        found.append(best_class(scores.scatter_add_(1, labels[:, :k], weights[:, :k]), among))
    return torch.stack(found)
