"""The order is arithmetic: permutations, the same on any number of ranks, and with nothing to resume."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mrp.data.order import Order, fold, keys, mix, permute, permute_fairly, share

SIZES = st.integers(1, 400)
SEEDS = st.integers(0, 2**63 - 1)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    size = draw(SIZES)
    return Order(size, draw(st.integers(1, size)), draw(SEEDS), draw(st.sampled_from(["drop", "continuous"])))


@given(size=SIZES, seed=SEEDS, epoch=st.integers(0, 10**6))
def test_permute_is_a_bijection(size: int, seed: int, epoch: int) -> None:
    assert sorted(permute(np.arange(size), size, seed, epoch)) == list(range(size))


@given(order=orders(), epoch=st.integers(0, 5))
def test_drop_shows_no_sample_twice_in_an_epoch(order: Order, epoch: int) -> None:
    order = Order(order.size, order.batch, order.seed, "drop")
    steps = int(order.steps_per_epoch)
    seen = np.concatenate([order.slots(epoch * steps + step).samples for step in range(steps)])
    assert len(set(seen.tolist())) == len(seen) == order.size - order.dropped
    assert set(order.slots(epoch * steps).epochs) == {epoch}


@given(order=orders())
def test_continuous_goes_through_every_epoch_whole(order: Order) -> None:
    order = Order(order.size, order.batch, order.seed, "continuous")
    slots = [order.slots(step) for step in range(-(-2 * order.size // order.batch))]
    samples = np.concatenate([slot.samples for slot in slots])
    epochs = np.concatenate([slot.epochs for slot in slots])
    for epoch in (0, 1):
        assert sorted(samples[epochs == epoch]) == list(range(order.size))


@given(micro=st.integers(1, 4), world=st.integers(1, 4), accumulation=st.integers(1, 4), coupled=st.booleans())
def test_ranks_share_the_batch(micro: int, world: int, accumulation: int, coupled: bool) -> None:
    batch = micro * world * accumulation
    group = micro * world if coupled else batch
    shares = [share(batch, group, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares)) == list(range(batch))
    if coupled:  # the same samples meet in a micro-step, however many ranks there are
        met = np.stack([part.reshape(accumulation, micro) for part in shares], 1).reshape(accumulation, -1)
        np.testing.assert_array_equal(met, np.arange(batch).reshape(accumulation, -1))
    else:
        assert all((np.diff(part) == 1).all() for part in shares)


def test_epochs_and_seeds_give_other_orders() -> None:
    first = Order(100, 10, seed=0)
    assert first.slots(0).samples.tolist() != first.slots(10).samples.tolist()
    assert first.slots(0).samples.tolist() != Order(100, 10, seed=1).slots(0).samples.tolist()


def test_keys_differ_in_all_that_they_are_made_of() -> None:
    samples = np.arange(2000)
    several = [keys(seed, epoch, samples, view) for seed in (0, 1) for epoch in (0, 1) for view in (0, 1)]
    together = np.concatenate(several)
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0


def test_every_place_is_reached_evenly() -> None:
    first = np.array([permute(np.arange(1), 10, seed)[0] for seed in range(2000)])
    assert np.bincount(first, minlength=10).min() > 140


def test_the_numbers_of_this_version_stay() -> None:
    """A change here changes every run's data: raise order.VERSION with it."""
    assert mix(np.array([1], np.uint64)).tolist() == [6238072747940578789]
    assert fold(1, 2, 3).tolist() == [13675598158741942980]
    slots = Order(1000, 4, seed=7).slots(300)
    assert slots.epochs.tolist() == [1] * 4
    assert slots.samples.tolist() == [178, 988, 227, 332]
    assert slots.keys.tolist() == [190187664853465457, 1044429787627009708, 1916776046633356456, 4864993123995297360]


def test_a_billion_samples_cost_nothing() -> None:
    samples = Order(10**9, 4096, seed=0).slots(123_456).samples
    assert len(set(samples.tolist())) == 4096
    assert samples.max() < 10**9


def test_state_counts_steps() -> None:
    assert Order(10, 4, 0).state(5) == {"order_version": 1, "seed": 0, "epoch": 2, "consumed": 20, "batch": 4}
    assert Order(10, 4, 0, "continuous").state(4)["epoch"] == 1


def test_small_sets_are_permuted_fairly_too() -> None:
    """`permute` prefers some of the 120 permutations of 5 elements, and of 16 elements only makes even ones."""
    tables = [tuple(permute_fairly(np.arange(5), 5, seed).tolist()) for seed in range(12_000)]
    counts = np.array(list(Counter(tables).values()))
    assert len(counts) == 120
    assert ((counts - 100) ** 2 / 100).sum() < 180  # chi-square with 119 degrees of freedom: once in 3,000
    parities = set()
    for seed in range(40):
        table = permute_fairly(np.arange(16), 16, seed)
        assert sorted(table.tolist()) == list(range(16))
        parities.add(round(np.linalg.det(np.eye(16)[table])))
    assert parities == {-1, 1}


@given(size=st.integers(1, 100), epochs=st.lists(st.integers(0, 5), max_size=30), data=st.data())
def test_a_fair_permutation_is_the_same_whoever_asks(size: int, epochs: list[int], data: st.DataObject) -> None:
    positions = np.array(
        data.draw(st.lists(st.integers(0, size - 1), min_size=len(epochs), max_size=len(epochs))), np.int64
    )
    together = permute_fairly(positions, size, 3, np.array(epochs))
    apart = [
        int(permute_fairly(np.arange(size), size, 3, epoch)[p]) for p, epoch in zip(positions, epochs, strict=True)
    ]
    assert together.tolist() == apart
