"""`mrp shards` from end to end: what is printed, what is written, and what is said when something is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrp.cli import main
from mrp.data.open import open_source
from tests.servers import serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(30):
        path = root / ("cat", "dog")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (30, 50, 3), np.uint8)).save(path)
    return root


def mrp(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    main(["shards", *map(str, words)])
    return capsys.readouterr().out


def error(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["shards", *map(str, words)])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("mrp: error: ")
    return err


@pytest.fixture
def built(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    text = mrp(capsys, "build", folder, tmp_path / "shards", "--shard-size", 8, "--workers", 1)
    assert text.startswith(f"{tmp_path / 'shards'}: 30 samples of 2 classes in 4 shards, ")
    assert re.search(r"mean \(0\.\d{4}, 0\.\d{4}, 0\.\d{4}\), std", text)
    return tmp_path / "shards"


def test_build_verify_stats_show(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mrp(capsys, "verify", built) == f"{built}: every byte is sound\n"
    assert mrp(capsys, "verify", built, "--sample", 5) == f"{built}: 5 samples are sound\n"
    text = mrp(capsys, "stats", built, "--all")
    assert "  33 to 64                  30  ####" in text
    assert "measured on 30 images: mean [0." in text
    mrp(capsys, "show", built, "--out", tmp_path / "page.png", "--count", 10)
    page = np.array(Image.open(tmp_path / "page.png"))
    assert page.shape[2] == 3
    assert page.shape[1] > 4 * 128
    assert page[4:132, 4:132].std() > 20


def test_verify_names_what_is_damaged(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source(str(built), "train")
    record = source.index[9]  # type: ignore[attr-defined]
    path = built / "shard-000001.tar"
    content = bytearray(path.read_bytes())
    content[int(record["offset"]) + 5] ^= 1
    path.write_bytes(content)
    assert f"damaged: sample 9 (byte {record['offset']})" in error(capsys, "verify", built)
    assert "sample 9" in error(capsys, "verify", built, "--sample", 30)
    path.unlink()
    (built / "shard-000002.tar").write_bytes(b"")
    with pytest.raises(SystemExit):
        main(["shards", "verify", str(built)])
    err = capsys.readouterr().err
    assert f"{path}: cannot be read: No such file or directory; put it back" in err
    assert "shard-000002.tar: has 0 bytes and not" in err
    (built / "index.bin").unlink()
    assert "index.bin: is missing" in error(capsys, "verify", built)


def test_classes_and_sizes_are_options(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.txt").write_text("dog\n")
    words = ("--classes", tmp_path / "list.txt", "--max-side", 25, "--quality", 80, "--workers", 1, "--keep-order")
    text = mrp(capsys, "build", folder, tmp_path / "dogs", *words)
    assert "15 samples of 1 classes in 1 shards" in text
    assert "encoded again: 15" in text
    assert open_source(str(tmp_path / "dogs"), "train").classes == ("dog",)


def test_shards_of_others_are_indexed_here_and_there(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = open_source(str(built), "train")
    with serving(built) as server:
        pattern = f"{server.url}/shard-{{000000..000003}}.tar"
        mrp(capsys, "index", pattern, tmp_path / "far", "--classes", _list(tmp_path))
        assert "give a folder for the manifest" in error(capsys, "index", pattern)
        assert "answers 404" in error(capsys, "index", f"{server.url}/shard-9.tar", tmp_path / "none")
    for name in ("manifest.json", "index.bin"):
        (built / name).unlink()
    text = mrp(capsys, "index", built, "--classes", _list(tmp_path))
    assert "30 samples of 2 classes in 4 shards" in text
    assert open_source(str(built), "train").identity == ours.identity
    assert open_source(str(tmp_path / "far"), "train").identity == ours.identity


def _list(folder: Path) -> Path:
    (folder / "names.txt").write_text("cat\ndog\n")
    return folder / "names.txt"


def test_mistakes_are_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in error(capsys, "build", tmp_path / "none", tmp_path / "out")
    assert "--quality: 101 was given" in error(capsys, "build", folder, tmp_path / "out", "--quality", 101)
    assert "holds no manifest.json" in error(capsys, "verify", folder)
    assert "holds no manifest.json, so it is no set of shards" in error(capsys, "stats", folder)
    for action in ("verify", "stats", "show"):
        assert f"{tmp_path / 'none'}: there is no such folder" in error(capsys, action, tmp_path / "none")
    assert "neither a folder nor a pattern" in error(capsys, "index", tmp_path / "none")
    assert "holds no shards" in error(capsys, "index", folder)
    assert "commands are not run" in error(capsys, "index", "pipe:cat x")
