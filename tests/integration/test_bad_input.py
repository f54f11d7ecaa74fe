"""Bad input: one line that says what, where and what to do, exit code 2, and nothing lost or overwritten."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrp import locking
from mrp.checkpoint import checkpoints, sealed
from mrp.cli import main
from mrp.data.order import Order
from mrp.monitor import metrics, watchdog
from mrp.run import load
from tests.forked import mrp
from tests.trained import pretrained
from tests.waiting import LONG

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = [
    "demo", "batch=16", "length=6 steps", "optim.warmup=1 steps", "checkpoint.every=2 steps", "backbone.depth=1",
    "backbone.width=16", "backbone.heads=2", "objective.decoder={width: 16, depth: 1, heads: 2}", "track.every=1",
    "checkpoint.keep=3",
]  # fmt: skip
NUM_IMAGES = 32


def fault(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line on stderr that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    lines = capsys.readouterr().err.splitlines(keepends=True)
    error = "".join(line for line in lines if " does not take over the recipe's " not in line)
    assert caught.value.code == 2, error
    assert error.startswith("mrp: error: ")
    assert error.count("\n") == 1, error
    assert error.endswith("\n")
    return error.removeprefix("mrp: error: ").strip()


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run that nothing happened to; only looked at."""
    return pretrained(tmp_path_factory.mktemp("undisturbed") / "run", *SMALL)


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path) -> Path:
    """A whole run of one's own."""
    return Path(shutil.copytree(undisturbed, tmp_path / "finished"))


def test_images_that_cannot_be_held_are_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "machine.resident=yes", "data.augment={name: crop, jitter: 0.2}"
    line = fault(capsys, "pretrain", *SMALL, *words, "--folder", tmp_path / "run")
    assert line.startswith("machine.resident: of data.augment, only resize, and bicubic crop")
    assert line.endswith("; leave it to auto, and images are read anew each time")


