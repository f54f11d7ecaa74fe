"""Rankings against scikit-learn, and Oxford's and Paris' against cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from mrp.evaluate import ranking
from mrp.evaluate.ranking import Landmarks


def case(queries: int = 12, gallery: int = 60, levels: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(queries, gallery, generator=generator)
    if levels:
        scores = (scores * levels).round()  # many items share a score
    return scores, torch.rand(queries, gallery, generator=generator) < torch.linspace(0.03, 1, queries)[:, None]


@pytest.mark.parametrize("levels", [None, 3, 1])
def test_average_precision_is_scikit_learns(levels: int | None) -> None:
    scores, relevant = case(levels=levels)
    expected = [average_precision_score(r.numpy(), s.numpy()) for r, s in zip(relevant, scores, strict=True)]
    np.testing.assert_allclose(ranking.average_precisions(scores, relevant).numpy(), expected, rtol=0, atol=1e-12)
    turned = torch.randperm(60, generator=torch.Generator().manual_seed(1))  # the order of equal scores is no matter
    again = ranking.average_precisions(scores[:, turned], relevant[:, turned])
    np.testing.assert_allclose(again.numpy(), expected, rtol=0, atol=1e-12)


def test_a_query_that_asks_for_nothing_has_no_precision() -> None:
    scores, relevant = case(queries=2)
    relevant[0] = False
    precisions = ranking.average_precisions(scores, relevant)
    assert precisions.isnan().tolist() == [True, False]


def test_micro_average_precision_is_scikit_learns_over_all_pairs() -> None:
    scores, relevant = case(levels=5)
    expected = average_precision_score(relevant.flatten().numpy(), scores.flatten().numpy())
    wanted = int(relevant.sum())
    assert ranking.pooled_precision(scores, relevant, wanted) == pytest.approx(expected, abs=1e-12)
    assert ranking.pooled_precision(scores, relevant, 2 * wanted) == pytest.approx(expected / 2, abs=1e-12)
    assert ranking.pooled_precision(scores, torch.zeros_like(relevant), 3) == 0.0


def test_the_nearest() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]])
    relevant = torch.tensor([[False, True, True, False], [True, False, False, False]])
    assert ranking.nearest(scores, relevant, (1, 2, 10)).tolist() == [[0, 0.5, 0.5], [0, 0, 0.25]]


@pytest.mark.parametrize("at_once", [1, 100, 1 << 20])
def test_cosines_come_in_chunks(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_AT_ONCE", at_once)
    generator = np.random.default_rng(0)
    queries, gallery = (ranking.unit(generator.normal(size=(n, 6)).astype(np.float16)) for n in (13, 31))
    chunks = list(ranking.cosines(queries, gallery))
    assert [row for chunk, _ in chunks for row in range(13)[chunk]] == list(range(13))
    found = torch.cat([scores for _, scores in chunks])
    torch.testing.assert_close(found, torch.nn.functional.cosine_similarity(queries[:, None], gallery, dim=2))


def array(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_landmarks_by_hand() -> None:
    """Found at the first and, once the junk is out, at the third place."""
    order = array(5, 0, 7, 3, 1, 2, 4, 6)
    precision, at = ranking.landmark_scores(order, wanted=array(5, 3), junk=array(0), ks=(1, 5, 10))
    first, second = (1 + 1 / 1) / 2, (1 / 2 + 2 / 3) / 2  # trapezoids: before and with the image that was found
    assert precision == pytest.approx((first + second) / 2)
    assert at == pytest.approx([1, 2 / 3, 2 / 3])  # no place after the last wanted image counts
    precision, at = ranking.landmark_scores(order, wanted=array(6), junk=array(), ks=(1, 5, 10))
    assert precision == pytest.approx((0 + 1 / 8) / 2)
    assert at == pytest.approx([0, 0, 1 / 8])


def test_landmarks_against_another_way_to_compute_them() -> None:
    """The area under the line that joins the points of recall and precision, one pair for each found image."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        order = generator.permutation(30)
        wanted, junk = np.split(generator.permutation(30)[:11], [6])
        kept = [int(image) for image in order if image not in junk]
        hits = np.isin(kept, wanted)
        with_it = hits.cumsum() / np.arange(1, len(kept) + 1)
        before = np.concatenate([[1.0], with_it[:-1]])
        expected = sum((before[i] + with_it[i]) / 2 / 6 for i in np.flatnonzero(hits))
        assert ranking.landmark_scores(order, wanted, junk, (1,))[0] == pytest.approx(expected)


def test_protocols_of_landmarks() -> None:
    protocols = Landmarks(array(1, 2), array(3), array(4)).protocols()
    as_lists = {name: (sorted(wanted), sorted(junk)) for name, (wanted, junk) in protocols.items()}
    assert as_lists == {"easy": ([1, 2], [3, 4]), "medium": ([1, 2, 3], [4]), "hard": ([3], [1, 2, 4])}
    assert math.isnan(ranking.landmark_scores(array(0, 1), array(), array(1), (1,))[0])
