"""Writes `docs/verbs.md` and `docs/python.md`: the command line and the Python interface, from the code.

.venv/bin/python tools/reference.py
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mrp
from mrp import verbs
from mrp.cli import parser

DOCS = Path(__file__).resolve().parent.parent / "docs"
_VERBS = """# The command line

Every verb with its arguments, made by `make docs` from the code. `mrp VERB --help` prints the same. Options of a run
(`optim.lr=1e-3`) are words of the form `key=value`, and [configuration.md](configuration.md) lists them all. A mistake
is one line on stderr that says what is wrong, where, and what to do, with exit code 2;
[How a run ends](ending.md#exit-codes) lists the other codes.
"""
_PYTHON = """# The Python interface

Everything in `dir(mrp)`, made by `make docs` from the code. A user's mistake is raised as `mrp.config.ConfigError`, one
line that says what is wrong, where, and what to do. Names that are not on this page may change between versions.
[own-parts.md](own-parts.md) says what a method, a data source or an evaluator of your own builds on.
"""
_WIDE = 100  # of a call that is shown in one line


def verbs_page() -> str:
    """Returns the page of all verbs."""
    lines = [_VERBS]
    for action in parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, verb in action.choices.items():
                module = verbs.find(name)
                lines += [f"## `mrp {name}`", "", f"{module.HELP[0].upper()}{module.HELP[1:]}.", ""]
                lines += ["```text", module.EXAMPLE, "```", "", *_arguments(verb)]
                lines += [line for inner in verb._actions for line in _inner(f"mrp {name}", inner)]
    return _joined(lines)


def _inner(prefix: str, action: argparse.Action) -> Iterator[str]:
    """Yields the verbs inside a verb, such as `mrp shards build`."""
    if isinstance(action, argparse._SubParsersAction):
        helps = {choice.dest: choice.help for choice in action._choices_actions}
        for name, verb in action.choices.items():
            text = helps.get(name) or ""
            yield from (f"### `{prefix} {name}`", "", f"{text[:1].upper()}{text[1:]}." if text else "", "")
            yield from _arguments(verb)
            for inner in verb._actions:
                yield from _inner(f"{prefix} {name}", inner)


def _arguments(verb: argparse.ArgumentParser) -> list[str]:
    """Returns the table of a verb's arguments."""
    rows = []
    for action in verb._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else ""
        given = action.metavar or choices or (action.dest.upper() if action.option_strings else action.dest)
        given = given if isinstance(given, str) else " ".join(given)
        value = "" if action.nargs == 0 else given if action.option_strings else ""
        name = f"{', '.join(action.option_strings) or given} {value}".strip()
        if action.nargs in ("+", "*"):
            name += " ..."
        meaning = " ".join((action.help or "").replace("%(default)s", str(action.default)).split())
        cells = [cell.replace("|", "\\|") for cell in (f"`{name}`", meaning)]
        rows.append(f"| {' | '.join(cells)} |")
    return ["| Argument | Meaning |", "| --- | --- |", *rows, ""] if rows else []


def python_page() -> str:
    """Returns the page of the public names of `mrp`."""
    lines = [_PYTHON]
    for name in dir(mrp):
        if not name.startswith("__"):
            thing = getattr(mrp, name)
            lines += _class(name, thing) if inspect.isclass(thing) else _function(f"mrp.{name}", thing, "##")
    return _joined(lines)


def _class(name: str, kind: type) -> list[str]:
    lines = [f"## `mrp.{name}`", "", *_doc(kind)]
    if dataclasses.is_dataclass(kind):
        given = [f"`{field.name}: {field.type}`" for field in dataclasses.fields(kind)]
        lines += [f"Fields: {', '.join(given)}.", ""]
    for member, value in vars(kind).items():
        if member.startswith("_") or not (callable(value) or isinstance(value, property)):
            continue
        title = f"{name}.{member}"
        if isinstance(value, property):
            lines += [f"### `{title}`", "", *_doc(value)]
        else:
            lines += _function(title, value, "###")
    return lines


def _function(name: str, function: Callable[..., Any], level: str) -> list[str]:
    """Returns the title of a function, how it is called, and what it does."""
    signature = inspect.signature(function)
    plain = [value for value in signature.parameters.values() if value.name != "self"]
    # A postponed annotation is a text, which would be shown in quotation marks.
    given = [str(value).replace(repr(value.annotation), str(value.annotation)) for value in plain]
    result = "" if signature.return_annotation is signature.empty else f" -> {signature.return_annotation}"
    text = f"{name}({', '.join(given)}){result}"
    if len(text) > _WIDE:
        text = f"{name}(\n    " + ",\n    ".join(given) + f",\n){result}"
    return [f"{level} `{name}`", "", "```text", text, "```", "", *_doc(function)]


def _doc(thing: object) -> list[str]:
    return [inspect.cleandoc(thing.__doc__ or ""), ""]


def _joined(lines: list[str]) -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


PAGES = {DOCS / "verbs.md": verbs_page, DOCS / "python.md": python_page}

if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8")
        print(f"written to {path}")
