"""Tar headers, read strictly: a cut or a flipped bit is an error that names the position, never an early end.

Python's tarfile and most readers take a damaged header for the end of the archive, and the rest is silently lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_BLOCK = 512
_FILE, _FOLDER, _LONG_NAME, _PAX, _PAX_GLOBAL, _SPARSE = (b"0", b"\0"), b"5", b"L", b"x", b"g", b"S"
_GNU_SPARSE = "GNU.sparse."  # how the keys begin by which GNU tar marks a file stored without its zeros
_NAME_LIMIT = 1 << 20  # bytes of an extended header
_OCTAL, _DECIMAL = re.compile(rb" *([0-7]*)[ \0]*"), re.compile(r"[0-9]{1,18}", re.ASCII)
_LENGTH = re.compile(rb"([0-9]{1,7}) ")

Read = Callable[[int, int], bytes]  # number of bytes, position -> the bytes, fewer only at the end of the file


class TarError(ValueError):
    """A tar that is damaged, cut short, or holds what no shard may hold."""


class Member(NamedTuple):
    """A regular file of a tar."""

    name: str
    offset: int  # of its data
    size: int


def members(read: Read, size: int, start: int = 0) -> Iterator[Member]:
    """Yields every regular file between two positions, in order, each header checked by its sum."""
    end, offset, long_name, extended = start + size, start, None, dict[str, str]()
    while True:
        header = read(_BLOCK, offset) if offset < end else b""
        if len(header) < _BLOCK:
            raise TarError(f"cut short at byte {offset}: the end mark is missing")
        if not header.strip(b"\0"):
            _check_end(read, offset, end)
            return
        name, length, kind = _fields(header, offset)
        special = kind in (_LONG_NAME, _PAX, _PAX_GLOBAL)  # it speaks of the member that follows
        if "size" in extended and not special:
            if not _DECIMAL.fullmatch(extended["size"]):
                raise TarError(f"the header at byte {offset} has no readable size")
            length = int(extended["size"])
        data = offset + _BLOCK
        offset = data + -(-length // _BLOCK) * _BLOCK
        if offset > end:
            raise TarError(f"cut short: '{name}' at byte {data} has {length} bytes, and the file ends before them")
        if special:
            if length > _NAME_LIMIT:
                raise TarError(f"an extended header of {length} bytes at byte {data}")
            if kind == _LONG_NAME:
                long_name = read(length, data).rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind == _PAX:
                extended = _pax(read(length, data), data)
            else:
                _check_global(_pax(read(length, data), data), data)
            continue
        name = extended.get("path", long_name or name)
        if kind == _SPARSE or any(key.startswith(_GNU_SPARSE) for key in extended):
            name = extended.get(f"{_GNU_SPARSE}name", name)
            raise TarError(f"'{name}' at byte {data} is stored as a sparse file; make the tar without --sparse")
        long_name, extended = None, {}
        if kind in _FILE:
            yield Member(name, data, length)
        elif kind != _FOLDER:
            raise TarError(f"'{name}' at byte {data} is a link or a device (type {kind!r}); shards hold files only")


def _check_end(read: Read, offset: int, end: int) -> None:
    """Refuses anything but zeros after the end mark: a header that was zeroed is not the end."""
    if (end - offset) % _BLOCK:
        raise TarError(f"cut short at byte {end}, inside its end mark")
    while offset < end:
        block = read(min(1 << 20, end - offset), offset)
        if not block or block.strip(b"\0"):
            raise TarError(f"an end mark at byte {offset} with data after it: a header was zeroed, or two tars joined")
        offset += len(block)


def _fields(header: bytes, offset: int) -> tuple[str, int, bytes]:
    if _octal(header[148:156]) != sum(header[:148]) + 8 * 32 + sum(header[156:]):
        raise TarError(f"the header at byte {offset} is damaged: its sum does not fit")
    name = header[:100].split(b"\0", 1)[0]
    if header[257:262] == b"ustar" and header[345:346] != b"\0" and header[257:265] != b"ustar  \0":
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape"), _number(header[124:136], offset), header[156:157]


def _number(field: bytes, offset: int) -> int:
    """Returns an octal number, or GNU's binary one for eight gigabytes and more."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ~(0x80 << 88)
    if (number := _octal(field)) is None:
        raise TarError(f"the header at byte {offset} has no readable size")
    return number


def _octal(field: bytes) -> int | None:
    """Returns the number, where the field holds octal digits and nothing else."""
    match = _OCTAL.fullmatch(field)
    return int(match[1] or b"0", 8) if match else None


def _pax(data: bytes, offset: int) -> dict[str, str]:
    """Returns the records of a POSIX extended header: 'length key=value' lines."""
    records, at, end = {}, 0, len(data.rstrip(b"\0"))
    while at < end:
        length = _LENGTH.match(data, at)
        stop = at + int(length[1]) if length else 0
        if length is None or not length.end() < stop <= end or data[stop - 1] != ord("\n"):
            raise TarError(f"the extended header at byte {offset} is damaged")
        key, _, value = data[length.end() : stop - 1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at = stop
    return records


def _check_global(records: dict[str, str], offset: int) -> None:
    """Refuses an extended header for all members that would change what they are; comments and times do not."""
    for key in records:
        if key in ("path", "size") or key.startswith(_GNU_SPARSE):
            raise TarError(f"the extended header at byte {offset} gives every member the same {key}")
