"""Weighted nearest-neighbour classification (Wu et al., 2018): what the features know, with nothing trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mrp.config import ConfigError
from mrp.evaluate.interval import wilson


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The accuracy of the neighbours' vote with its 95 % interval; its fields go straight to JSON."""

    accuracy: float
    low: float
    high: float
    k: int
    num_train: int
    num_test: int


def measure(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, k: int = 20) -> Neighbours:
    """The accuracy with which each test sample's nearest training samples name its class."""
    correct = int((predict(train, train_labels, test, k) == test_labels).sum())
    return Neighbours(*wilson(correct, len(test)), k=k, num_train=len(train), num_test=len(test))


def predict(
    keys: Tensor,  # N D
    labels: Tensor,  # N
    queries: Tensor,  # Q D
    k: int = 20,
    temperature: float = 0.07,
    query_chunk: int = 1024,
    key_chunk: int = 16384,
) -> Tensor:
    """Each query's class: its k most similar keys vote with weight exp(cosine / temperature).

    No more than query_chunk x key_chunk similarities exist at once; on whatever device the tensors lie.
    """
    if int(labels.min()) < 0:
        raise ConfigError("nearest neighbours vote with their labels, but these data have none; give labelled data")
    votes = [
        _vote(*_nearest(chunk, keys, k, key_chunk), labels, temperature) for chunk in torch.split(queries, query_chunk)
    ]
    return torch.cat(votes)


def _nearest(queries: Tensor, keys: Tensor, k: int, key_chunk: int) -> tuple[Tensor, Tensor]:
    """Cosine and index of the k nearest keys (of all, where there are fewer), merged chunk by chunk."""
    queries = F.normalize(queries, dim=1)
    cosines = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(keys), key_chunk):
        new = queries @ F.normalize(keys[start : start + key_chunk], dim=1).T  # Q K
        new, places = new.topk(min(k, new.shape[1]), dim=1)
        cosines, indices = torch.cat([cosines, new], dim=1), torch.cat([indices, places + start], dim=1)
        cosines, places = cosines.topk(min(k, cosines.shape[1]), dim=1)
        indices = indices.gather(1, places)
    return cosines, indices


def _vote(cosines: Tensor, indices: Tensor, labels: Tensor, temperature: float) -> Tensor:
    weights = (cosines / temperature).exp()  # Q k
    scores = weights.new_zeros(len(weights), int(labels.max()) + 1)
    return scores.scatter_add_(1, labels[indices], weights).argmax(dim=1)
