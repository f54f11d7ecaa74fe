"""What a run comes to on its data: the parts that a folder decides for a run that goes on."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from mrp.build import measure_cost
from mrp.data import mixtures
from mrp.folder import IDENTITY
from mrp.plan import Job, length_of, plan_job
from mrp.processes.threads import limited
from mrp.run import load, recipes
from mrp.state import jump
from mrp.train import announcement

GIB = 2**30
MIXED = "data.train=[{source: digits, weight: 1}, {source: digits, weight: 1}]"


def job(folder: Path, *words: str) -> Job:
    return plan_job(load("demo", ["batch=64", "data.tail=continuous", *words]), folder, 1, GIB)


def begin(folder: Path, **recorded: int) -> None:
    """Writes what a run that has a checkpoint leaves in its folder, as far as a plan reads it."""
    (folder / IDENTITY).write_text(json.dumps(recorded))
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)


@pytest.mark.parametrize(("recorded", "version"), [(None, mixtures.VERSION), (1, 1), (2, 2)])
def test_a_mixture_goes_on_in_the_order_that_its_folder_records(
    tmp_path: Path, recorded: int | None, version: int
) -> None:
    if recorded:
        begin(tmp_path, order_version=recorded)
    mixture = job(tmp_path, MIXED)
    assert mixture.order.version == version
    assert mixture.run.identity("data", mixture.order.version)["order_version"] == version


def test_the_order_of_one_source_is_as_it_was(tmp_path: Path) -> None:
    assert job(tmp_path).order.version == 1
    begin(tmp_path, order_version=2)
    assert job(tmp_path).order.version == 1


def test_a_run_goes_on_with_the_coupled_batch_that_its_folder_records(tmp_path: Path) -> None:
    coupled = "objective.uniformity=0.01"
    assert job(tmp_path, coupled).run.coupled_batch == 64
    begin(tmp_path, coupled_batch=16)
    assert job(tmp_path, coupled).run.coupled_batch == job(tmp_path, coupled).plan.micro_batch == 16
    assert job(tmp_path).run.coupled_batch is None


@pytest.mark.parametrize(
    ("words", "device", "threads"),
    [
        ([], "cpu", 1),
        (["objective.mask_ratio=0.5", "batch=1024"], "cpu", None),  # enough work for torch's own number
        ([], "cuda", None),
        (["machine.threads=3"], "cuda", 3),
    ],
)
def test_a_small_model_is_trained_with_one_thread(
    tmp_path: Path, words: list[str], device: str, threads: int | None
) -> None:
    with limited(2):
        assert job(tmp_path, *words).threads(torch.device(device)) == threads


def test_counting_the_cost_draws_no_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrp.build._COSTS", {})
    torch.manual_seed(1)
    before = torch.get_rng_state()
    measure_cost(load("demo"))
    assert torch.equal(torch.get_rng_state(), before)


def test_where_torch_has_one_thread_the_cost_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = job(tmp_path)
    monkeypatch.setattr("mrp.plan.measure_cost", lambda run: pytest.fail("was counted"))
    with limited(1):
        assert alone.threads(torch.device("cpu")) is None


def test_the_start_says_where_there_are_more_workers_than_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setattr("mrp.processes.container.usable_cores", lambda: 3)
    state, session = SimpleNamespace(step=0), SimpleNamespace(device="cpu", processes=1, folder=tmp_path)
    said = announcement(job(tmp_path, "machine.workers=4"), state, session, None)  # type: ignore[arg-type]
    assert "machine.workers: 4 decoding processes on 3 cores; auto takes 2" in said
    for words in ("machine.workers=3", "machine.workers=auto"):
        assert "workers" not in announcement(job(tmp_path, words), state, session, None)  # type: ignore[arg-type]


def test_a_run_that_changes_says_how_learning_rate_and_epoch_jump(tmp_path: Path) -> None:
    longer = job(tmp_path, "length=200 steps", "optim.warmup=10 steps", "optim.lr=1.0", "optim.per=null")
    now = longer.plan.length
    as_before: dict[str, Any] = {"length": asdict(now), "lr": longer.run.optim.lr_at(99, now, 10)}
    assert jump(longer, 100, as_before) is None  # type: ignore[arg-type]
    assert jump(longer, 100, {}) is None  # as long ago
    assert jump(longer, 0, {"length": as_before["length"]}) is None  # the first step was not finite
    shorter, twice = replace(now, steps=100), replace(now, batch=32, steps_per_epoch=2 * now.steps_per_epoch)
    in_the_warm_up = {"length": asdict(shorter), "lr": 0.4}
    assert jump(longer, 5, in_the_warm_up) is None  # type: ignore[arg-type]
    for changes, said in (
        ({"lr": 0.3}, "at step 100 the learning rate was 0.3 and goes on at 0.541"),
        (
            {"length": asdict(twice)},
            "the run had 200 steps of 32 and has 200 of 64: at step 100 epoch 2.227 of the data counts as epoch 4.454",
        ),
        (
            {"length": asdict(shorter), "lr": 0.001},
            "the run had 100 steps of 64 and has 200 of 64: at step 100 the learning rate was 0.001 and goes on at "
            "0.541",
        ),
    ):
        assert jump(longer, 100, as_before | changes) == f"warning: {said}"  # type: ignore[arg-type]


def test_the_start_names_the_classes_and_what_is_left_out(tmp_path: Path) -> None:
    """Folders of masks beside folders of images, or files without an ending, are not seen in the number of images."""
    state, session = SimpleNamespace(step=0), SimpleNamespace(device="cpu", processes=1, folder=tmp_path)
    for number in range(4):
        path = tmp_path / "data" / ("images", "masks")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    words = [f"data.train={tmp_path / 'data'}", "data.test=null", "batch=2"]
    said = announcement(job(tmp_path, *words), state, session, None)  # type: ignore[arg-type]
    assert "\nclasses of data.train: 2 (images, masks)\n" in said
    assert "left out" not in said
    path.rename(path.with_suffix(""))
    said = announcement(job(tmp_path, *words), state, session, None)  # type: ignore[arg-type]
    assert (
        f"{tmp_path / 'data'}: files left out as no images, by the endings of their names: 1 without one; rename"
        in said
    )


def test_the_start_says_where_the_learning_rate_would_fall_after_the_end(tmp_path: Path) -> None:
    """A recipe that falls at epoch 700 of 800 may be asked for 100 epochs."""
    state, session = SimpleNamespace(step=0), SimpleNamespace(device="cpu", processes=1, folder=tmp_path)
    late = job(tmp_path, "length=20 steps", "optim.warmup=0 steps", "optim.drops=[10 steps, 20 steps]")
    said = announcement(late, state, session, None)  # type: ignore[arg-type]
    assert "optim.drops: 1 of its 2 are after the last step" in said
    fits = job(tmp_path, "length=21 steps", "optim.warmup=0 steps", "optim.drops=[10 steps, 20 steps]")
    assert "drops" not in announcement(fits, state, session, None)  # type: ignore[arg-type]


def test_the_start_says_where_an_average_is_mostly_of_initial_weights(tmp_path: Path) -> None:
    """Loading, probing and exporting take the average by default."""
    state, session = SimpleNamespace(step=0), SimpleNamespace(device="cpu", processes=1, folder=tmp_path)
    long = job(tmp_path, "length=2000 steps", "average.decay=0.9999")
    said = announcement(long, state, session, None)  # type: ignore[arg-type]
    assert "average.decay: 0.9999 leaves 82% of the initial weights in the average at the end of 2,000 steps" in said
    assert "give 0.995" in said
    fits = job(tmp_path, "length=2000 steps", "average.decay=0.995")
    assert "average.decay" not in announcement(fits, state, session, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("data", "images"), [("in1k", 1_281_167), ("in100", 126_689)])
def test_no_recipe_ends_with_an_average_of_initial_weights(data: str, images: int) -> None:
    for path in recipes().glob(f"supervised_*_{data}.yaml"):
        run = load(path)
        assert run.average is not None
        assert run.average.remark(length_of(run, images / run.batch).steps) is None, path.stem


def test_a_run_without_a_checkpoint_is_planned_anew(tmp_path: Path) -> None:
    (tmp_path / IDENTITY).write_text(json.dumps({"coupled_batch": 64, "order_version": 1}))
    smaller = job(tmp_path, MIXED, "objective.uniformity=0.01", "batch=32")
    assert smaller.run.coupled_batch == 32
    assert smaller.order.version == mixtures.VERSION


def test_the_start_warns_where_bfloat16_is_only_emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = SimpleNamespace(device=torch.device("cpu"), processes=1, folder=tmp_path)
    state = SimpleNamespace(step=0)

    def said(slowdown: float, precision: str) -> str:
        monkeypatch.setattr("mrp.processes.halves.bf16_slowdown", lambda: slowdown)
        return announcement(job(tmp_path, f"precision={precision}"), state, session, None)  # type: ignore[arg-type]

    assert "take precision=fp32" in said(30.0, "bf16")
    assert "precision=fp32" not in said(0.3, "bf16")
    assert "precision=fp32" not in said(30.0, "fp32")