def test_a_start_that_is_refused_writes_nothing_into_the_run_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "_BEAT", 0.01)
    folder = pretrained(tmp_path / "run", *SMALL)
    before = contents(folder)
    assert ".ranks/rank-0.json" in before
    with locking.take(folder):
        line = fault(capsys, "pretrain", *SMALL, "--folder", folder)
    assert line == f"{folder}: another process is writing this run; wait for it, or use --folder FOLDER"
    assert contents(folder) == before


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with files that the table below names."""
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "list.yaml": "- objective\n- backbone\n",
        "torn.yaml": "objective: {name: mae\n",
        "twice.yaml": "base: demo\nbatch: 8\nbatch: 16\n",
        "one.yaml": "base: two.yaml\n",
        "two.yaml": "base: one.yaml\n",
        "orphan.yaml": "base: demmo\n",
        "typo.yaml": "base: demo\noptim: {lr: fast}\n",
        "empty.yaml": "",
        "half.py": "class Config: pass\n",
        "notes.txt": "no archive",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "void").mkdir()
    return tmp_path


# Nothing of these gets as far as a run's folder.


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        # Files
        ("demmo", ["demmo: is neither a file nor a recipe", "did you mean 'demo'?", "'mrp recipes' lists them"]),
        ("nowhere.yaml", ["nowhere.yaml: is neither a file nor a recipe"]),
        ("void", ["void: is neither a file nor a recipe"]),
        ("list.yaml", ["list.yaml: a configuration is a mapping (key: value), not a list"]),
        ("torn.yaml", ["torn.yaml, line 2: not valid YAML"]),
        ("twice.yaml", ["twice.yaml, line 3: not valid YAML: the key 'batch' stands twice"]),
        ("one.yaml", ["one.yaml: base: the files name each other in a circle; remove one 'base:'"]),
        ("orphan.yaml", ["orphan.yaml: base: demmo: is neither", "did you mean 'demo'?"]),
        ("typo.yaml", ["typo.yaml: optim.lr: 'fast' was given; allowed: number"]),
        ("empty.yaml", ["empty.yaml: objective: this key is required and missing; add it"]),
        # Keys and types
        ("demo batch", ["the command line: 'batch' is not of the form key=value, for example optim.lr=1e-3"]),
        ("demo objective.mask_ration=0.5", ["objective.mask_ration: unknown key; did you mean 'mask_ratio'?"]),
        ("demo data.augment.flipp=true", ["data.augment.flipp: unknown key; did you mean 'flip'?"]),
        ("demo objective.decoder.widht=8", ["objective.decoder.widht: unknown key; did you mean 'width'?"]),
        ("demo optim.clip=abc", ["optim.clip: 'abc' was given; allowed: number"]),
        ("demo data.size=[1,a]", ["data.size.1: 'a' was given; allowed: integer"]),
        ("demo data.augment=crpo", ["data.augment: unknown augmentation 'crpo'; did you mean 'crop'?"]),
        ("demo batch=", ["batch: null was given; allowed: integer"]),
        ("demo optim=", ["optim: a section with a name is needed, such as {name: adamw}; known: adamw, lars"]),
        ("demo batch=0", ["batch: 0 was given; allowed: greater than 0"]),
        ("demo machine.micro_batch=0", ["machine.micro_batch: 0 was given; allowed: greater than 0 or 'auto'"]),
        ("demo optim.betas=[0.9,1]", ["optim.betas.1: 1 was given; allowed: less than 1"]),
        ("demo length=10", ["length: 10 is not a duration; write for example '800 epochs'"]),
        ("demo length=ten_epochs", ["length: 'ten_epochs' is not a duration"]),
        ("demo length=10minutes", ["length: '10minutes' is not a duration"]),
        # Names
        ("demo objective.name=maee", ["objective: unknown objective 'maee'; did you mean 'mae'?"]),
        ("demo objective.name=./nowhere.py", ["nowhere.py' does not exist; a relative path starts at"]),
        ("demo objective.name=./half.py", ["half.py' defines no Objective; see the files in mrp/objectives/"]),
        ("demo backbone.name=vit_base_patch61_224", ["unknown backbone", "did you mean 'vit_base_patch16_224'?"]),
        ("demo backbone={name:[}", ["the command line, backbone, line 1: not valid YAML"]),
        ("demo mask_ratio=0.5", ["mask_ratio: unknown key; did you mean 'objective.mask_ratio'?"]),
        ("demo mask_ration=0.5", ["mask_ration: unknown key; did you mean 'objective.mask_ratio'?"]),
        ("demo objective.depth=2", ["objective.depth: unknown key; did you mean 'backbone.depth'?"]),
        ("demo optim.name=rprop", ["optim: unknown optimizer 'rprop'; known: adamw", "for example {name: adamw}"]),
        ("demo data.mean=0.5,0.5,0.5", ["allowed: list; write data.mean=[0.5,0.5,0.5]"]),
        ("mae_base_in1k", ["neither a file nor a recipe", "did you mean 'mae_vit_base_in1k'?"]),
        # What needs pretrained weights
        ("linear_tiny_digits", ["init: objective.frozen is for pretrained weights, and none are given"]),
        ("finetune_mae_vit_base_in1k", ["init: optim.layer_decay is for pretrained weights, and none are given"]),
        ("demo backbone=", ["backbone: this key is required and missing; add it, or take it from", "with init=RUN"]),
        # Metrics
        ("demo checkpoint.best=lossy", ["checkpoint.best: lossy is not among the metrics", "did you mean 'loss'?"]),
        ("demo checkpoint.best=validation/loss", ["checkpoint.best: validation/loss is not among the metrics"]),
        ("demo checkpoint.best=features/kn diagnose.every=1epoch", ["did you mean 'features/knn'?; it logs features"]),
        (
            "demo checkpoint.best=validation/accuracy validation.every=1epoch",
            ["validation/accuracy is not among the metrics", "validation/loss"],
        ),
        # What does not go together
        ("demo data.size=9", ["data.size 9x9 is not a multiple of the patch 2x2; the nearest that is: 8x8"]),
        ("demo batch=9 --processes 2", ["batch: 9 is not a multiple of the 2 processes; the nearest that is: 8"]),
        ("demo optim.lr=fast --processes 2", ["optim.lr: 'fast' was given; allowed: number"]),
        ("demo machine.micro_batch=7", ["machine.micro_batch: 7 does not divide the 128 images", "or auto"]),
        ("demo batch=2000", ["batch: 2000 images are asked for at once but the data holds 1437; give 1437 or fewer"]),
        ("demo batch=2000 data.tail=continuous", ["batch: 2000", "the data holds 1437"]),
        ("demo optim.warmup=151epochs", ["optim.warmup: 151 epochs", "is longer than the run"]),
        ("demo length=0epochs", ["length: 0 epochs is nothing to train; give at least 1 step"]),
        ("demo objective.mask_ratio=0.99", ["objective.mask_ratio: 0.99 of 16 patches leaves 0 visible"]),
        ("demo backbone.width=90", ["backbone: width 90 is not a multiple of heads 4; change one of them"]),
        ("demo objective.decoder.width=66", ["objective.decoder: width 66 is not a multiple of heads 4"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_a_wrong_configuration(place: Path, capsys: pytest.CaptureFixture[str], words: str, parts: list[str]) -> None:
    before = contents(place)
    command = ["config"] if "--processes" in words else ["pretrain", "--folder", "run"]
    line = fault(capsys, *command, *words.split())
    assert all(part in line for part in parts), line
    assert not (place / "run").exists()
    assert contents(place) == before


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ("nowhere", ["data.train: 'nowhere' does not exist; give a folder of images"]),
        ("digit", ["data.train: 'digit' does not exist", "did you mean 'digits'?"]),
        ("void", ["void: holds no images; files that count end in .jpg"]),
        ("notes.txt", ["notes.txt: neither a folder of images nor cifar-10-binary.tar.gz"]),
    ],
)
def test_data_that_is_not_there(place: Path, capsys: pytest.CaptureFixture[str], data: str, parts: list[str]) -> None:
    before = contents(place)
    line = fault(capsys, "pretrain", *SMALL, f"data.train={data}", "--folder", "run")
    assert all(part in line for part in parts), line
    assert not (place / "run").exists()
    assert contents(place) == before
    main(["config", *SMALL, f"data.train={data}"])  # a recipe can be looked at before its data has come
    assert f"# {line}" in capsys.readouterr().out.replace("#   steps:                 unknown, since ", "# ")


@pytest.mark.parametrize("data", ["nowhere", "void"])
def test_test_data_that_are_not_there(place: Path, capsys: pytest.CaptureFixture[str], data: str) -> None:
    words = [*SMALL, f"data.test={data}"]
    submit = fault(capsys, "submit", *words, "--time", "60", "--dry-run")
    main(["config", *words])
    assert f"#   test data:             {submit}" in capsys.readouterr().out.splitlines()
    train = fault(capsys, "submit", *words, f"data.train={data}", "--time", "60", "--dry-run")
    assert train.startswith(data if data == "void" else "data.train: 'nowhere' does not exist")


def test_what_a_method_of_ones_own_drops_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "own.py").write_text(OWN)
    words = [word for word in SMALL if not word.startswith("objective")]
    main(["config", *words, "objective.name=./own.py"])
    dropped = "objective: ./own.py does not take over the recipe's mask_ratio, target, decoder"
    assert capsys.readouterr().err.splitlines() == [f"mrp: {dropped}"]
    main(["config", *words, "objective.mask_ratio=0.5"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("variable", "value", "parts"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", ["precision: the recipe says fp32", "mixed_precision=fp16"]),
        ("ACCELERATE_MIXED_PRECISION", "bf16", ["precision: the recipe says fp32", "or give precision=bf16"]),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", ["is set, which machine.micro_batch decides; unset it"]),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", ["is set, which machine.compile decides; unset it"]),
    ],
)
def test_a_launcher_that_wants_otherwise(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variable: str, value: str,
    parts: list[str],
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, value)
    line = fault(capsys, "pretrain", *SMALL, "--folder", "run")
    assert all(part in line for part in parts), line
    assert not (place / "run").exists()


# Images


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images, all of them sound."""
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        Image.fromarray(noise.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{number:02}.png")
    return folder


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int) -> None:
    intact = (images / "13.png").read_bytes()
    damage(images / "13.png")
    before = contents(images)
    words = ["pretrain", *SMALL, f"data.train={images}", "data.test=null", f"machine.workers={workers}"]
    line = fault(capsys, *words, "--folder", tmp_path / "run")
    assert line.startswith(f"{images / '13.png'}: damaged image")
    assert line.endswith("mend it under the same name and run again")
    assert contents(images) == before
    (images / "13.png").write_bytes(intact)
    main([*words, "--folder", str(tmp_path / "run")])
    found = checkpoints.newest(tmp_path / "run")
    assert found is not None
    assert found.step == 6


