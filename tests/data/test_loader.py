"""The same pixels for every number of ranks, workers and micro-batches; each sample once in evaluation; clean ends."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from mrp.batch import Batch
from mrp.config import ConfigError
from mrp.data.augment import View
from mrp.data.config import Config
from mrp.data.loader import Loader
from mrp.data.mixtures import order as sharded_order
from mrp.data.open import open_source
from mrp.data.order import Order, keys
from mrp.data.source import Source
from mrp.data.worker_signals import REQUESTS
from mrp.run import load
from mrp.train import train
from tests.data.conftest import evaluated, jpeg, loaded, make
from tests.waiting import LONG

BATCH = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(60):
        path = root / f"class{number % 3}" / f"{number:02}.{'png' if number % 4 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        height, width = rng.integers(10, 40, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return root


def view(train: bool = True, **options: Any) -> View:
    return View(Config(**{"train": "digits", "size": 12, **options}), train)


def loader(source: Source, *, coupled: bool = False, seed: int = 3, **options: Any) -> Loader:
    group = options.get("micro_batch", BATCH) * options.get("world", 1) if coupled else BATCH
    return loaded(source, view(), Order(len(source), BATCH, seed), group=group, **options)


def joined(batches: list[Batch]) -> tuple[Tensor, Tensor, Tensor]:
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return (
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.keys for batch in batches]),
        torch.cat(labels),
    )


def steps(source: Source, world: int, start: int, stop: int, **options: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each global batch of a span, put together from its ranks."""
    ranks = [list(loader(source, rank=rank, world=world, **options).steps(start, stop)) for rank in range(world)]
    if options.get("coupled"):
        return [
            joined([batch for micro in zip(*parts, strict=True) for batch in micro])
            for parts in zip(*ranks, strict=True)
        ]
    return [joined([batch for part in parts for batch in part]) for parts in zip(*ranks, strict=True)]


def same(a: list[tuple[Tensor, Tensor, Tensor]], b: list[tuple[Tensor, Tensor, Tensor]]) -> bool:
    return all(torch.equal(x, y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize(("world", "micro_batch"), [(1, 8), (2, 12), (2, 6), (3, 4), (4, 2)])
def test_ranks_and_accumulation_change_nothing(folder: Path, world: int, micro_batch: int, coupled: bool) -> None:
    source = open_source(str(folder), "train")
    whole = steps(source, 1, 0, 4)
    parts = steps(source, world, 0, 4, micro_batch=micro_batch, coupled=coupled)
    assert same(whole, parts)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize(("world", "micro_batch"), [(1, 8), (2, 6), (4, 2)])
def test_an_image_has_its_place_in_the_global_batch(folder: Path, world: int, micro_batch: int, coupled: bool) -> None:
    """By it neighbours are mixed, so it must not depend on the division."""
    source = open_source(str(folder), "train")
    places = dict(zip(Order(len(source), BATCH, 3).slots(2).keys.tolist(), range(BATCH), strict=True))
    found: dict[int, int] = {}
    for rank in range(world):
        parts = loader(source, rank=rank, world=world, micro_batch=micro_batch, coupled=coupled)
        for batch in next(parts.steps(2, 3)):
            assert batch.places is not None
            found |= zip(batch.keys.tolist(), batch.places.tolist(), strict=True)
    assert found == places


def test_workers_change_nothing_and_live_from_span_to_span(folder: Path) -> None:
    source = open_source(str(folder), "train")
    generator = torch.get_rng_state()
    with_workers = loader(source, micro_batch=8, workers=2)
    spans = [[joined(step) for step in with_workers.steps(start, start + 2)] for start in (0, 2)]
    workers = {process.pid for process in multiprocessing.active_children()}
    assert len(workers) == 2
    abandoned = with_workers.steps(4, 9)
    next(abandoned)
    del abandoned
    spans.append([joined(step) for step in with_workers.steps(4, 5)])
    assert {process.pid for process in multiprocessing.active_children()} == workers
    assert same([step for span in spans for step in span], steps(source, 1, 0, 5))
    assert torch.equal(torch.get_rng_state(), generator)
    with_workers.close()
    assert not multiprocessing.active_children()


def test_more_workers_than_cores_are_said_in_our_words_alone(folder: Path) -> None:
    loader(open_source(str(folder), "train"), workers=1 + (os.cpu_count() or 1))  # a warning of torch would be an error


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 24), (2, 6), (4, 3)])
def test_views_are_crops_of_one_sample_with_keys_of_their_own(folder: Path, world: int, micro_batch: int) -> None:
    """Three views of eight samples: the first are those of a run with one view, and ranks change nothing."""
    source = open_source(str(folder), "train")
    order = Order(60, 8, 3)
    found = []
    for rank in range(world):
        ranked = loaded(source, view(views=3), order, micro_batch=micro_batch, rank=rank, world=world)
        found += [(rank, batch) for batches in ranked.steps(2, 3) for batch in batches]
    each = micro_batch // 3
    slots = order.slots(2)
    assert all(torch.equal(batch.places, batch.places[:each].repeat(3)) for _, batch in found)
    for number in range(3):
        part = [
            Batch(*(x[number * each : (number + 1) * each] for x in (b.images, b.keys, b.labels))) for _, b in found
        ]
        images, seen, labels = joined(part)
        assert seen.tolist() == keys(3, slots.epochs, slots.samples, number).tolist()
        assert labels.tolist() == [source.read(sample)[1] for sample in slots.samples.tolist()]
        if number == 0:
            assert torch.equal(images, next(loaded(source, view(), order).steps(2, 3))[0].images)


