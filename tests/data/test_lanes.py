"""Samples in shards: permutations, fixed lanes, and nothing that grows with the data."""

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrp.data.lanes import Lanes
from mrp.data.mixtures import Mixed
from mrp.data.order import Ints, Order, share
from tests.data.test_order import orders as whole_orders

SAMPLES = [383, 397, 894, 144, 260, 543, 496, 553]


@st.composite
def orders(draw: st.DrawFn) -> Order:
    blocks = draw(st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda found: sum(found) >= 8))
    lanes = draw(st.sampled_from([1, 2, 4]))
    size = sum(blocks)
    batch = lanes * draw(st.integers(1, size // lanes))
    layout = Lanes(np.array(blocks), draw(st.integers(0, 2**63 - 1)), lanes, draw(st.integers(1, 5)))
    tail = draw(st.sampled_from(["drop", "continuous"]))
    group = lanes * draw(st.sampled_from([n for n in range(1, batch // lanes + 1) if batch // lanes % n == 0]))
    return Order(size, batch, layout.seed, tail, layout=layout, group=group)


def lane_of(order: Order, places: Ints) -> Ints:
    assert order.layout is not None
    return places % order.group // (order.group // order.layout.lanes)


@given(order=orders())
def test_an_epoch_shows_each_sample_once(order: Order) -> None:
    steps = int(order.steps_per_epoch) if order.tail == "drop" else -(-order.size // order.batch) + 1
    slots = [order.slots(step) for step in range(steps)]
    samples, epochs = np.concatenate([s.samples for s in slots]), np.concatenate([s.epochs for s in slots])
    first = samples[epochs == 0]
    assert len(set(first.tolist())) == len(first) == order.size - order.dropped
    assert samples.min() >= 0
    assert samples.max() < order.size


PARTS = (Order(100, 24, 7, "continuous", None, 6), Order(70, 8, 7, "continuous", None, 2))
EVERY = st.one_of(orders(), whole_orders(), st.just(Mixed(PARTS, 32, 7, 2, 8)))


@given(order=EVERY, step=st.integers(0, 10**6), data=st.data())
def test_a_place_holds_the_same_whoever_asks(order: Order | Mixed, step: int, data: st.DataObject) -> None:
    places = np.array(data.draw(st.lists(st.integers(0, order.batch - 1), min_size=1, max_size=20)))
    whole, part = order.slots(step), pickle.loads(pickle.dumps(order)).slots(step, places)
    for all_values, values in zip(whole, part, strict=True):
        np.testing.assert_array_equal(all_values[places], values)


@given(order=orders())
def test_a_lane_keeps_its_samples_over_all_epochs(order: Order) -> None:
    places = np.arange(order.batch)
    lanes = lane_of(order, places)
    seen: dict[int, set[int]] = {}
    for step in range(3 * (-(-order.size // order.batch))):
        for lane, sample in zip(lanes.tolist(), order.slots(step).samples.tolist(), strict=True):
            seen.setdefault(lane, set()).add(sample)
    every = [sample for samples in seen.values() for sample in samples]
    assert len(every) == len(set(every)), "no sample is in two lanes"


@given(order=orders(), step=st.integers(0, 1000))
def test_what_is_fetched_ahead_is_what_is_needed(order: Order, step: int) -> None:
    assert order.layout is not None
    assert isinstance(order.layout, Lanes)
    ends = np.cumsum(order.layout.shard_sizes)
    group = order.group or order.batch
    world = next(n for n in (3, 2, 1) if group % n == 0)
    for rank in range(world):
        places = share(order.batch, group, rank, world)  # as the loader asks: all that a rank takes in a step
        announced = {shard for shards in order.shards(step, places) for shard in shards}
        firsts = places[np.unique(lane_of(order, places), return_index=True)[1]]
        needed = np.searchsorted(ends, order.slots(step, firsts).samples, side="right")
        assert set(needed.tolist()) <= announced


def test_a_rank_touches_only_the_shards_of_its_lanes() -> None:
    """Four ranks, eight lanes: each meets about a quarter of the shards, whatever the epoch."""
    layout = Lanes(np.full(64, 100), 3, 8, 2)
    order = Order(6400, 64, 3, layout=layout, group=32)
    ends = np.cumsum(layout.shard_sizes)
    met = []
    for rank in range(4):
        places = share(64, 32, rank, 4)
        samples = np.concatenate([order.slots(step, places).samples for step in range(300)])
        met.append(set(np.searchsorted(ends, samples, side="right").tolist()))
    assert [len(shards) for shards in met] == [16] * 4
    assert len(set.union(*met)) == 64


def test_epochs_and_seeds_give_other_orders_and_windows_stay_together() -> None:
    layout = Lanes(np.full(40, 10), 5, 1, 4)
    order = Order(400, 40, 5, layout=layout)
    epochs = [np.concatenate([order.slots(step).samples for step in range(first, first + 10)]) for first in (0, 10)]
    assert epochs[0].tolist() != epochs[1].tolist()
    for samples in epochs:
        windows = [set((samples[start : start + 40] // 10).tolist()) for start in range(0, 400, 40)]
        assert all(len(window) == 4 for window in windows)
    assert layout.samples(np.zeros(9, int), np.zeros(9, int), np.arange(9)).tolist() != list(range(9))


def test_the_numbers_of_this_version_stay() -> None:
    """A change here changes every run's data: raise order.VERSION with it."""
    order = Order(1000, 8, 7, layout=Lanes(np.full(10, 100), 7, 2, 3))
    assert order.slots(300).samples.tolist() == SAMPLES


@pytest.mark.parametrize("lanes", [1, 8])
def test_a_billion_samples_are_ready_at_once(lanes: int) -> None:
    tracemalloc.start()
    order = Order(10**9, 4096, 0, layout=Lanes(np.full(100_000, 10_000), 0, lanes, 16))
    samples = order.slots(123_456).samples
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    assert len(set(samples.tolist())) == 4096


@pytest.mark.parametrize("lanes", [1, 4])
def test_what_to_fetch_is_looked_up_and_not_computed_anew(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once per lane and epoch the shards are permuted; every step of the epoch only looks at the result."""
    parts = []
    for seed in (1, 2):
        layout = Lanes(np.full(200, 10), seed, lanes, 2)
        parts.append(Order(2000, 20, seed, "continuous", layout, 20))
    orders: list[Order | Mixed] = [Order(2000, 20, 0, "drop", Lanes(np.full(200, 10), 0, lanes, 2))]
    orders.append(Mixed(tuple(parts), 40, 0, lanes, 40))
    for order in orders:
        places = np.arange(order.batch)
        order.shards(40, places)
        with monkeypatch.context() as patch:
            patch.setattr(Lanes, "_arrange", None)
            patch.setattr("mrp.data.order.permute", None)
            assert len({str(order.shards(step, places)) for step in range(40, 80)}) > 5
