"""Features on disk: each sample once on any number of processes, kept for whoever asks again, never half of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mrp.batch import Batch
from mrp.build import build_step, open_source
from mrp.data.augment import View
from mrp.data.loader import EvalLoader
from mrp.data.subset import fixed_sample
from mrp.evaluate.contract import never
from mrp.evaluate.readout import Readout, backbone_of
from mrp.evaluate.table import Table, Writer, here
from mrp.evaluate.tables import Tables
from mrp.processes.join import Accelerator, join_for_evaluation
from mrp.run import load
from mrp.step import Step
from tests.forked import together

SAMPLES = 37  # divided by neither 2 nor 3, nor by the batch
RUN = load("demo", ["backbone.depth=3", "backbone.width=24", "backbone.heads=2", "objective.decoder.depth=1"])


def got(
    tables: Tables, step: Step, readout: Readout, processes: Accelerator, of: str = "a test", count: int = SAMPLES
) -> Table | None:
    loader = EvalLoader(
        fixed_sample(open_source(RUN, "test"), count), View(RUN.data, train=False), batch=8, workers=0,
        rank=processes.process_index, world=processes.num_processes, pin_memory=False,
    )  # fmt: skip
    return tables.get({"of": of}, step, readout, loader, count, processes, never)


def made(folder: Path, processes: Accelerator, count: int = SAMPLES, tokens: bool = False) -> Table | None:
    step, tables = build_step(RUN), Tables(folder)
    readout = Readout.tokens(backbone_of(step)) if tokens else Readout.last(backbone_of(step), 3)
    with tables.of("some"):
        return got(tables, step, readout, processes, count=count)


def same(one: Table, other: Table) -> bool:
    columns = [np.array_equal(one.columns[name], other.columns[name]) for name in one.columns]
    return all(columns) and torch.equal(one.labels, other.labels) and torch.equal(one.keys, other.keys)


def test_rows_are_the_backbones_features(tmp_path: Path) -> None:
    found = made(tmp_path, join_for_evaluation())
    assert found is not None
    step = build_step(RUN).eval()
    sampled = fixed_sample(open_source(RUN, "test"), SAMPLES)
    images = torch.stack([torch.from_numpy(np.array(sampled.read(i)[0])).permute(2, 0, 1) for i in range(SAMPLES)])
    with torch.no_grad():
        expected = step(Batch(images, torch.arange(SAMPLES)), features=True).features
    (own,) = Readout.own(backbone_of(step)).blocks
    torch.testing.assert_close(found.rows([own], slice(None)), expected, atol=2e-3, rtol=2e-3)
    assert found.labels.tolist() == [sampled.read(i)[1] for i in range(SAMPLES)]
    assert list(found.columns) == [f"{layer}.{pooling}" for layer in (1, 2, 3) for pooling in ("class", "mean")]
    both = found.rows(["1.mean", "2.class"], np.array([3, 5]))
    assert both.shape == (2, 48)
    assert torch.equal(both[:, 24:], found.rows(["2.class"], np.array([3, 5])))


def test_patch_tokens_lie_in_one_row(tmp_path: Path) -> None:
    tokens, pooled = made(tmp_path, join_for_evaluation(), tokens=True), made(tmp_path, join_for_evaluation())
    assert tokens is not None
    assert pooled is not None
    mean = tokens.rows(["3.tokens"], slice(None)).unflatten(1, (-1, 24)).mean(1)
    torch.testing.assert_close(mean, pooled.rows(["3.mean"], slice(None)), atol=2e-3, rtol=2e-3)


def test_what_is_there_is_not_made_again_and_what_is_damaged_is(tmp_path: Path) -> None:
    first = made(tmp_path, join_for_evaluation())
    assert first is not None
    (place,) = tmp_path.iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    again = made(tmp_path, join_for_evaluation())
    assert again is not None
    assert same(first, again)
    assert {path.name: path.stat().st_mtime_ns for path in place.iterdir()} == before
    for damage in ("flip", "cut", "meta"):
        file = place / ("meta.json" if damage == "meta" else "2.mean.f16")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content[:-2] if damage == "cut" else content)
        mended = made(tmp_path, join_for_evaluation())
        assert mended is not None
        assert mended.rows(["2.mean"], slice(None)).isfinite().all()
        assert {path.name for path in place.iterdir()} == set(before)


def test_something_else_gets_another_place(tmp_path: Path) -> None:
    made(tmp_path, join_for_evaluation())
    made(tmp_path, join_for_evaluation(), count=20)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_unfinished_is_removed_unless_it_is_being_written(tmp_path: Path) -> None:
    abandoned, old = tmp_path / f".unfinished-abc{here()}1", tmp_path / ".unfinished-abc-1"
    elsewhere = tmp_path / ".unfinished-abc-othernode-1"  # whose lock is not seen here
    for folder in (abandoned, old, elsewhere):
        folder.mkdir()
    os.utime(old, (0, 0))
    described = {"columns": {"1.mean": 2}, "count": 3}
    alive = Writer(tmp_path / "def", described)
    tables = Tables(tmp_path)
    with tables.of("some"):
        tables._writer("ghi", described).discard()
    assert not abandoned.exists()
    assert not old.exists()
    assert alive.unfinished.is_dir()
    alive.discard()
    assert list(tmp_path.iterdir()) == [elsewhere]


def test_a_table_that_another_process_reads_by_now_is_not_replaced(tmp_path: Path) -> None:
    described = {"columns": {"1.mean": 2}, "count": 2, "weights": "w"}
    both = [Writer(tmp_path / "a", described)]
    both[0].unfinished = both[0].unfinished.rename(both[0].unfinished.with_name(".unfinished-a-othernode-1"))
    both.append(Writer(tmp_path / "a", described))
    for writer in both:
        writer.put(0, torch.ones(2, 2), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    both[0].finish()
    before = (tmp_path / "a").stat().st_ino
    assert both[1].finish().images == 2
    assert (tmp_path / "a").stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_cannot_be_is_not_written(tmp_path: Path) -> None:
    described = {"columns": {"1.mean": 2}, "count": 3}
    labels, keys = torch.zeros(2, dtype=torch.int64), torch.arange(2)
    writer = Writer(tmp_path / "a", described)
    writer.put(0, torch.ones(2, 2), labels, keys)
    with pytest.raises(AssertionError, match="seen twice"):
        writer.put(1, torch.ones(2, 2), labels, keys)
    with pytest.raises(AssertionError, match="1 of 3 samples were not seen"):
        writer.finish()
    writer = Writer(tmp_path / "a", described)
    writer.put(0, torch.tensor([[1.0, torch.nan], [7e4, 0.0]]), labels, keys)
    writer.put(2, torch.ones(1, 2), labels[:1], keys[:1] + 5)
    with pytest.raises(ValueError, match="2 of 3 samples are not finite in half precision"):
        writer.finish()
    assert not list(tmp_path.iterdir())


def test_a_table_serves_whoever_reads_a_part_of_its_columns(tmp_path: Path) -> None:
    """The sweep reads many blocks of columns; kNN takes one of them and needs no pass of its own."""
    step, tables, alone = build_step(RUN), Tables(tmp_path), join_for_evaluation()
    own = Readout.own(backbone_of(step))
    assert made(tmp_path, alone) is not None
    with tables.of("some"):
        assert got(tables, step, own, alone) is not None
        assert len(list(tmp_path.iterdir())) == 1
        got(tables, step, own, alone, of="other data")
    with tables.of("others"):
        got(tables, step, own, alone)
    assert len(list(tmp_path.iterdir())) == 3
    with tables.of(None):  # weights that go on changing
        assert got(tables, step, own, alone) is not None
        assert len(list(tmp_path.rglob("meta.json"))) == 4
    assert len(list(tmp_path.rglob("meta.json"))) == 3


def test_a_table_that_a_killed_run_has_left_is_not_taken_for_its_present_weights(tmp_path: Path) -> None:
    step, tables, alone = build_step(RUN), Tables(tmp_path), join_for_evaluation()
    own = Readout.own(backbone_of(step))
    with tables.of(None):
        before = got(tables, step, own, alone)
        shutil.copytree(tmp_path / "while-training", tmp_path / "left")
    (tmp_path / "left").rename(tmp_path / "while-training")
    with torch.no_grad():
        for parameter in step.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with tables.of(None):
        now = got(tables, step, own, alone)
        assert before is not None
        assert now is not None
        assert not same(before, now)
    assert not list(tmp_path.iterdir())


def test_a_process_that_is_done_earlier_removes_nothing_of_the_first_one(tmp_path: Path) -> None:
    tables, another_process = Tables(tmp_path), Tables(tmp_path)
    with tables.of(None):
        writer = tables._writer("abc", {"columns": {"1.mean": 2}, "count": 2})
        writer.put(0, torch.ones(2, 2), torch.zeros(2, dtype=torch.int64), torch.arange(2))
        with another_process.of(None):
            pass
        assert len(writer.finish()) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_make_the_same_table(tmp_path: Path, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made(tmp_path / "one", join_for_evaluation())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    ended = together(world, on_several_processes, tmp_path, world)
    assert [each.returncode for each in ended] == [0] * world, ended
    several = made(tmp_path / "several", join_for_evaluation())  # read, not made: what the processes have left is whole
    assert one is not None
    assert several is not None
    assert all(
        torch.allclose(one.rows([n], slice(None)), several.rows([n], slice(None)), atol=2e-3) for n in one.columns
    )
    assert torch.equal(one.keys, several.keys)
    assert torch.equal(one.labels, several.labels)


def on_several_processes(folder: Path, world: int) -> None:
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    processes = Accelerator(cpu=True)
    assert processes.num_processes == world
    found = made(folder / "several", processes)
    assert (found is not None) == (rank == 0)
    torch.distributed.destroy_process_group()