def test_a_batch_says_what_it_is(folder: Path) -> None:
    source = open_source(str(folder), "train")
    first, *_ = loader(source, micro_batch=8).steps(5, 6)
    assert [int(batch.step) for batch in first] == [5, 5, 5]
    assert (first[0].images.shape, first[0].images.dtype) == ((8, 3, 12, 12), torch.uint8)
    assert first[0].images.is_contiguous(memory_format=torch.channels_last)  # the device takes the colours apart
    assert (first[0].step.shape, first[0].step.dtype) == ((), torch.int64)
    assert first[0].valid is None
    slots = Order(60, BATCH, 3).slots(5)
    assert torch.cat([batch.keys for batch in first]).tolist() == slots.keys.tolist()
    assert joined(first)[2].tolist() == [source.read(sample)[1] for sample in slots.samples.tolist()]
    assert not list(loader(source).steps(5, 5))


def test_without_classes_there_are_no_labels(tmp_path: Path) -> None:
    for number in range(BATCH):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"{number}.png")
    source = open_source(str(tmp_path), "train")
    assert next(loader(source).steps(0, 1))[0].labels is None
    assert all(batch.labels is None for batch in evaluated(source, view(False), 5))


def by_rank(source: Source, batch: int, world: int, workers: int = 0) -> list[list[Batch]]:
    loaders = [evaluated(source, view(False), batch, rank=rank, world=world, workers=workers) for rank in range(world)]
    ranks = [list(loader) for loader in loaders]
    assert [len(rank) for rank in ranks] == [len(loader) for loader in loaders]
    return ranks


@pytest.mark.parametrize(("batch", "world"), [(60, 1), (7, 1), (16, 2), (7, 4), (1, 7), (100, 3), (5, 64)])
def test_evaluation_sees_each_sample_once(folder: Path, batch: int, world: int) -> None:
    source = open_source(str(folder), "test")
    ranks = by_rank(source, batch, world)
    assert len({len(rank) for rank in ranks}) == 1
    batches = [one for rank in ranks for one in rank]
    assert {one.images.shape for one in batches} == {(batch, 3, 12, 12)}
    valid = torch.cat([one.valid for one in batches if one.valid is not None])
    images, seen, labels = joined(batches)
    assert seen[valid].tolist() == keys(0, 0, np.arange(60)).tolist()
    assert labels[valid].tolist() == [source.read(sample)[1] for sample in range(60)]
    assert not images[~valid].any()
    whole = by_rank(source, 60, 1)[0][0].images
    assert torch.equal(images[valid], whole)


