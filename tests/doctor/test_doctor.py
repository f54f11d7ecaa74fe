"""The doctor finds each of twelve planted mistakes, and is silent where there is none."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mrp.cli import main
from mrp.config import compose
from mrp.data.source import DecodeError
from mrp.doctor import data, forecast, speed
from mrp.doctor.case import Case, Terms
from mrp.doctor.examine import examine
from mrp.doctor.finding import Finding
from mrp.doctor.machine import Machine
from mrp.doctor.speed import Rate, Speed
from mrp.run import find_recipe, load, recipes
from tests.data.conftest import make
from tests.tagged_digits import FILE

MACHINE = Machine(
    versions={"Python": "3.11.7", "torch": "2.15.0", "torchvision": "0.29", "timm": "1.0.31", "accelerate": "1.15"},
    device=torch.device("cpu"), gpus=(), driver=False, bf16=True, compiler="/usr/bin/cc", header=True, nccl=False,
    memory=8 << 30, host_memory=8 << 30, installed_memory=64 << 30, cores=8, installed_cores=64,
    shared_memory=8 << 30, open_files=1024, disk=100 << 30,
)  # fmt: skip
FAST = Speed(Rate(5000, 4000, 6000, 90), Rate(500, 450, 550, 20), Rate(490, 400, 510, 20), waiting=0.02)
SLOW = Speed(Rate(200, 150, 220, 9), Rate(500, 450, 550, 20), Rate(180, 120, 200, 9), waiting=0.61)
GREY = ["data.size=8", "data.channels=1", "data.mean=0.5", "data.std=0.289"]  # noise, as `noise` writes it


SMALL = ["backbone.depth=1"]


def case(recipe: str = "demo", *words: str, machine: Machine = MACHINE, processes: int = 1, **more: Any) -> Case:
    written = compose(find_recipe(recipe), find=find_recipe).values
    return Case(load(recipe, [*SMALL, *words]), processes, Path("runs/x"), written, machine, **{"speed": FAST, **more})


def problems(patient: Case) -> list[Finding]:
    return [finding for _, finding in examine(patient) if finding.level != "ok"]


def noise(folder: Path, numbers: range) -> Path:
    """Grey images of 8 x 8 pixels in two classes."""
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def test_what_is_said_of_images_of_one_value_can_be_set(tmp_path: Path) -> None:
    for number in range(8):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), 51, np.uint8)).save(path)
    found = problems(case("demo", f"data.train={tmp_path}", "data.test=null", *GREY))
    (said,) = [finding.remedy for finding in found if finding.about == "mean and std"]
    assert said.endswith("set data.mean=[0.2] data.std=[0.289]")


@pytest.mark.parametrize("recipe", sorted(path.stem for path in recipes().glob("*_digits.yaml")))
def test_a_sound_recipe_on_digits_is_met_with_silence(recipe: str) -> None:
    assert not problems(case(recipe, "backbone.depth=6"))


@pytest.mark.parametrize(
    ("recipe", "words", "processes", "level", "about", "says"),
    [
        ("demo", ["batch=512"], 1, "warning", "peak learning rate", "optim.per=128"),
        ("demo", ["optim.per=16"], 1, "warning", "peak learning rate", "where the recipe has 0.003"),
        (
            "maskfeat_tiny_digits", ["evaluate={reconstructions: {every: 1 epochs}}"],
            1, "error", "reconstructions", "no pixels",
        ),
        ("demo", ["data.test=null", "evaluate={knn: {every: 1 epochs}}"], 1, "error", "runs/x", "data.test is not"),
        (
            "umae_tiny_digits",
            ["data.train=[{source: digits, weight: 30}, {source: digits, weight: 1}]", "machine.micro_batch=8"],
            1, "error", "data.train.1.weight", "too small",
        ),
        ("demo", ["optim.lr=2.4e-3", "optim.per=8"], 1, "warning", "peak learning rate", "set optim.per=null"),
        ("demo", ["optim.lr=2e-6"], 1, "warning", "peak learning rate", "set optim.per=256"),
        ("demo", ["data.mean=0.8", "data.std=0.1"], 1, "warning", "mean and std", "data.mean=[0.30"),
        ("demo", ["data.mean=78", "data.std=95"], 1, "error", "mean and std", "divide by 255"),
        ("demo", ["data.size=32", "backbone.patch=8"], 1, "warning", "image size", "enlarged 4 times"),
        ("demo", [], 3, "error", "batch", "the nearest that is: 129"),
        ("supervised_tiny_digits", ["objective.classes=11"], 1, "error", "objective.classes", "has 10 classes"),
        ("umae_tiny_digits", ["coupled_batch=1"], 1, "error", "coupled batch", "collapsing"),
        (
            "umae_tiny_digits",
            ["objective.uniformity={weight: {kind: linear, value: 0, end: 0.01}}", "coupled_batch=1"],
            1, "error", "coupled batch", "collapsing",
        ),
        ("umae_tiny_digits", ["coupled_batch=4"], 1, "warning", "coupled batch", "mostly noise"),
        ("umae_tiny_digits", ["objective.uniformity=10"], 1, "warning", "uniformity", "outweighs"),
        ("demo", ["optim.warmup=100 epochs"], 1, "warning", "steps", "more than half"),
        ("demo", ["objective.mask_ratio=0.1"], 1, "warning", "masks", "10% of the patches are hidden"),
        (
            "demo", ["objective.mask_ratio={kind: linear, value: 0.75, end: 0.1}"],
            1, "warning", "masks", "10% to 75% of the patches are hidden",
        ),
        ("demo", ["machine.workers=32"], 1, "warning", "machine.workers", "auto takes 7"),
        ("demo", ["data.test=nowhere"], 1, "error", "data.test", "does not exist"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_recipe_is_found(
    recipe: str, words: list[str], processes: int, level: str, about: str, says: str
) -> None:
    (found,) = problems(case(recipe, *words, processes=processes))
    assert (found.level, found.about) == (level, about)
    assert says in f"{found.found}; {found.remedy}"
    assert found.remedy


@pytest.mark.parametrize(
    ("facts", "words", "level", "about", "says"),
    [
        ({"shared_memory": 1 << 14}, ["machine.workers=4"], "error", "shared memory", "--shm-size"),
        ({"disk": 1 << 20}, [], "error", "disk", "checkpoint.keep"),
        ({"open_files": 100}, [], "warning", "open files", "ulimit -n"),
        ({"memory": 1 << 20}, ["machine.micro_batch=128"], "error", "memory per process", "machine.micro_batch"),
        (
            {"memory": 1 << 20},
            ["objective.uniformity=0.01", "coupled_batch=128"],
            "error",
            "memory per process",
            "more proc",
        ),
        ({"compiler": None}, ["machine.compile=yes"], "error", "torch.compile", "machine.compile=no"),
        ({"header": False}, ["machine.compile=yes"], "error", "torch.compile", "python3-dev, of this Python"),
        ({"driver": True}, [], "warning", "devices", "torch sees no GPU"),
        (
            {"bf16": False},
            ["precision=bf16"],
            "warning",
            "bf16",
            "this processor computes in bfloat16 only by emulation",
        ),
        ({"versions": MACHINE.versions | {"Python": "3.14.0"}}, [], "warning", "versions", "3.11 to 3.13"),
    ],
)
def test_a_machine_that_lacks_something_is_found(
    facts: dict[str, Any], words: list[str], level: str, about: str, says: str
) -> None:
    (found,) = problems(case("demo", *words, machine=replace(MACHINE, **facts)))
    assert (found.level, found.about) == (level, about)
    assert says in f"{found.found}; {found.remedy}"


def test_gpus_are_counted_and_nccl_is_asked_for() -> None:
    cuda = replace(MACHINE, device=torch.device("cuda"), gpus=("NVIDIA H100",) * 2)
    found = problems(case("demo", machine=cuda, processes=4))
    assert [(one.level, one.about) for one in found] == [("error", "devices"), ("error", "NCCL")]


def test_a_loader_that_starves_the_step_is_found() -> None:
    (found,) = problems(case(speed=SLOW))
    assert (found.level, found.about) == ("warning", "throughput")
    assert "waits 61% of the time for the loader" in found.found


SLEEPY = """
import time
from mrp.data.sources import digits

