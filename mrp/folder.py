"""A run claims its folder before the first step, so that no other configuration or process ever writes into it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from mrp import locking, outside
from mrp.config import ConfigError, dump, nearest, writing
from mrp.environment import environment
from mrp.files import mapping_in, unfinished, write_atomically

CONFIG, IDENTITY, ENVIRONMENT = "config.yaml", "identity.json", "environment.json"
CLASSES = "classes.json"  # what a classifier's classes are called, for where its training data are not at hand
TIME = "%Y-%m-%dT%H:%M:%S%z"  # how the files of a run write a time
_NOT_WRITTEN = ("evaluate", "track.also")  # where they are empty, as `mrp.run.Run.resolved` has it
_FEW = 4  # options that are named one by one
_HISTORY = "history"  # in the identity: the changes that were allowed
_PATHS = ("train", "test", "classes", "source")
_ALWAYS_DIFFERENT = ("time", "step", "steps", "balance", "command", "changed", "end")


def claim(
    folder: Path,
    config: Mapping[str, Any],
    identity: Mapping[str, Any],
    allow: Sequence[str] = (),
    *,
    defaults: Mapping[str, Any] | None = None,
    begun: bool = True,
    step: int = 0,
    steps: int | None = None,
    processes: int = 1,
    balance: str | None = None,
    say: Callable[[str], object] = print,
) -> TextIO:
    """Writes this run's identity into its folder, or checks it against the one there; returns the lock, to be held.

    A difference is refused unless its key, or a section that holds it, is allowed; then it is recorded in a history. An
    option that the folder does not know yet counts as having had its default (`defaults`, dotted keys). A run that
    has not `begun`, since it has no checkpoint, has nothing to lose: it begins again with the other configuration.
    `balance` warns of batches that hold few classes.
    """
    new = flat(identity)
    claimant = _Claim(folder, new, defaults or {}, allow, begun, {*flat(config), *new, *_NOT_WRITTEN})
    claimant.read()  # before anything is written into a folder that is not ours
    lock = locking.take(folder)
    try:
        old = claimant.read()
        starts = starts_of(folder)
        changes = {key: [old.get(key), new.get(key)] for key in _differing(old, new)} if old else {}
        history = old.get(_HISTORY, []) if begun else []
        if changes and begun:
            history = [*history, {"time": now(), "step": step, "changes": changes}]
        kept = new | ({_HISTORY: history} if history else {})
        _write(folder / IDENTITY, json.dumps(kept, indent=1))  # first: it makes the folder ours
        _write(folder / CONFIG, dump(placed(config)))
        outside.keep(config, folder)
        start = {"time": now(), "step": step, "steps": steps, "processes": processes, "balance": balance}
        start |= environment()
        changed = _changed(starts[-1], start) if starts else {}
        _write(folder / ENVIRONMENT, json.dumps({"starts": [*starts, start | {"changed": changed}]}, indent=1))
        locking.sign(lock)
    except BaseException:
        lock.close()
        raise
    if changes and not begun:
        say(f"{folder}: has no checkpoint yet, so the run starts anew: {', '.join(changes)} changed")
    for key, (before, after) in changes.items() if begun else ():
        say(f"resume.allow: {key} was {before!r} and is {after!r} from step {step} on; {folder / IDENTITY} keeps both")
    for line in _warnings(changed):
        say(line)
    return lock


def placed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration with absolute paths of the data, since it is read again from other folders."""
    values = dict(config)
    if isinstance(values.get("data"), Mapping):
        data = values["data"] = _with_absolute_paths(values["data"])
        if isinstance(data.get("train"), list | tuple):
            data["train"] = [_with_absolute_paths(part) for part in data["train"]]
    return values


def _with_absolute_paths(section: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: _absolute(value) if key in _PATHS else value for key, value in section.items()}
    if isinstance(labels := found.get("labels"), Mapping):
        found["labels"] = {
            key: _absolute(value) if key in ("table", "test") else value for key, value in labels.items()
        }
    return found


def _absolute(value: Any) -> Any:
    """Returns the absolute path of a file or folder that exists, also in a source's section; others as they are."""
    if isinstance(value, Mapping) and "path" in value:
        return {key: _absolute(one) if key in ("path", "list") else one for key, one in value.items()}
    if isinstance(value, str) and "://" not in value and os.path.exists(path := os.path.expanduser(value)):
        return os.path.abspath(path)
    return value


