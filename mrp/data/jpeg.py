"""What the markers of a JPEG say and its decoder does not: which way is up, and whether every scan is there."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from PIL import ExifTags, Image

_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers that no length follows
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # of any process; those three are tables
_PROGRESSIVE = {0xC2, 0xCA}
_END, _SCAN, _APP1 = 0xD9, 0xDA, 0xE1
_AFTER_SCAN = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # 0 and restarts belong to the scan's data
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


class _Segment(NamedTuple):
    marker: int
    content: bytes


def orientation(data: bytes) -> int:
    """Returns the orientation that EXIF gives, or else XMP, as Pillow reads them.

    Damaged ones are ignored, since the picture itself may be sound.
    """
    exif, xmp = b"", b""
    for marker, content in _segments(data):
        if marker == _SCAN:
            break
        if marker == _APP1 and content.startswith(_EXIF):
            exif += content.removeprefix(_EXIF)  # what is too long for one segment goes on in the next
        elif marker == _APP1 and content.startswith(_XMP):
            xmp = content
    if exif and (found := _in_exif(exif)):
        return found
    match = _IN_XMP.search(xmp)
    return turn(int(match[1])) if match else 1


def _in_exif(content: bytes) -> int:
    """Returns the orientation; 0 where there is none."""
    exif = Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exif.load(content)
            return turn(exif[ExifTags.Base.Orientation])
        except Exception:  # whatever Pillow's parser stumbles over
            return 0


def turn(value: Any) -> int:
    """Returns an orientation, or 1 for what is none."""
    return int(value) if value in range(1, 9) else 1


def frame(data: bytes) -> tuple[int, int, int]:
    """Returns width, height and the number of components of a JPEG whose header is sound."""
    content = next(content for marker, content in _segments(data) if marker in _FRAMES)
    return int.from_bytes(content[3:5]), int.from_bytes(content[1:3]), content[5]


def is_whole(data: bytes) -> bool:
    """Returns whether the scans bring every bit of every coefficient; a decoder shows what it has and says nothing.

    Where the first scan holds everything, as it does in most files, nothing after it is looked at.
    """
    lacking: dict[int, list[int]] = {}  # of each component's coefficients, how many low bits are still to come
    progressive = False
    for marker, content in _segments(data):
        if marker in _FRAMES:
            progressive = marker in _PROGRESSIVE
            lacking = {component: [64] * 64 for component in content[6 : 6 + 3 * content[5] : 3]}
        elif marker == _SCAN:
            ends = 1 + 2 * content[0]
            first, last, bits = content[ends : ends + 3] if progressive else (0, 63, 0)
            for component in content[1:ends:2]:
                lacking[component][first : last + 1] = [bits & 15] * (last + 1 - first)
            if not any(map(any, lacking.values())):
                return True
    return False


def _segments(data: bytes) -> Iterator[_Segment]:
    """Yields what follows each marker, also after the data of scans; any number of fill bytes may precede a marker."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and (marker := data[at + 1]) != _END:
        if marker == 0xFF:
            at += 1
        elif marker in _ALONE:
            at += 2
        else:
            stop = at + 2 + int.from_bytes(data[at + 2 : at + 4])
            yield _Segment(marker, data[at + 4 : stop])
            following = _AFTER_SCAN.search(data, stop) if marker == _SCAN else None
            at = following.start() if following else stop
