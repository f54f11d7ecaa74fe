"""Shards on the Hugging Face hub: one commit, a token that only the hub sees, and no network where all is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mrp.cli import main
from mrp.config import ConfigError
from mrp.data.manifest import parse
from mrp.data.open import open_source
from mrp.data.storage import http
from mrp.data.storage.hub import HubStore
from mrp.data.storage.store import StorageError, UnreachableError
from tests.data.test_damage import Open
from tests.servers import Server, serving

COMMIT = "0123456789" * 4
TOKEN = "hf_not-a-secret"


@pytest.fixture
def hub(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Has the shards as hf://datasets/me/mine/in, on its branch `main` and at one commit."""
    for revision in ("main", COMMIT):
        folder = tmp_path / "hub" / "datasets" / "me" / "mine" / "resolve" / revision
        folder.mkdir(parents=True)
        (folder / "in").symlink_to(made)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with serving(tmp_path / "hub") as server:
        server.headers["X-Repo-Commit"] = COMMIT
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_shards_are_indexed_at_a_commit_and_read_without_a_network(
    hub: Server, made: Path, tmp_path: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["shards", "index", "hf://datasets/me/mine/in/shard-{000000..000007}.tar", str(tmp_path / "out")])
    manifest = parse((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest.location == f"hf://datasets/me/mine@{COMMIT}/in"
    local = open_source(str(made), "train")
    source = opened(tmp_path / "out")
    assert [source.read(number) for number in range(60)] == [local.read(number) for number in range(60)]
    hub.always = "404"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = opened(tmp_path / "out")
    assert again.read(59) == local.read(59)
    source.cache.drop(source.cache.folder / manifest.shards[0].sha256)
    with pytest.raises(UnreachableError, match=r"shard-000000\.tar: is not in the cache, and HF_HUB_OFFLINE is set"):
        again.read(0)


def test_a_set_on_the_hub_is_opened_again_without_a_network(
    hub: Server, opened: Open, capsys: pytest.CaptureFixture[str]
) -> None:
    source = opened("hf://datasets/me/mine/in")
    sample = source.read(3)
    assert f"/resolve/{COMMIT}/in" in source.store.where("x"), "later requests are for the commit of the first answer"
    hub.always = "503"
    again = opened("hf://datasets/me/mine/in")
    assert (again.identity, again.read(3)) == (source.identity, sample)
    assert "503 (Service Unavailable), still after 10 seconds" in capsys.readouterr().err
    hub.always = "404"  # it answers: the set is gone
    with pytest.raises(StorageError, match=r"manifest\.json: the server answers 404"):
        opened("hf://datasets/me/mine/in")


def test_a_hub_out_of_reach_is_one_line_within_seconds(
    opened: Open, monkeypatch: pytest.MonkeyPatch, hub: Server
) -> None:
    waits = list[float]()

    def refuse(address: object, timeout: float, *_: object) -> None:
        waits.append(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(http.socket, "create_connection", refuse)
    with pytest.raises(ConfigError, match=r"manifest\.json: cannot be reached: timed out, still after 10 seconds") as e:
        opened("hf://datasets/me/mine/in")
    assert "\n" not in str(e.value)
    assert max(waits) <= 10, "a connection that is never answered is given up in time"


def test_the_token_is_shown_to_the_hub_alone(hub: Server, made: Path, opened: Open) -> None:
    with serving(made) as other:
        hub.elsewhere = other.url
        source = opened("hf://datasets/me/mine@main/in")
        assert source.read(0) == open_source(str(made), "train").read(0)
        assert hub.shown == {f"Bearer {TOKEN}"}
        assert other.seen["shard-000000.tar"] == 1
        assert other.shown == {None}


def test_the_token_goes_with_a_request_that_the_hub_sends_on_to_itself(hub: Server, made: Path) -> None:
    hub.elsewhere = f"{hub.url}/datasets/me/mine/resolve/main/in/index.bin?"
    store = HubStore("hf://datasets/me/mine/in", 20)
    assert store.read("shard-000000.tar", 0, 32) == (made / "index.bin").read_bytes()[:32]
    assert hub.shown == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("variable", ["HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME"])
def test_the_token_of_a_login_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / {"HF_TOKEN_PATH": "file", "HF_HOME": "token", "XDG_CACHE_HOME": "huggingface/token"}[variable]
    monkeypatch.setenv(variable, str(path if variable == "HF_TOKEN_PATH" else tmp_path))
    assert HubStore("hf://datasets/me/mine", 5).token == ""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{TOKEN}\n")
    assert HubStore("hf://datasets/me/mine", 5).token == TOKEN
    with monkeypatch.context() as patch:
        patch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
        assert HubStore("hf://datasets/me/mine", 5).token == ""
    path.write_text("two\nlines")
    with pytest.raises(ConfigError, match="holds characters that no token has") as error:
        HubStore("hf://datasets/me/mine", 5)
    assert "lines" not in str(error.value)


@pytest.mark.parametrize("address", ["hf://me/mine", "hf://datasets/mine", "hf://datasets/a/b@", "hf://models/a/b/c"])
def test_what_is_no_dataset_of_the_hub_is_one_line(address: str) -> None:
    with pytest.raises(ConfigError, match=r"is no dataset of the hub; write hf://datasets/OWNER/NAME"):
        HubStore(address, 5)


def test_a_pattern_of_shards_is_no_set(opened: Open) -> None:
    with pytest.raises(ConfigError, match=r"names shards and no set; 'mrp shards index hf://\S+ OUT' makes OUT one"):
        opened("hf://datasets/me/mine/a-{000..003}.tar")


def test_a_revision_may_have_a_name_with_slashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    store = HubStore("hf://datasets/me/mine@refs%2Fpr%2F1/a b", 5)
    assert store.where("x") == "https://huggingface.co/datasets/me/mine/resolve/refs%2Fpr%2F1/a%20b/x"