# Runs


@pytest.mark.parametrize("verb", ["probe", "report"])
@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("nowhere", "there is no such folder"),
        ("void", "is neither a run of mrp nor a folder of timm or transformers"),
        ("notes.txt", "is damaged, or not a checkpoint"),
    ],
)
def test_what_is_no_run(place: Path, capsys: pytest.CaptureFixture[str], verb: str, run: str, said: str) -> None:
    before = contents(place)
    assert fault(capsys, verb, run).startswith(f"{run}: {said}")
    assert contents(place) == before


def test_a_run_without_a_checkpoint(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(finished / "checkpoints")
    assert fault(capsys, "probe", finished).startswith(
        f"{finished}: has no checkpoint yet; 'mrp pretrain' writes the first"
    )
    main(["report", str(finished)])  # its curves are there
    page = (finished / "report.html").read_text()
    assert "Pictures: there is no checkpoint yet" in page
    assert "<h3>Loss" in page


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("optim.lr=1e-3", "optim.lr = 0.0015, not 0.001"),
        ("batch=8", "batch = 16, not 8"),
        ("length=7 steps", "length = '6 steps', not '7 steps'"),
        ("objective.mask_ratio=0.5", "objective.mask_ratio = 0.75, not 0.5"),
        ("seed=1", "seed = 0, not 1"),
        ("data.augment.flip=true", "data.augment.flip = False, not True"),
    ],
)
def test_a_run_of_another_configuration(
    finished: Path, capsys: pytest.CaptureFixture[str], word: str, named: str
) -> None:
    before = contents(finished)
    line = fault(capsys, "pretrain", *SMALL, word, "--folder", finished)
    assert line.startswith(f"{finished}: this run was made with {named}; restore that value, start another run")
    assert contents(finished) == before


