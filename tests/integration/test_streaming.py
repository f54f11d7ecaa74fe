"""Training from far away ends where training from the disk ends, bit for bit, whatever the servers do on the way."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrp.checkpoint import checkpoints
from mrp.data.open import open_source
from mrp.data.shardtool.build import Options, Plan, build
from tests.forked import launch
from tests.servers import serving

STEPS = 12
RECIPE = [
    "pretrain", "demo", "batch=16", f"length={STEPS} steps", "optim.warmup=2 steps", "backbone.depth=1",
    "backbone.width=32", "objective.decoder.depth=1", "objective.decoder.width=32", "track.every=1", "data.size=32",
    "data.channels=3", "data.test=null", "data.lanes=2", "data.window=2", "data.augment=crop", "machine.workers=0",
    "checkpoint.every=4 steps",
]  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety-six images in twelve shards, one of which is no image."""
    root = tmp_path_factory.mktemp("streaming")
    (root / "images").mkdir()
    generator = np.random.default_rng(0)
    for number in range(96):
        pixels = generator.integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number:02}.jpg")
    (root / "images" / "50.jpg").write_bytes(b"<html>not found</html>")
    plan = Plan(open_source(str(root / "images"), "train"), Options(shard_size=8), root / "shards")
    build(plan, 1, lambda done, total: None)
    return root / "shards"


def run(folder: Path, place: str, cache: Path, *more: str, processes: int = 2) -> Path:
    words = [*RECIPE, f"data.train={place}", f"machine.cache.folder={cache}", *more, "--folder", str(folder)]
    assert launch(processes, words) == 0
    return folder


def content(folder: Path) -> dict[str, bytes]:
    found = checkpoints.newest(folder)
    assert found is not None
    assert found.step == STEPS
    machines = {"config.yaml", "MANIFEST.json"}  # where the data and the cache lie is written there
    return {path.name: path.read_bytes() for path in found.folder.iterdir() if path.name not in machines}


@pytest.fixture(scope="module")
def local(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    return run(folder / "run", str(shards), folder / "unused")


def check_quarantine(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert ["not an image" in line["fault"] for line in lines] == [True]
    assert len(json.loads(content(folder)["state.json"])["data"]["quarantine"]) == 1


def without_place(files: dict[str, bytes]) -> dict[str, Any]:
    """The state names a bad sample by where it lies; all else is the same wherever that is."""
    state = json.loads(files["state.json"])
    state["data"]["quarantine"] = [[bad[0], bad[2]] for bad in state["data"]["quarantine"]]
    return {**files, "state.json": state}


@pytest.mark.slow
def test_local_shards_replace_the_same_bad_sample_after_a_resume(shards: Path, local: Path, tmp_path: Path) -> None:
    check_quarantine(local)
    shutil.copytree(local, tmp_path / "run")
    for folder in sorted((tmp_path / "run" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(folder)
    run(tmp_path / "run", str(shards), tmp_path)
    assert content(tmp_path / "run") == content(local)
    check_quarantine(tmp_path / "run")


@pytest.mark.slow
def test_a_web_server_full_of_faults(shards: Path, local: Path, tmp_path: Path) -> None:
    with serving(shards) as server:
        server.often = 0.3
        run(tmp_path / "run", server.url, tmp_path / "cache", "machine.workers=1")
        assert server.seen.total() > 14, "there were faults, and they were met"
    assert without_place(content(tmp_path / "run")) == without_place(content(local))


@pytest.mark.slow
def test_a_web_server_that_goes_away_stops_the_run_in_one_line(
    shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "copy").mkdir()
    for path in shards.iterdir():
        if path.name != "shard-000003.tar":
            (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    with serving(tmp_path / "copy") as server:
        words = [*RECIPE, f"data.train={server.url}", f"machine.cache.folder={tmp_path / 'cache'}"]
        assert launch(1, [*words, "--folder", str(tmp_path / "run")]) == 2
    assert "shard-000003.tar: the server answers 404" in capfd.readouterr().err


@pytest.fixture
def object_store(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """moto's S3 server over real HTTP with the shards, one answer in four a 503; the list grows with each of these."""
    boto3, server = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    pytest.importorskip("obstore")
    from werkzeug.serving import make_server

    for name, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    faults: list[int] = []
    requests = itertools.count()
    moto = server.DomainDispatcherApplication(server.create_backend_app)

    def application(environment: dict[str, Any], respond: Callable[..., Any]) -> Any:
        reading = environment["REQUEST_METHOD"] == "GET" and environment["PATH_INFO"].endswith(".tar")
        if reading and next(requests) % 4 == 1:
            faults.append(1)
            respond("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        return moto(environment, respond)

    http = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{http.server_port}")
        client = boto3.client("s3")
        client.create_bucket(Bucket="data")
        for path in shards.iterdir():
            client.put_object(Bucket="data", Key=f"in/shards/{path.name}", Body=path.read_bytes())
        client.close()
        yield faults
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_object_store(shards: Path, local: Path, object_store: list[int], tmp_path: Path) -> None:
    run(tmp_path / "run", "s3://data/in/shards", tmp_path / "cache")
    assert object_store, "there were faults"
    assert without_place(content(tmp_path / "run")) == without_place(content(local))
