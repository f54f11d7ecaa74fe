"""One HTML page that needs nothing else: every text in it is escaped, and nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_EMPTY = ("img", "meta", "line", "path", "rect", "circle")  # elements without an end


class Markup(str):
    """Text that is HTML already; any other text is escaped before it comes into a page."""

    __slots__ = ()


def tag(name: str, /, *inside: object, **attributes: object) -> Markup:
    """Returns an element; `_` in the name of an attribute stands for `-`, and one that is None is left out."""
    named = ((key.strip("_").replace("_", "-"), value) for key, value in attributes.items())
    shown = "".join(f' {key}="{escape(str(value))}"' for key, value in named if value is not None)
    if name in _EMPTY and not inside:
        return Markup(f"<{name}{shown}/>")
    return Markup(f"<{name}{shown}>{join(inside)}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    """Returns parts one after another; None is nothing."""
    return Markup(
        "".join(part if isinstance(part, Markup) else escape(str(part)) for part in parts if part is not None)
    )


def table(header: Sequence[object], rows: Iterable[Sequence[object]], labels: int = 1) -> Markup:
    """Returns a table; its first columns are labels, the others numbers, which stand at the right."""
    head = tag("tr", *(
        tag("th", one, scope="col", class_=None if number < labels else "number") for number, one in enumerate(header)
    ))  # fmt: skip
    body = (tag("tr", *(_cell(number, cell, labels) for number, cell in enumerate(row))) for row in rows)
    return wide(tag("table", tag("thead", head), tag("tbody", *body)))


def _cell(number: int, inside: object, labels: int) -> Markup:
    if number == 0 and inside:
        return tag("th", inside, scope="row")
    return tag("td", inside, class_=None if number < labels else "number")


def wide(inside: object) -> Markup:
    """Returns what scrolls by itself where a screen is too narrow for it; the keyboard reaches it too."""
    return tag("div", inside, class_="wide", tabindex="0")


def folded(title: str, *inside: object) -> Markup:
    """Returns what is opened by its title."""
    return tag("details", tag("summary", title), *inside)


def picture(pixels: NDArray[np.uint8], alt: str, lossless: bool = False) -> Markup:
    """Returns an image (H W 3 or H W 4) as part of the page."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "WEBP", lossless=lossless, quality=80)
    source = f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
    height, width = pixels.shape[:2]
    return tag("img", src=source, alt=alt, width=width, height=height)


def page(title: str, body: Iterable[object], again: int | None = None) -> str:
    """Returns the whole page; with `again` a browser reads it anew after so many seconds.

    The policy in its head has a browser refuse whatever is not in the page itself, should any text get past escaping.
    """
    style, script = _file("page.css"), _file("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="refresh", content=again) if again else None,
        tag("title", title),
        tag("style", Markup(style)),
    )
    main = tag("body", tag("main", *body), tag("script", Markup(script)))
    return f"<!DOCTYPE html>\n{tag('html', head, main, lang='en')}\n"


@cache
def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def facts(pairs: Iterable[tuple[str, Any]]) -> Markup:
    """Returns names and what they are, as a list."""
    return tag("dl", *(join([tag("dt", name), tag("dd", value)]) for name, value in pairs))