def test_what_does_not_change_results_may_change(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["pretrain", *SMALL, "machine.workers=1", "checkpoint.keep=5", "--folder", str(finished)])
    assert f"{finished}: complete already, at step 6" in capsys.readouterr().out


def test_a_run_on_other_data(finished: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished)
    line = fault(capsys, "pretrain", *SMALL, f"data.train={images}", "--folder", finished)
    assert line.startswith(f"{finished}: this run was made with other training data (data.content ")
    assert contents(finished) == before


def test_a_folder_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    before = contents(tmp_path)
    line = fault(capsys, "pretrain", *SMALL, "--folder", tmp_path)
    assert line == f"{tmp_path}: is not empty and not a run of mrp; choose another folder with --folder FOLDER"
    assert contents(tmp_path) == before


def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(
    finished: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = finished / "checkpoints" / "step-00000006"
    model = last / "model.safetensors"
    size = model.stat().st_size
    model.write_bytes(model.read_bytes()[:1000])
    before = contents(finished / "checkpoints")
    what = f"mrp: warning: {model}: has 1,000 bytes in place of {size:,}; "
    for verb in ("probe", "report"):
        capsys.readouterr()
        main([verb, str(finished)])
        assert f"{what}the checkpoint before it is taken\n" in capsys.readouterr().err
    assert contents(finished / "checkpoints") == before
    main(["pretrain", *SMALL, "--folder", str(finished)])
    said = capsys.readouterr()
    assert f"{what}it is now called step-00000006.bad; the checkpoint before it is taken\n" in said.err
    assert f"{finished}: from step 4" in said.out
    aside = last.with_name("step-00000006.bad")
    assert (aside / "model.safetensors").stat().st_size == 1000
    shutil.rmtree(aside)
    assert whole(finished) == whole(undisturbed)


# No space left


def whole(run: Path) -> dict[str, Any]:
    """All that a run leaves that does not depend on when and how fast it ran."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    costs = ("images_per_second", "checkpoint/", "loader/", "memory/")
    numbers = [{key: value for key, value in line.items() if not key.startswith(costs)} for line in lines]
    return saved(run) | {"metrics": numbers}


def saved(run: Path) -> dict[str, Any]:
    """All files of checkpoints but those in which it stands how and where they were written."""
    files = contents(run / "checkpoints").items()
    return {name: data for name, (data, _) in files if not name.endswith(("config.yaml", "MANIFEST.json", "latest"))}


HERE = "checkpoint.asynchronous=false"  # so that what writes can be made to fail


def full_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The disk is full when the safetensors file of this number is half written."""
    write: Callable[..., sealed.Digest] = sealed._write
    written = 0

    def full(path: Path, parts: sealed.Parts) -> sealed.Digest:
        nonlocal written
        written += path.suffix == ".safetensors"
        if written == number:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, parts)

    monkeypatch.setattr(sealed, "_write", full)


