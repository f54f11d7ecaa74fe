"""Objects of Python that are data: handed over for a while, and named in the configuration meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

OBJECTS: dict[str, Any] = {}  # by the name in the configuration


@contextmanager
def handed_over(values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Gives the values of a configuration in which sections stand for the objects that are data; for this block."""
    before = dict(OBJECTS)
    values, data = dict(values), values.get("data")
    if _is_data(data):
        values |= {"data.train": _section(data), "data.test": None}
        del values["data"]
    elif isinstance(data, Mapping):
        values["data"] = {key: _section(one) if _is_data(one) else one for key, one in data.items()}
    for key in ("data.train", "data.test"):
        if _is_data(values.get(key)):
            values[key] = _section(values[key])
    try:
        yield values
    finally:
        OBJECTS.clear()
        OBJECTS.update(before)


def _is_data(value: Any) -> bool:
    """Returns whether a value holds samples by number, and is neither plain data of a configuration nor a path."""
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__getitem__") or not hasattr(value, "__len__"):
        return all(hasattr(value, name) for name in ("read", "identity", "__len__"))  # a source of mrp's kind
    return not (isinstance(value, list | tuple) and all(isinstance(one, Mapping) and "source" in one for one in value))


def _section(data: Any) -> dict[str, str]:
    name = f"{type(data).__name__}-{len(OBJECTS) + 1}"
    OBJECTS[name] = data
    return {"name": "python", "object": name}