def starts_of(folder: Path) -> list[dict[str, Any]]:
    """Returns the starts of this run until now; a damaged record counts as empty, since nothing depends on it."""
    starts = mapping_in(folder / ENVIRONMENT).get("starts")
    return starts if isinstance(starts, list) and all(isinstance(start, dict) for start in starts) else []


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns what differs between two starts, without what always differs."""
    old, new = flat(before), flat(now)
    names = (name for name in dict.fromkeys([*new, *old]) if name.split(".")[0] not in _ALWAYS_DIFFERENT)
    return {name: [old.get(name), new.get(name)] for name in names if old.get(name) != new.get(name)}


def _warnings(changed: Mapping[str, list[Any]]) -> list[str]:
    lines = []
    before, now = map(str, changed.get("packages.torch", ["", ""]))
    if before.split(".")[:2] != now.split(".")[:2]:
        lines += [f"warning: torch was {before} at the last start and is {now}: rounding may differ"]
    codes = changed.get("code", [None])
    if all(codes):
        before, now = (re.sub(r"^([0-9a-f]{12})[0-9a-f]+", r"\1", str(code)) for code in codes)
        lines += [f"warning: mrp's code was {before} at the last start and is {now}: what it computes may differ"]
    return lines


def now() -> str:
    """Returns the time."""
    return time.strftime(TIME)


class _Claim(NamedTuple):
    """A run that wants a folder, and what of it may differ from the run that the folder holds."""

    folder: Path
    new: Mapping[str, Any]
    defaults: Mapping[str, Any]
    allow: Sequence[str]
    begun: bool  # where it has not, everything may differ
    options: Collection[str]  # all that the run has, as dotted keys

    def read(self) -> dict[str, Any]:
        """Returns the identity that the folder holds; refuses another run, and a folder that is no run at all."""
        path = self.folder / IDENTITY
        if not self.folder.is_dir():
            return {}
        if not path.exists():
            if any(entry.name not in {locking.LOCK, unfinished(path).name} for entry in self.folder.iterdir()):
                raise ConfigError(
                    f"{self.folder}: is not empty and not a run of mrp; choose another folder with --folder FOLDER"
                )
            return {}
        try:
            old = with_defaults(json.loads(path.read_text(encoding="utf-8")), self.new, self.defaults)
            self._refuse_unknown(old)
            if self.begun:
                self._compare(old)
        except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError):
            raise ConfigError(f"{path}: is damaged, so this run cannot be recognised; use --folder FOLDER") from None
        return old

    def _refuse_unknown(self, old: Mapping[str, Any]) -> None:
        """Refuses to allow a change of what is no option, which would be misspelt."""
        options = {*self.options, *old}
        sections = {section for option in options for section in _ancestors(option)}
        for key in self.allow:  # the options of a section that is switched off (null) are not known
            if key not in options | sections and not options.intersection(_ancestors(key)):
                raise ConfigError(
                    f"resume.allow: {key} is neither an option nor a section{nearest(key, options | sections)}"
                )

    def _compare(self, old: Mapping[str, Any]) -> None:
        allowed = [f"{key}." for key in self.allow]
        others = [key for key in _differing(old, self.new) if not f"{key}.".startswith((*allowed,))]
        if others:
            other = _other(others[0], old.get(others[0]), self.new.get(others[0]))
            more = f" (and {len(others) - 1} more)" if others[1:] else ""
            named = others if len(others) <= _FEW else dict.fromkeys(key.partition(".")[0] for key in others)
            raise ConfigError(
                f"{self.folder}: this run was made with {other}{more}, start another run with --folder FOLDER, or go "
                f"on with the change: resume.allow=[{', '.join([*self.allow, *named])}]"
            )


def _other(key: str, before: Any, now: Any) -> str:
    """Returns what a run was made with in place of what it is asked for, and how to get that back."""
    if key != "data.content":
        return f"{key} = {before!r}, not {now!r}; restore that value"
    ids = f"{key} {str(before)[:12]}, not {str(now)[:12]}"
    return f"other training data ({ids}): samples or labels were added, removed, renamed or changed; bring those back"


def with_defaults(old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an old identity, completed by the defaults of options that did not exist when it was written.

    An option is new if the section that it stands in is known to the old identity (or is a new section itself) and the
    option is not. A section that the old run had switched off (null) is known, so that switching it on is a change.
    """
    sections = {""}.union(*(_ancestors(key) for key in old))
    completed = dict(old)
    for key in new.keys() - old.keys():
        unknown = [name for name in [*_ancestors(key), key] if name not in sections and name not in old]
        if not unknown:
            continue  # a section of the old run that is switched off
        parent = unknown[0].rpartition(".")[0]
        off_by_default = any(name in defaults for name in unknown if name != key)
        if parent in sections and key in defaults and not off_by_default:
            completed[key] = defaults[key]
    return completed


def _ancestors(key: str) -> list[str]:
    """Returns the sections that a dotted key stands in, the outermost first."""
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [key for key in dict.fromkeys([*new, *old]) if key != _HISTORY and old.get(key) != new.get(key)]


def recorded(folder: Path, key: str) -> Any:
    """Returns a value of the run that a folder holds; None where it holds none, or none of this key."""
    return mapping_in(folder / IDENTITY).get(key)


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Returns a tree as one dictionary with dotted keys."""
    if not isinstance(values, Mapping):
        return {prefix: list(values) if isinstance(values, tuple) else values}
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def _write(path: Path, text: str) -> None:
    with writing(path, "free some space, or use --folder FOLDER"):
        write_atomically(path, text)
