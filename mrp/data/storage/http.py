"""Files on a web server that answers requests for ranges of bytes."""

from __future__ import annotations

import contextlib
import email.utils
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection, InvalidURL
from typing import Any

from mrp.data.storage.store import STALL, RefusedError, StorageError, Store, TemporaryError, retry

_BUSY, _REFUSED = (408, 425, 429, 500, 502, 503, 504), (401, 403)
_CHUNK = 1 << 20
_SHOWN = "Authorization"
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)


class HttpStore(Store):
    """A folder on a web server, which is shown a token where one is given."""

    def __init__(self, base: str, deadline: float, token: str = "") -> None:
        self.base, self.deadline, self.token = base.rstrip("/"), deadline, token

    def where(self, name: str) -> str:
        """Returns the address."""
        return f"{self.base}/{urllib.parse.quote(name)}"

    def size(self, name: str) -> int:
        """Returns what the server says."""
        return retry(partial(_size, self.where(name), self.token), self.where(name), self.deadline)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Returns the bytes of an answer whose status, range, encoding and length are right."""
        if start == stop:
            return b""
        attempt = partial(_range, self.where(name), self.token, start, stop)
        return self.patiently(name, attempt)


def _size(address: str, token: str, until: float) -> int:
    with _request(address, token, "HEAD", {}, until) as answer:
        return _length(address, answer.headers.get("Content-Length", ""))


def size_and(header: str, address: str, token: str, until: float) -> tuple[int, str]:
    """Returns a file's size and a header of the answer, or of the first one that has it on the way to another server.

    The first byte is asked for: a server that sends requests on may have signed the new address for GET alone.
    """
    with _request(address, token, "GET", {"Range": "bytes=0-0"}, until) as answer:
        found = [headers[header] for headers in answer.passed if headers[header]]
        return _length(address, answer.headers.get("Content-Range", "").rpartition("/")[2]), found[0] if found else ""


def _length(address: str, text: str) -> int:
    if not _LENGTH.fullmatch(text.strip()):
        raise StorageError(f"{address}: the server does not say how long it is; use another")
    return int(text)


def _range(address: str, token: str, start: int, stop: int, until: float) -> bytes:
    with _request(address, token, "GET", {"Range": f"bytes={start}-{stop - 1}"}, until) as answer:
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise StorageError(
                f"{address}: the server sends it compressed ({encoding}); switch that off for these files"
            )
        if answer.status != 206:
            raise StorageError(
                f"{address}: the server ignores ranges (status {answer.status}); use one that knows them"
            )
        given = answer.headers.get("Content-Range", "")
        if given.partition("/")[0].strip() != f"bytes {start}-{stop - 1}":
            raise TemporaryError(f"the server sends '{given}' where bytes {start} to {stop - 1} were asked for")
        return _body(answer, stop - start, until)


def _body(answer: Any, size: int, until: float) -> bytes:
    parts, got = [], 0
    try:
        while got < size and (part := answer.read1(min(_CHUNK, size - got))):
            parts.append(part)
            got += len(part)
    except (HTTPException, OSError) as error:
        reason = f"the connection broke after {got} of {size} bytes ({error or type(error).__name__})"
        raise TemporaryError(_in_time(reason, until)) from None
    if got != size:
        raise TemporaryError(_in_time(f"cut short: {got} of {size} bytes came", until))
    return b"".join(parts)


def _in_time(reason: str, until: float) -> str:
    """Returns the reason for a fault, which at the deadline is that `_Connections.end` ended the connection."""
    return reason if time.monotonic() < until else "the answer did not come in time"


class _Connections:
    """What one request has open, over all its redirects, so that it can be ended at a deadline.

    A socket's timeout starts anew with each byte, and so does not end a server that sends few bytes for ever.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self._ended = False
        self.passed: list[Any] = []  # the headers of each answer

    def open(self, kind: type[HTTPConnection], host: str, **options: Any) -> HTTPConnection:
        """Returns a connection whose socket is remembered."""
        connection = kind(host, **options)
        connection._create_connection = self._connect  # type: ignore[attr-defined]
        return connection

    def _connect(self, *args: Any) -> socket.socket:
        created = socket.create_connection(*args)
        self._sockets.append(created.dup())  # for TLS takes the descriptor of the first
        if self._ended:  # while the name was looked up
            self.end()
        return created

    def end(self) -> None:
        """Makes whoever waits for a byte see the end of the answer, also of one that is opened later."""
        self._ended = True
        for created in self._sockets:
            with contextlib.suppress(OSError):
                created.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for created in self._sockets:
            created.close()