class Config(digits.Config):
    pass

class Source(digits.Source):
    def read(self, index):
        time.sleep(0.3)
        return super().read(index)
"""


def test_a_slow_source_is_measured_to_starve_the_step(tmp_path: Path) -> None:
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    patient = case("demo", "batch=4", "machine.resident=no", f"data.train={{name: {tmp_path}/sleepy.py}}", speed=None)
    slow = speed.measure(patient, seconds=0)
    assert speed.judge(slow).level == "warning"
    assert slow.loader.median <= 1 / 0.3
    assert speed.judge(replace(slow, waiting=0.0)).level == "ok"


def test_speed_is_measured_with_the_workers_of_the_recipe() -> None:
    patient = case("demo", "machine.workers=1", "machine.resident=no", speed=None)
    (found,) = (finding for finding in speed.throughput(patient))
    assert patient.speed is not None
    for rate in (patient.speed.loader, patient.speed.step, patient.speed.both):
        assert 0 < rate.low <= rate.median <= rate.high
        assert str(rate) in found.found


def test_images_that_the_run_holds_in_memory_are_measured_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "Loader", None)
    assert speed.measure(case("demo"), seconds=0).loader.count == 1


def test_evaluators_are_built_without_joining_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shell whose launcher has set this, joining would wait for a process that never comes."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    words = "evaluate={knn: {every: 1 epochs}, linear: {every: 1 epochs}}", "data.group=digit"
    found = [finding for _, finding in examine(case("demo", *words), quick=True) if finding.level == "error"]
    assert [finding.about for finding in found] == ["data.group"]
    assert "'digit' finds the same in the names of all" in found[0].found


def test_a_fault_of_the_recipe_is_no_fault_of_the_data_where_something_is_measured() -> None:
    words = "objective.mask_ratio=0.99", "evaluate={knn: {every: 1 epochs}}"
    assert {group for group, finding in examine(case("demo", *words)) if finding.level == "error"} == {"recipe"}


def test_the_speed_of_a_head_on_standardised_features_is_measured() -> None:
    """They are followed after each step, unless it was left out: that is a bool, as in training."""
    assert speed.measure(case("linear_tiny_digits"), seconds=0).step.count == 1


LABELS = """
from mrp.data.sources import digits

