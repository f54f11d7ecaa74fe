"""A web server of files that knows ranges, and that can be told to fail in all the ways servers do."""

from __future__ import annotations

import gzip
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class Server:
    """Serves a folder at `url`; each request for bytes takes one of `faults`; `always` is for all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[str] = []
        self.always = ""
        self.often = 0.0  # share of requests that fail in a passing way
        self.length: str | None = None  # what is said of a file's length, in place of the truth
        self.seen: Counter[str] = Counter()
        self.shown: set[str | None] = set()  # the tokens that came with requests
        self.headers: dict[str, str] = {}  # of every answer
        self.elsewhere = ""  # another server, to which requests for shards are sent on
        self._random = random.Random(0)
        self._lock = threading.Lock()
        self.closed = threading.Event()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def next_fault(self) -> str:
        with self._lock:
            if self.faults:
                return self.faults.pop(0)
            if self._random.random() < self.often:
                return self._random.choice(["500", "503", "cut", "drop"])
            return self.always


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def end_headers(self) -> None:
            for header in server.headers.items():
                self.send_header(*header)
            super().end_headers()

        def do_HEAD(self) -> None:
            path = server.folder / unquote(self.path.partition("?")[0]).lstrip("/")
            if not path.is_file():
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", server.length or str(path.stat().st_size))
            self.send_header("ETag", '"same"')  # object stores say this and the next
            self.send_header("Last-Modified", self.date_time_string(0))
            self.end_headers()

        def do_GET(self) -> None:
            path = server.folder / unquote(self.path.partition("?")[0]).lstrip("/")
            server.seen[path.name] += 1
            server.shown.add(self.headers.get("Authorization"))
            if server.elsewhere and path.suffix == ".tar":
                self.send_response(302)
                self.send_header("Location", f"{server.elsewhere}/{path.name}")
                return self.end_headers()
            fault = server.next_fault()
            if not path.is_file() or fault == "404":
                return self.send_error(404)
            if fault in ("drip", "continue"):  # bytes for ever, and never an answer
                piece = b"HTTP/1.1 100 Continue\r\n\r\n" if fault == "continue" else b"HTTP/1.1 206 OK\r\nX: "
                while not server.closed.wait(0.02):
                    self.wfile.write(piece)
                    piece = piece if fault == "continue" else b"x"
                return None
            if fault in ("later", "circle"):
                self.send_response(503 if fault == "later" else 302)
                self.send_header(*(("Retry-After", "7") if fault == "later" else ("Location", self.path)))
                return self.end_headers()
            if fault.isdigit():
                return self.send_error(int(fault))
            if fault == "drop":
                return self.connection.close()
            content = path.read_bytes()
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            start, stop = (int(found[1]), int(found[2]) + 1) if found else (0, len(content))
            body = content[start:stop]
            if fault == "flip":
                body = bytes([body[0] ^ 1]) + body[1:]
            self.send_response(200 if fault == "ignored" or not found else 206)
            if fault == "gzip":
                body = gzip.compress(body)
                self.send_header("Content-Encoding", "gzip")
            shift = 1 if fault == "shifted" else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{stop - 1 + shift}/{len(content)}")
            body = content if fault == "ignored" else body
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"same"')
            self.send_header("Last-Modified", self.date_time_string(0))
            self.end_headers()
            if fault == "cut":
                body = body[: len(body) // 2]
            if fault == "stall":
                self.wfile.write(body[:1])
                self.wfile.flush()
                server.closed.wait()
                return None
            self.wfile.write(body)
            return None

    return Handler


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closed.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()
