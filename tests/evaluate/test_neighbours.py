"""The streaming vote against a vote that looks at everything at once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mrp.evaluate import neighbours


def data(count: int, seed: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=random)
    return torch.randn(count, 6, generator=random) + torch.nn.functional.one_hot(labels, 6), labels


def naive(keys: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float) -> list[int]:
    predictions = []
    for query in queries.double():
        cosines = [float(query @ key / query.norm() / key.norm()) for key in keys.double()]
        nearest = sorted(range(len(keys)), key=lambda index: -cosines[index])[:k]
        votes = [0.0] * (int(labels.max()) + 1)
        for index in nearest:
            votes[int(labels[index])] += math.exp(cosines[index] / temperature)
        predictions.append(votes.index(max(votes)))
    return predictions


@pytest.mark.parametrize("k", [1, 5, 20, 37, 100])
@pytest.mark.parametrize(("query_chunk", "key_chunk"), [(1024, 16384), (4, 3), (7, 36), (1, 1)])
def test_agrees_with_a_naive_vote(k: int, query_chunk: int, key_chunk: int) -> None:
    keys, labels = data(37, seed=0)
    queries, _ = data(11, seed=1)
    (found,) = neighbours.predict(keys, labels, queries, [k], 0.5, query_chunk, key_chunk)
    assert found.tolist() == naive(keys, labels, queries, k, 0.5)


def test_the_nearer_outvotes_the_many() -> None:
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    query = torch.tensor([[1.0, 0.5]])
    assert neighbours.predict(keys, torch.tensor([0, 1, 1]), query, temperature=0.07).item() == 0
    assert neighbours.predict(keys, torch.tensor([0, 1, 1]), query, temperature=100.0).item() == 1


def test_accuracy_and_its_interval() -> None:
    keys, labels = torch.eye(3), torch.tensor([0, 1, 2])
    test_labels = torch.tensor([0, 1, 7])  # 7 was never seen: a mistake
    (found,) = neighbours.counted(neighbours.predict(keys, labels, torch.eye(3)) == test_labels, len(keys), ks=[20])
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["low"] < found["accuracy"] < found["high"]
    assert (found["k"], found["num_train"], found["num_test"]) == (20, 3, 3)
    assert json.loads(json.dumps(found)) == found


def test_every_k_at_once_is_each_alone_and_half_precision_on_disk_does(tmp_path: Path) -> None:
    keys, labels = data(300, seed=0)
    queries, _ = data(40, seed=1)
    keys, queries = keys.half(), queries.half()
    np.save(tmp_path / "keys.npy", keys.numpy())
    mapped = np.load(tmp_path / "keys.npy", mmap_mode="r")
    ks = [1, 7, 50, 500]
    found = neighbours.predict(mapped, labels, queries.numpy(), ks, 0.5, query_chunk=16, key_chunk=64)
    assert [found[i].tolist() for i in range(4)] == [naive(keys, labels, queries, k, 0.5) for k in ks]


def test_data_without_labels() -> None:
    with pytest.raises(ValueError, match="give labelled data"):
        neighbours.predict(torch.eye(3), torch.full((3,), -1), torch.eye(3))