def test_evaluation_in_workers_is_the_same_and_they_end(folder: Path) -> None:
    source = open_source(str(folder), "test")
    for left, right in zip(by_rank(source, 16, 1)[0], by_rank(source, 16, 1, workers=2)[0], strict=True):
        assert torch.equal(left.images, right.images)
    assert not multiprocessing.active_children()


def test_workers_that_are_new_interpreters_do_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Mac. What is sent to the whole job before they can ignore it does not end them."""
    monkeypatch.setattr("mrp.data.workers.START", "spawn")
    start = DataLoader.__iter__

    def started(self: DataLoader[Any]) -> Any:
        found = start(self)
        for worker, number in itertools.product(multiprocessing.active_children(), REQUESTS):
            os.kill(worker.pid or 0, number)
        return found

    monkeypatch.setattr(DataLoader, "__iter__", started)
    source = open_source(str(folder), "test")
    for left, right in zip(by_rank(source, 16, 1)[0], by_rank(source, 16, 1, workers=1)[0], strict=True):
        assert torch.equal(left.images, right.images)
    assert not multiprocessing.active_children()


def test_images_of_sixteen_bits_raise_their_neighbours(tmp_path: Path) -> None:
    Image.fromarray(np.full((12, 12), 200, np.uint8)).save(tmp_path / "0.png")
    Image.fromarray(np.full((12, 12), 54321, np.uint16)).save(tmp_path / "1.png")
    source = open_source(str(tmp_path), "test")
    batch, *_ = evaluated(source, view(False, channels=1), 3)
    assert batch.images.dtype == torch.uint16
    assert batch.images[:, 0, 0, 0].tolist() == [200 * 257, 54321, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_line(tmp_path: Path, workers: int) -> None:
    for number in range(BATCH):
        (tmp_path / f"{number:02}.jpg").write_bytes(jpeg(0, (30, 30))[: -100 if number == 17 else None])
    source = open_source(str(tmp_path), "train")
    with pytest.raises(ConfigError) as error:
        list(loader(source, workers=workers).steps(0, 1))
    assert (
        str(error.value)
        == f"{tmp_path / '17.jpg'}: damaged JPEG: Premature end of JPEG file; mend it under the same name and run again"
    )
    assert not multiprocessing.active_children()


def test_a_vanished_image_is_named(tmp_path: Path) -> None:
    for number in range(BATCH):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{number}.png")
    source = open_source(str(tmp_path), "train")
    (tmp_path / "7.png").unlink()
    with pytest.raises(
        ConfigError,
        match=r"7\.png: cannot be read: No such file or directory; mend it under the same name and run again",
    ):
        next(loader(source).steps(0, 1))


ORPHANS = """
import multiprocessing, os, signal, sys
from mrp.data.augment import View
from mrp.data.loader import Loader
from mrp.data.order import Order
from mrp.data.config import Config
from mrp.data.open import open_source

if __name__ == "__main__":
    source = open_source(sys.argv[1], "train")
    order, view = Order(len(source), 8, 0), View(Config(train="", size=8), True)
    loader = Loader(source, order, view, group=8, micro_batch=8, rank=0, world=1, workers=2, pin_memory=False)
    next(loader.steps(0, 1000))
    assert len(multiprocessing.active_children()) == 2
    os.kill(os.getpid(), signal.SIGKILL)
