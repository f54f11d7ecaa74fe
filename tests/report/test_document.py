"""One page that needs nothing else: escaped, closed to the network, and readable in both colour schemes."""

from __future__ import annotations

import base64
import hashlib
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mrp.report import document
from mrp.report.document import Markup, join, page, picture, table, tag

HOSTILE = "<img src=x onerror=alert(1)>\"'&"
FOLDER = Path(document.__file__).parent


class Elements(HTMLParser):
    """What a browser makes of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {key: value or "" for key, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_texts_are_escaped_everywhere_and_markup_is_not_escaped_twice() -> None:
    text = join([
        tag("p", HOSTILE, data_name=HOSTILE), table([HOSTILE], [[HOSTILE, HOSTILE]]), document.folded(HOSTILE, HOSTILE),
        document.facts([(HOSTILE, HOSTILE)]), picture(np.zeros((2, 2, 3), np.uint8), HOSTILE),
    ])  # fmt: skip
    parser = Elements()
    parser.feed(text)
    assert HOSTILE in {value for _, attributes in parser.found for value in attributes.values()}
    assert [attributes["src"][:5] for name, attributes in parser.found if name == "img"] == ["data:"]
    assert parser.texts.count(HOSTILE) == 8
    assert not any(key.startswith("on") for _, attributes in parser.found for key in attributes)
    assert tag("b", tag("i", "<")) == "<b><i>&lt;</i></b>"
    assert tag("b", None, class_=None) == "<b></b>"


def test_the_policy_names_what_the_page_holds_and_nothing_else() -> None:
    text = page(HOSTILE, [tag("h1", HOSTILE)])
    policy = unescape(re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[0])
    assert policy.startswith("default-src 'none'; img-src data:")
    for element in ("style", "script"):
        (content,) = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert " style=" not in text  # the policy would have a browser drop it
    assert 'http-equiv="refresh"' not in text
    assert '<meta http-equiv="refresh" content="30"/>' in page("", [], again=30)


def references(text: str) -> list[str]:
    """Everything in a page that a browser would fetch, or that leads elsewhere."""
    found = re.findall(r"""(?:src|href|action|data|poster|srcset)\s*=\s*["']?([^"'\s>]+)""", text)
    found += re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""", text)
    return [one for one in found if not one.startswith(("data:", "#"))]


def test_nothing_is_fetched() -> None:
    assert references('<a href="https://a.b"> url(http://c) @import "d.css"') == ["https://a.b", "http://c", "d.css"]
    assert references(page("t", [picture(np.zeros((2, 2, 3), np.uint8), "x")])) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_page(scheme: str) -> None:
    """WCAG: 4.5 for text, 3 for lines; a name beside a line is text in the line's colour."""
    css = (FOLDER / "page.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[scheme == "dark"]))
    assert {f"c{n}" for n in range(8)} | {"page", "text", "soft", "link", "panel", "warn"} <= colours.keys()
    pairs = [(name, "page") for name in ("text", "soft", "link", *(f"c{n}" for n in range(8)))]
    for name, behind in [*pairs, ("text", "panel"), ("soft", "panel"), ("warn", "warn-panel")]:
        assert contrast(colours[name], colours[behind]) >= 4.5, (name, behind)


def contrast(first: str, second: str) -> float:
    dark, light = sorted(luminance(one) for one in (first, second))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_pictures_are_part_of_the_page() -> None:
    text = picture(np.zeros((20, 30, 4), np.uint8), "six digits", lossless=True)
    assert text.startswith('<img src="data:image/webp;base64,')
    assert 'alt="six digits" width="30" height="20"' in text
    assert isinstance(text, Markup)