class Config(digits.Config):
    pass

class Source(digits.Source):
    def __init__(self, config, split, cache):
        super().__init__(config, split, cache)
        self.labels[5] = 10
"""


def test_labels_out_of_range_are_found(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(LABELS)
    (found,) = problems(case("demo", f"data.train={{name: {tmp_path}/wrong.py}}"))
    assert (found.level, found.about) == ("error", "labels")
    assert "1 of 1,437 labels are outside of 0 to 9, first 10 of digits (train): image 5" in found.found


def test_test_images_inside_train_are_found(tmp_path: Path) -> None:
    train, test = noise(tmp_path / "train", range(64)), noise(tmp_path / "test", range(60, 72))
    words = [*GREY, "batch=16", "optim.lr=2e-4", f"data.train={train}", f"data.test={test}"]
    (found,) = problems(case("demo", *words))
    assert (found.level, found.about) == ("error", "overlap")
    assert "4 test images are in the training data" in found.found
    assert found.found.startswith("all images compared by content")
    (found,) = problems(case("demo", *words[:-1], f"data.test={train}"))
    assert (found.level, found.about) == ("error", "test data")


def test_other_images_of_the_same_names_are_other_images(tmp_path: Path) -> None:
    train, test = noise(tmp_path / "train", range(64)), noise(tmp_path / "test", range(64, 128))
    for path in list(test.rglob("*.png")):
        path.rename(path.with_name(f"{int(path.stem) - 64}.png"))
    other = case("demo", *GREY, "batch=16", "optim.lr=2e-4", f"data.train={train}", f"data.test={test}")
    assert not problems(other)
    (said,) = data.test_data(other)  # which is all that --quick says of them
    assert said.found == "64 images, of the same names as those of data.train"


def test_images_that_cannot_be_decoded_are_named(tmp_path: Path) -> None:
    train = noise(tmp_path / "train", range(64))
    (train / "a" / "6.png").write_bytes(b"no image")
    words = [*GREY, "batch=16", "optim.lr=2e-4", f"data.train={train}", "data.test=null"]
    (found,) = problems(case("demo", *words))
    assert (found.level, found.about) == ("warning", "decoding")
    assert found.found.startswith(f"1 of 64 sampled images cannot be decoded, first {train}/a/6.png")


def test_channels_that_samples_lack_do_not_count_in_the_mean(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    present = draw.random((64, 3)) < [0.3, 1, 0.6]
    images = draw.integers(0, 256, (64, 8, 8, 3), np.uint8) * present[:, None, None].astype(np.uint8)
    np.savez(tmp_path / "cells.npz", images=images, present=present)
    train = f"data.train={{name: arrays, path: {tmp_path}/cells.npz, present: present}}"
    words = ["data.size=8", "data.channels=[a,b,c]", "data.mean=0.5", "data.std=0.289", "batch=16", "optim.lr=2e-4"]
    assert not problems(case("demo", *words, train, "data.test=null"))
    present[:, 0] = False  # of a channel that none has there is nothing to say
    np.savez(tmp_path / "cells.npz", images=images, present=present)
    assert not problems(case("demo", *words, train, "data.test=null"))


def test_a_sample_that_its_source_cannot_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    patient = case("demo", *SMALL)
    whole = patient.source.read

    def read(index: int) -> Any:
        if index % 2:
            raise DecodeError("the row holds no image")
        return whole(index)

    monkeypatch.setattr(patient.source, "read", read)
    found = next(one for one in data.decoded(patient) if one.about == "decoding")
    assert found.level == "error"
    assert re.search("sampled images cannot be decoded, first .*[13579]: the row holds no image", found.found)


def test_too_few_shards_for_the_processes_are_found(tmp_path: Path) -> None:
    make(noise(tmp_path / "images", range(64)), tmp_path / "shards", shard_size=32)
    words = [*GREY, "batch=16", "optim.lr=2e-4", f"data.train={tmp_path / 'shards'}", "data.test=null"]
    assert not problems(case("demo", *words, processes=2))
    (found,) = problems(case("demo", *words, processes=4))
    assert (found.level, found.about) == ("warning", "shards")
    assert "--shard-size 8" in found.remedy
    part = [*words[:-2], f"data.train={tmp_path / 'images'}", "data.test=null", "data.fraction=0.5"]
    assert not problems(case("demo", *part, processes=4)), "a part of a folder has no shards"
    for path in (tmp_path / "images").rglob("*.png"):
        path.write_bytes(b"no image")
    (broken,) = problems(case("demo", *part, processes=4))
    assert "a run ends at the first one" in broken.remedy


def test_a_forecast_is_for_this_machine_and_for_a_named_gpu() -> None:
    terms = Terms(on="h100", price=2.0, watts=100.0)
    here, there = (finding for group, finding in examine(case(terms=terms)) if group == "forecast")
    steps, images = 1650, 1650 * 128
    assert here.found.startswith(f"{images / 490 / 60:.0f} minutes for {steps:,} steps, as measured")
    assert "kWh at 100 W each" in here.found
    assert "per hour" not in here.found  # the price is the named GPU's
    assert "assumed" in there.found
    assert "at 2 per hour and device" in there.found


def test_a_forecast_says_how_far_apart_the_paces_were() -> None:
    uneven = replace(FAST, both=Rate(490, 49, 980, 20))
    (here,) = (finding for group, finding in examine(case(speed=uneven)) if group == "forecast")
    assert str(Rate(123456.7, 999.96, 1000, 3)) == "123,457 (1,000 to 1,000, n=3)"
    assert forecast._time(83.9) == "3.5 days"
    assert here.found.startswith("7 minutes (4 minutes to 1.2 hours: the pace varies) for 1,650 steps")


def test_one_busy_moment_is_not_all_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now)
    taken = list[float]()
    for _ in speed._enough(3.0):
        taken.append(10.0 if not taken else 0.5)
        now += taken[-1]
    assert taken == [10.0, 0.5, 0.5]
    now, begun = 0.0, 0
    for _ in speed._enough(3.0):
        begun, now = begun + 1, now + 60
    assert begun == 1, "a step of a minute is measured once"


def test_the_verb_prints_each_line_and_ends_with_code_2_on_errors(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "demo", "--quick"])
    text = capsys.readouterr().out
    assert "  ok      images: 1,437\n" in text
    assert "throughput" not in text
    assert text.endswith("demo: no error, no warning\n")
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "demo", "--quick", "--json", "--processes", "3"])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert answer["errors"] == 1
    assert [one["about"] for one in answer["findings"] if one["level"] == "error"] == ["batch"]
    assert printed.err == "mrp: error: demo: 1 error, no warning; mend what is named above\n"
    with pytest.raises(SystemExit):
        main(["doctor", "demo", "--on", "h10"])
    assert "--on: 'h10' was given; allowed: a100, h100" in capsys.readouterr().err


def test_it_counts_who_has_the_rarest_tag_and_names_those_that_nobody_has() -> None:
    of_tags = ["objective.loss=tags", "checkpoint.best=null"]

    def tags(*names: str) -> list[Finding]:
        given = [f"data.{split}={{name: {FILE}, tags: [{', '.join(names)}]}}" for split in ("train", "test")]
        patient = case("finetune_tiny_digits", *of_tags, f"objective.classes={len(names)}", *given)
        return [finding for _, finding in examine(patient) if finding.about == "tags"]

    train, test = tags("even", "seven")
    assert (train.level, test.level) == ("ok", "ok")
    assert re.search(r"data.train: 2 \(even, seven\); the rarest is 'seven', which \d+ of 1,\d+ images", train.found)
    train, test = tags("even", "seven", "striped")
    assert train.level == "warning"
    assert "no image is known to have 1 (striped), which cannot be learned" in train.found
    assert test.found.endswith("which cannot be judged")
