"""An object store that fails in the ways servers do: tried again until the deadline, or one line."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mrp.data.storage.cloud import CloudStore
from mrp.data.storage.open import open_store
from mrp.data.storage.store import StorageError
from tests.data.conftest import SkippingClock
from tests.servers import Server, serving

pytest.importorskip("obstore", reason="the client of object stores is an extra: pip install 'mrp-vit[cloud]'")

KEY = "bm90IGEgc2VjcmV0"  # of Microsoft's form, and no secret


@pytest.fixture
def bucket(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Answers for s3://data/in, gs://data/in and az://data/in."""
    shutil.copytree(made, tmp_path / "served" / "data" / "in")
    with serving(tmp_path / "served") as server:
        google = {"gcs_base_url": server.url, "disable_oauth": True, "client_email": "", "private_key": ""}
        (tmp_path / "google.json").write_text(json.dumps({**google, "private_key_id": ""}))
        for name, value in {
            "AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": str(tmp_path / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
            "GOOGLE_SERVICE_ACCOUNT": str(tmp_path / "google.json"),
            "AZURE_STORAGE_ACCOUNT_NAME": "data", "AZURE_STORAGE_ACCOUNT_KEY": KEY, "AZURE_ENDPOINT": server.url,
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SkippingClock:
    clock = SkippingClock()
    monkeypatch.setattr("mrp.data.storage.store.time", clock)
    return clock


@pytest.mark.parametrize("scheme", ["s3", "gs", "gcs", "az"])
def test_each_kind_of_store_is_read(bucket: Server, made: Path, scheme: str) -> None:
    store = pickle.loads(pickle.dumps(open_store(f"{scheme}://data/in", 20)))
    content = (made / "index.bin").read_bytes()
    assert store.size("index.bin") == len(content)
    assert store.read("index.bin", 32, 96) == content[32:96]
    assert store.read("index.bin", 5, 5) == b""


@pytest.mark.parametrize("fault", ["500", "503", "429", "cut", "drop", "shifted", "later"])
def test_what_passes_is_tried_again(bucket: Server, clock: SkippingClock, fault: str) -> None:
    store = CloudStore("s3://data/in", 100)
    bucket.faults = [fault, fault]
    assert len(store.read("index.bin", 0, 32)) == 32
    assert not bucket.faults


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("404", "is not there; check the address"),
        ("403", "may not be read; check the credentials"),
        ("circle", "the store sends the request on; check the address, and the region"),
        ("ignored", "still after 5 seconds"),
        ("gzip", r"cut short: \d+ of 32 bytes came, still after 5 seconds"),
        ("500", "500 Internal Server Error.*, still after 5 seconds"),
        ("cut", "still after 5 seconds"),
        ("shifted", r"Requested 0\.\.32, got 1\.\.33, still after 5 seconds"),
    ],
)
def test_what_lasts_is_one_line(bucket: Server, clock: SkippingClock, fault: str, message: str) -> None:
    bucket.always = fault
    with pytest.raises(StorageError, match=rf"s3://data/in/index\.bin: .*{message}") as error:
        CloudStore("s3://data/in", 5).read("index.bin", 0, 32)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("fault", ["drip", "continue", "stall"])
def test_an_answer_that_never_ends_is_ended_at_the_deadline(bucket: Server, fault: str) -> None:
    store = CloudStore("s3://data/in", 0.5)
    bucket.always = fault
    with pytest.raises(StorageError, match=r"still after 0\.5 seconds"):
        store.read("index.bin", 0, 32)
    bucket.always = ""
    assert len(CloudStore("s3://data/in", 30).read("index.bin", 0, 32)) == 32


def test_lengths_that_are_none_are_one_line(bucket: Server, clock: SkippingClock) -> None:
    for length in ("-1", "1.5", "9" * 5000, "1, 1"):
        bucket.length = length
        with pytest.raises(StorageError, match="still after 5 seconds"):
            CloudStore("s3://data/in", 5).size("index.bin")


def test_credentials_come_from_a_profile_or_are_said_to_lack(
    bucket: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="there are no credentials; set AWS_ACCESS_KEY_ID and"):
        CloudStore("s3://data/in", 5).size("index.bin")
    (tmp_path / "file").write_text("[mine]\naws_access_key_id = a\naws_secret_access_key = b\n")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "file"))
        patch.setenv("AWS_PROFILE", "mine")
        assert CloudStore("s3://data/in", 5).size("index.bin") > 0
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert CloudStore("s3://data/in", 5).size("index.bin") > 0