class _Http(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens both kinds of web addresses on connections that can be ended."""

    def __init__(self, connections: _Connections) -> None:
        super().__init__()
        self._connections = connections

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(partial(self._connections.open, HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> Any:
        connect = partial(self._connections.open, HTTPSConnection)
        return self.do_open(connect, req, context=self._context)  # type: ignore[attr-defined]

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        """Remembers what an answer says before it is followed."""
        self._connections.passed.append(response.headers)
        return response

    https_response = http_response


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Shows the token to the server that it was meant for, and to no other that a request is sent on to."""

    def redirect_request(self, req: urllib.request.Request, *answer: Any) -> urllib.request.Request | None:
        following = super().redirect_request(req, *answer)
        token = req.unredirected_hdrs.get(_SHOWN)
        if following is not None and token and _server(following.full_url) == _server(req.full_url):
            following.add_unredirected_header(_SHOWN, token)
        return following


def _server(address: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(address)
    return parts.scheme, parts.netloc


@contextlib.contextmanager
def _request(address: str, token: str, method: str, headers: dict[str, str], until: float) -> Iterator[Any]:
    """Hand over the answer to a request, which is ended at `until` whatever the server does."""
    headers |= {"Accept-Encoding": "identity", "User-Agent": "mrp"}
    connections = _Connections()
    timer = threading.Timer(max(0.0, until - time.monotonic()), connections.end)
    timer.daemon = True
    timer.start()
    try:
        with _open(_opener(connections), address, token, method, headers, until) as answer:
            if time.monotonic() >= until:  # headers that were ended look as if they were complete
                raise TemporaryError(_in_time("", until))
            answer.passed = connections.passed
            yield answer
    finally:
        timer.cancel()
        connections.close()


def _opener(connections: _Connections) -> urllib.request.OpenerDirector:
    """Web addresses only: no handler for files, FTP or data."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), _Http(connections), urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(), _Redirects(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener


def _open(
    opener: urllib.request.OpenerDirector, address: str, token: str, method: str, headers: dict[str, str], until: float
) -> Any:
    try:
        request = urllib.request.Request(address, headers=headers, method=method)  # noqa: S310 -- see _opener
        if token:
            request.add_unredirected_header(_SHOWN, f"Bearer {token}")
        return opener.open(request, timeout=min(STALL, max(until - time.monotonic(), 0.1)))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _BUSY:
            message = f"the server answers {error.code} ({error.reason})"
            raise TemporaryError(message, _retry_after(error.headers.get("Retry-After", ""))) from None
        if 300 <= error.code < 400:
            raise StorageError(
                f"{address}: the server sends the request on without end, or to no web address (status {error.code}); "
                "check the address"
            ) from None
        kind = RefusedError if error.code in _REFUSED else StorageError
        raise kind(
            f"{address}: the server answers {error.code} ({error.reason}); check the address and the right to read"
        ) from None
    except (InvalidURL, ValueError) as error:
        raise StorageError(f"{address}: is no web address ({error}); check it") from None
    except (urllib.error.URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise TemporaryError(_in_time(f"cannot be reached: {reason or type(error).__name__}", until)) from None


def _retry_after(text: str) -> float:
    """Returns the seconds that a server asks to wait, given as a number or as a date; 0 if it does not say so."""
    if _LENGTH.fullmatch(text.strip()):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0