@pytest.mark.parametrize(("number", "step"), [(2, 2), (3, 4), (4, 4)])
def test_no_space_left_for_a_checkpoint(
    tmp_path: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str], number: int, step: int
) -> None:
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        full_at(patch, number)
        line = fault(capsys, "pretrain", *SMALL, HERE, "--folder", run)
    kept = "that of step 2 is complete" if step == 4 else "there is none before it"
    assert line == (
        f"{run}: the checkpoint of step {step} is not written: No space left on device; {kept}; "
        "mend it and run the same command again"
    )
    first = {name: data for name, data in saved(undisturbed).items() if name.startswith("step-00000002/")}
    assert saved(run) == (first if step == 4 else {})
    main(["pretrain", *SMALL, "--folder", str(run)])
    assert f"{run}: from {'step 2' if step == 4 else 'the start'}" in capsys.readouterr().out
    assert whole(run) == whole(undisturbed)


def test_no_space_left_for_a_number(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    log: Callable[..., None] = metrics.Metrics.log

    def full(self: metrics.Metrics, step: int, values: dict[str, float]) -> None:
        if step == 4:
            self._file.write('{"step": 4, "lo')  # all that there was room for
            self._file.close()
            self._file = open("/dev/full", "w")  # noqa: SIM115 -- closed by Metrics
        log(self, step, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.Metrics, "log", full)
        line = fault(capsys, "pretrain", *SMALL, "--folder", run)
    assert line.startswith(f"{run}/metrics.jsonl: cannot be written: No space left on device; mend it")
    main(["pretrain", *SMALL, "--folder", str(run)])
    assert whole(run) == whole(undisturbed)


FULL_DISK = """
import shutil, sys
from pathlib import Path
from mrp.cli import main
words, disk, out = {words!r}, Path({disk!r}), {out!r}
(disk / "ballast").write_bytes(bytes(disk_size := 1 << 20)[: disk_size - {room}])
try:
    main(words)
except SystemExit as error:
    print("exit code", error.code, flush=True)
print(*sorted(path.name for path in disk.glob("run/checkpoints/step-*")), flush=True)
(disk / "ballast").unlink()
main(words)
shutil.copytree(disk / "run", out)
"""
MOUNT = 'mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" -c "$3"'
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]  # what is mounted in it is seen nowhere else


