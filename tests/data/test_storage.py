"""Whoever waits for storage that does not answer reads so within seconds, and until when."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mrp.config import ConfigError
from mrp.data.config import CacheConfig
from mrp.data.sources.shards import Config, Source
from mrp.data.storage import http, store
from mrp.data.storage.cache import Cache
from tests.servers import serving
from tests.waiting import LONG


def failing(times: int) -> list[str]:
    """Asks for something that fails so often in a passing way before it comes."""
    faults = ["refused"] * times

    def attempt(until: float) -> list[str]:
        if faults:
            raise store.TemporaryError(faults.pop())
        return faults

    return store.retry(attempt, "http://there/manifest.json", 300)


def test_faults_that_last_are_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(store.time, "sleep", lambda seconds: None)
    failing(1)
    assert capsys.readouterr().err == ""
    failing(9)
    said = capsys.readouterr().err
    assert re.fullmatch(r"mrp: http://there/manifest\.json: refused; trying until \d\d:\d\d:\d\d\n", said)


def test_of_several_processes_on_a_machine_one_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    failing(9)
    assert capsys.readouterr().err == ""


def test_a_server_that_says_nothing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said, waiting = list[str](), threading.Event()

    def say(what: str, until: float) -> None:
        said.append(what)
        waiting.set()

    class Silent(store.LocalStore):
        local = False

        def size(self, name: str) -> int:
            assert waiting.wait(LONG), "nothing was said"
            raise store.StorageError("and then it failed")

    monkeypatch.setattr(store, "_SILENCE", 0.01)
    monkeypatch.setattr(store, "_say", say)
    monkeypatch.setattr("mrp.data.sources.shards.open_store", lambda *_: Silent(tmp_path))
    with pytest.raises(ConfigError, match="and then it failed"):
        Source(Config(path="http://there"), "train", Cache(CacheConfig()))
    assert said == ["http://there: no answer yet"]


def test_silence_is_not_spoken_of_where_a_fault_was_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rings = list[Callable[[], None]]()

    class Timer:
        start = cancel = lambda self: None

        def __init__(self, seconds: float, ring: Callable[[], None]) -> None:
            rings.append(ring)

    monkeypatch.setattr(store.threading, "Timer", Timer)
    with store.announced("http://there", 300):
        store._say("http://there: refused", 0.0)
        rings[0]()
    assert capsys.readouterr().err.count("\n") == 1
    with store.announced("http://there", 300):
        rings[1]()
    assert "no answer yet" in capsys.readouterr().err


def test_a_refusal_may_be_over_soon_where_something_was_read_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of requests, or a signature that is made anew; at the start a right is missing, which no wait brings."""
    monkeypatch.setattr(store, "_FIRST_WAIT", 0.001)
    (tmp_path / "file").write_bytes(b"content")
    with serving(tmp_path) as server:
        files = http.HttpStore(server.url, 300.0)
        server.faults = ["403"]
        with pytest.raises(
            store.StorageError, match=r"file: the server answers 403 .*; check the address and the right"
        ):
            files.read("file", 0, 7)
        assert files.read("file", 0, 7) == b"content"
        server.faults = ["403", "401", "403"]
        assert files.read("file", 0, 7) == b"content"
        server.always = "403"
        files.deadline = 1.0
        with pytest.raises(
            store.StorageError,
            match=r"file: the server answers 403 .*; check the .* right to read, still after 1 seconds",
        ):
            files.read("file", 0, 7)
        with pytest.raises(store.RefusedError, match=r"right to read$"):  # what has lasted is believed from then on
            files.read("file", 0, 7)


def test_a_folder_of_images_is_no_set_of_shards(tmp_path: Path) -> None:
    (tmp_path / "0.png").touch()
    with pytest.raises(ConfigError, match=r"holds no manifest\.json, so it is no set of shards; 'mrp shards build"):
        Source(Config(path=str(tmp_path)), "train", Cache(CacheConfig()))


def test_a_connection_that_comes_after_the_deadline_is_ended_too() -> None:
    """Where looking the name up took all the time, and the server then sends few bytes for ever."""
    connections = http._Connections()
    connections.end()
    with socket.create_server(("127.0.0.1", 0)) as server, connections._connect(server.getsockname(), 5) as opened:
        assert opened.recv(1) == b""
    connections.close()


class Letters(store.Store):
    """A store whose files hold 100 times their name."""

    def where(self, name: str) -> str:
        return name

    def size(self, name: str) -> int:
        return 100

    def read(self, name: str, start: int, stop: int) -> bytes:
        return (100 * name.encode())[start:stop]


def test_a_full_cache_makes_room_and_keeps_its_locks(tmp_path: Path) -> None:
    """A lock that was removed while it is held is no lock: the next process makes another of its name."""
    cache = Cache(CacheConfig(folder=str(tmp_path)))
    cache.limit = 250
    for name in "abcab":
        cache.get(Letters(), name, hashlib.sha256(100 * name.encode()).hexdigest(), 100)
        time.sleep(0.01)  # so that the times of last use differ
    kept = [path.read_bytes()[:1] for path in sorted(tmp_path.iterdir()) if len(path.name) == 64]
    assert sorted(kept) == [b"a", b"b"]
    assert len(list(tmp_path.glob(".*.lock"))) == 4  # of three files, and of making room