"""


def ran(folder: Path, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own, which has ended."""
    (folder / "run.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(folder / "run.py"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LONG, check=False)


def test_a_killed_run_leaves_no_workers_behind(folder: Path, tmp_path: Path) -> None:
    """They hold the run's standard output, so waiting for its end is waiting for theirs."""
    assert ran(tmp_path, ORPHANS, str(folder)).returncode == -signal.SIGKILL


def test_a_dead_worker_is_an_error_and_not_a_hang(folder: Path) -> None:
    with_workers = loader(open_source(str(folder), "train"), workers=1)
    batches = with_workers.steps(0, 1000)
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(ConfigError, match=r"machine\.workers: a worker process of the loader died"):
        list(batches)
    with_workers.close()
    assert not multiprocessing.active_children()


DIES_WHILE_IT_LOOKS = """
import os, signal, sys
from torch.utils.data import Dataset
from mrp.config import ConfigError
from mrp.data.workers import Numbers, received, torch_loader

class Data(Dataset):
    def __getitem__(self, number):
        frame = sys._getframe()
        while "done_event" not in frame.f_locals:
            frame = frame.f_back
        if (lock := getattr(frame.f_locals["done_event"], "_cond", None)) is not None:
            lock.acquire()
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    try:
        list(received(torch_loader(Data(), Numbers(range(9)), 1, False, persistent=False)))
    except ConfigError as error:
        print(error)
"""


def test_a_worker_that_dies_while_it_looks_whether_to_end_holds_no_lock(tmp_path: Path) -> None:
    ended = ran(tmp_path, DIES_WHILE_IT_LOOKS)
    assert ended.stdout.startswith("machine.workers: a worker process of the loader died")


UNGUARDED = """
from mrp.config import ConfigError
from mrp.data.workers import Numbers, received, torch_loader
try:
    list(received(torch_loader([bytes(SIZE)], Numbers(range(1)), 1, False, persistent=False)))
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize(("size", "more"), [(8, "# __name__"), (1 << 20, "")])
def test_a_script_without_its_guard_is_named(tmp_path: Path, size: int, more: str) -> None:
    """Each worker imports the script, and so would train too; one that takes large data ends while it is given them."""
    ended = ran(tmp_path, UNGUARDED.replace("SIZE", str(size)) + more)
    assert ended.stdout.startswith(f"{tmp_path / 'run.py'}: starts its work whenever it is imported")
    assert ended.stdout.count("\n") == 1


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("loader") / "shards"
    make(folder, out, shard_size=9)
    return out


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # of more workers than cores
def test_processes_and_workers_may_change_in_mid_epoch(shards: Path) -> None:
    """1 -> 2 -> 4 -> 1 processes and 0 -> 3 workers, resumed twice in an epoch, at its boundary and at step 0."""
    source = open_source(str(shards), "train")
    data = Config(train=str(shards), size=12, lanes=4, window=2)
    run = sharded_order(source, data, BATCH, 3)
    assert run.steps_per_epoch == 2

    def span(world: int, workers: int, start: int, stop: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        options = {"micro_batch": BATCH // world, "world": world, "workers": workers}
        loaders = [loaded(source, view(), run, rank=rank, **options) for rank in range(world)]
        ranks = [list(one.steps(start, stop)) for one in loaders]
        for one in loaders:
            one.close()
        return [joined([batch for part in parts for batch in part]) for parts in zip(*ranks, strict=True)]

    whole = span(1, 0, 0, 8)
    pieces = [(1, 0, 0, 0), (2, 0, 0, 1), (4, 0, 1, 3), (1, 3, 3, 5), (2, 0, 5, 6), (1, 0, 6, 8)]
    assert same(whole, [step for piece in pieces for step in span(*piece)])


def test_workers_import_torch_while_the_model_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds, which the first batch would wait for."""
    happened = list[str]()
    monkeypatch.setattr("mrp.data.workers.start_fork_server", lambda preload: happened.append(*preload))

    def build(*_: Any) -> None:
        happened.append("model")
        raise ConfigError("enough")

    monkeypatch.setattr("mrp.train.State.build", build)
    for workers in (0, 2):
        with pytest.raises(ConfigError, match="enough"):
            train(
                load("demo", [f"machine.workers={workers}", "length=2 steps", "optim.warmup=0 steps"]),
                tmp_path / str(workers),
            )
    assert happened == ["model", "mrp.data.batches", "model"]