def may_mount() -> bool:
    command = [*NAMESPACE, "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="may not mount a disk of its own; the tests above simulate a full one")
def test_a_disk_that_is_really_full(tmp_path: Path, undisturbed: Path) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    checkpoints = sum(len(data) for data, _ in contents(undisturbed / "checkpoints").values())
    words = ["pretrain", *SMALL, "--folder", str(disk / "run")]
    code = FULL_DISK.format(words=words, disk=str(disk), out=str(out), room=checkpoints // 2)  # of three, one fits
    command = [*NAMESPACE, "sh", "-c", MOUNT, "sh", str(disk), sys.executable, code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"mrp: error: {disk}/run: the checkpoint of step 4 is not written: No space left on")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "exit code 2\nstep-00000002\n" in done.stdout
    assert whole(out) == whole(undisturbed)


# A method of one's own

OWN = """
from typing import Literal
from pydantic import Field
from mrp.batch import Batch, Output
from mrp.config import Node
from mrp import Objective as Base

class Config(Node):
    name: Literal["own"] = "own"
    target: float = Field(0.5, ge=0)

class Objective(Base):
    def __init__(self, config, backbone):
        super().__init__(backbone)
        self.config = config

    def forward(self, batch: Batch) -> Output:
        loss = (self.features(batch) - self.config.target).square().mean()
        return Output(loss, metrics={"loss": loss.detach()})
"""


def test_an_objective_by_its_path_is_trained_and_resumed(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "own.py").write_text(OWN)
    own = ["pretrain", *SMALL, "objective.name=./own.py", "objective.target=0.25"]
    own = [word for word in own if not word.startswith("objective.decoder")]
    main([*own, "--folder", "undisturbed"])
    with pytest.MonkeyPatch.context() as patch:
        full_at(patch, 3)
        fault(capsys, *own, HERE, "--folder", "run")
    assert json.loads((place / "run/checkpoints/step-00000002/state.json").read_text())["step"] == 2
    main([*own, "--folder", "run"])
    assert "run: from step 2" in capsys.readouterr().out
    assert whole(place / "run") == whole(place / "undisturbed")
    assert load(place / "run/config.yaml").objective.target == 0.25  # type: ignore[attr-defined]
    line = fault(capsys, *own, "objective.targt=1", "--folder", "other")
    assert line == "the command line: objective.targt: unknown key; did you mean 'target'?"
    line = fault(capsys, *own, "objective.target=-1", "--folder", "other")
    assert line == "the command line: objective.target: -1 was given; allowed: greater than or equal to 0"


# In processes of its own


def test_one_process_as_a_user_starts_it(place: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mrp", "pretrain", *SMALL, "data.train=void"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 2
    assert done.stderr == (
        "mrp: error: void: holds no images; files that count end in "
        ".jpg, .jpeg, .png, .webp, .bmp, .tif, .tiff, .ppm, .pgm, .gif\n"
    )
    assert done.stdout == ""


def second_half(images: int, batch: int) -> int:
    """A sample that the second of two processes takes of the first batch."""
    return int(Order(images, batch, seed=0).slots(0).samples[-1])


@pytest.mark.parametrize("case", ["every", "first", "second"])
def test_two_processes_end_with_one_line(place: Path, images: Path, finished: Path, case: str) -> None:
    """Whether every process meets the fault, or the first alone, or only the second."""
    bad = images / f"{second_half(NUM_IMAGES, 16):02}.png"
    damage(bad)
    before = contents(finished)
    words, expected = {
        "every": (["batch=9"], "batch: 9 is not a multiple of the 2 processes; the nearest that is: 8\n"),
        "first": (["seed=1", "--folder", str(finished)], f"{finished}: this run was made with seed = 0, not 1; "),
        "second": ([f"data.train={images}", "data.test=null"], f"{bad}: damaged image"),
    }[case]
    done = mrp(["pretrain", *SMALL, *words, "--processes", "2"], place)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"mrp: error: {expected}"), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    after = contents(finished)
    assert after == before
