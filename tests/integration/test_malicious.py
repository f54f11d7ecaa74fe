"""A checkpoint from a stranger may fail to load, in one line, but nothing in it is ever executed."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mrp import api
from mrp.checkpoint import checkpoints, sealed
from mrp.cli import main
from mrp.config import ConfigError
from mrp.interop import official
from tests.trained import pretrained

SMALL = [
    "demo", "batch=16", "length=2 steps", "optim.warmup=0 steps", "backbone.depth=1", "backbone.width=16",
    "backbone.heads=2", "objective.decoder={width: 16, depth: 1, heads: 2}", "machine.workers=0",
    "data.fraction=0.2",
]  # fmt: skip
FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "config.yaml", "identity.json", "MANIFEST.json"]
BESIDE = [
    "model.pth",
    "model.pt",
    "pytorch_model.bin",
    ".metadata",
    "optimizer.pkl",
    "state.pkl",
    "average.safetensors",
]


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def payloads(mark: Path) -> dict[str, bytes]:
    saved = mark.with_name("payload.pth")
    torch.save({"model": Payload(mark)}, saved)
    found = {"pickle": pickle.dumps(Payload(mark)), "torch": saved.read_bytes()}
    saved.unlink()
    return found | {"yaml": f"!!python/object/apply:os.mkdir ['{mark}']\n".encode()}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return pretrained(tmp_path_factory.mktemp("honest") / "run", *SMALL)


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "run"))


def seal(folder: Path) -> None:
    """Make the manifest true again, as whoever forges a checkpoint can."""
    names = [path.name for path in sorted(folder.iterdir()) if path.name != sealed.MANIFEST]
    digests = {name: sealed._digest(folder / name) for name in names}
    (folder / sealed.MANIFEST).write_text(sealed._manifest(digests))


def readers(run: Path) -> dict[str, Callable[[], Any]]:
    """Everything that opens a checkpoint."""
    last = checkpoints.listed(run)[-1].folder
    longer = [word if not word.startswith("length") else "length=4 steps" for word in SMALL]
    return {
        "pretrain": lambda: main(["pretrain", *longer, "resume.allow=[length]", "--folder", str(run)]),
        "load": lambda: api.load(run),
        "load a checkpoint": lambda: api.load(last),
        "probe": lambda: main(["probe", str(run)]),
        "report": lambda: main(["report", str(run)]),
    }


def left(capsys: pytest.CaptureFixture[str], read: Callable[[], Any]) -> None:
    """It may work or be refused; a refusal is one line."""
    ended: BaseException | None = None
    try:
        read()
    except (ConfigError, SystemExit) as error:
        ended = error
    if isinstance(ended, ConfigError):
        assert "\n" not in str(ended)
    elif isinstance(ended, SystemExit):
        assert ended.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("mrp: warning: ")]
        assert len(lines) == 1
        assert lines[0].startswith("mrp: error: ")


@pytest.mark.parametrize("forged", ["unsealed", "sealed"])
@pytest.mark.parametrize("name", FILES)
def test_a_payload_in_a_file_is_never_executed(
    run: Path, honest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, forged: str
) -> None:
    mark = tmp_path / "executed"
    for kind, content in payloads(mark).items():
        for title in ("load", "load a checkpoint", *(["pretrain"] if kind == "torch" else [])):
            shutil.rmtree(run)
            shutil.copytree(honest, run)
            folder = checkpoints.listed(run)[-1].folder
            (folder / name).write_bytes(content)
            if forged == "sealed" and name != sealed.MANIFEST:
                seal(folder)
            left(capsys, readers(run)[title])
            assert not mark.exists(), title
        with contextlib.suppress(ConfigError):
            official.load(folder / name if (folder / name).exists() else folder.with_name(folder.name + ".bad") / name)
        assert not mark.exists()


@pytest.mark.parametrize("verb", ["probe", "report"])
def test_a_payload_for_those_who_look_at_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    mark = tmp_path / "executed"
    folder = checkpoints.listed(run)[-1].folder
    for content in payloads(mark).values():
        (folder / "model.safetensors").write_bytes(content)
        seal(folder)
        left(capsys, readers(run)[verb])
        assert not mark.exists()


def test_what_lies_beside_is_not_looked_at(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "executed"
    folder = checkpoints.listed(run)[-1].folder
    content = payloads(mark)["torch"]
    for place in (run, run / "checkpoints", folder):
        for name in BESIDE:
            (place / name).write_bytes(content)
    assert checkpoints.newest(run) == checkpoints.listed(run)[-1]
    for title, read in readers(run).items():
        left(capsys, read)
        assert not mark.exists(), title


def test_the_payloads_are_live(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    pickle.loads(payloads(mark)["pickle"])
    assert mark.is_dir()
