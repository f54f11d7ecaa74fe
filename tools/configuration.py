"""Writes `docs/configuration.md`, every option on one page, from the schema of the configuration and the recipes.

.venv/bin/python tools/configuration.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mrp.config import compose
from mrp.optimizers import OPTIMIZERS
from mrp.run import Run, find_recipe, recipes
from mrp.schedules import Schedule
from mrp.schema import Schema, recipe_schema, section_schema
from mrp.trackers import TRACKERS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
_HEAD = """# Configuration

Every option of a recipe, made by `make docs` from the code. A value is given in a recipe's file or on the command line
(`optim.lr=1e-3`); `mrp config RECIPE` prints the values of a recipe. `mrp config --schema` prints this page as a JSON
Schema for editors: where the first line of a recipe is `# yaml-language-server: $schema=FILE`, editors complete and
check the recipe.

A *duration* is a text such as `800 epochs`, `100 steps` or `1e6 samples`. Where a section is chosen by its `name`, the
name alone may stand for the section (`track: wandb`).

A recipe may name a `base:`, whose values it changes: sections merge, lists replace, and a section with another `name`
starts without the options of the old one. Values of the command line come last, and there `{}` empties a section
(`evaluate={}`). In Python such values are keywords:
`mrp.pretrain("demo", batch=64, optim={"lr": 1e-3})`.

A part can also be a file of one's own: `objective.name=./mine.py`, and likewise for `optim`, `track`, `data.train`,
`data.test`, `data.augment` and the keys of `evaluate`. While the file is loaded, it may import its neighbours in the
same folder. For `objective`, `optim` and `data.augment`, the code of the file and of its neighbours belongs to the
run's identity; comments and the path do not.
The run keeps a copy in `RUN/code/`, which `mrp.load`, `mrp probe` and the like use; the copy takes the place of the
original when the original is gone.
"""
_ON_SCHEDULES = """## A schedule

Where a number or a *schedule* is allowed, a section in the number's place says how it changes over the run:

```yaml
optim: {lr: {kind: wsd, value: 1.5e-4, warmup: 40 epochs, decay: 20 %}, per: 256}
optim: {weight_decay: {kind: cosine, value: 0.04, end: 0.4}}
objective: {teacher: {decay: {kind: linear, value: 0.996, end: 1}}}
objective: {mask_ratio: {kind: steps, value: 0.6, drops: [30 %, 60 %], factor: 1.1}}
```

The value of a schedule follows from the step and the run's length alone, so a resumed run goes on exactly. Another
`length` needs no other change where parts of the run are given in per cent. The metrics hold the value: `lr`,
`optim/weight_decay`, `objective/mask_ratio` and the like. A schedule of `optim.lr` takes the place of `warmup`,
`min_lr` and `drops`. With a schedule of `mask_ratio`, a step is compiled for each number of hidden patches, so the
schedule takes at most eight numbers: where there would be more, eight at even distances.
"""
_DEFAULTS = {"optim": OPTIMIZERS.default or "", "track": TRACKERS.default or ""}
_NAMED_OTHERWISE = ("backbone", "best")  # whose name does not choose other options
_TYPES = {"array": "list", "object": "section", "string": "text"}
_SCHEDULE = section_schema(Schedule)
_MOST_NAMED = 3  # recipes that set an option


def page() -> str:
    """Returns the page."""
    used: dict[tuple[str, str], list[str]] = {}
    for path in sorted(recipes().glob("*.yaml")):
        for key in _keys(compose(path, find=find_recipe).values):
            used.setdefault(key, []).append(path.stem)
    lines = [_HEAD]
    _add_section(recipe_schema(Run), "", "", used, lines, seen=[])
    lines += [_ON_SCHEDULES]
    _add_table(_SCHEDULE, "", "", used, lines)
    return "\n".join(lines).rstrip() + "\n"


def _add_section(
    schema: Schema, path: str, part: str, used: Mapping[tuple[str, str], list[str]], lines: list[str], seen: list[Any]
) -> None:
    """Adds the tables of a section and of those inside it; `part` is the method, or the like, it is for."""
    title = f"`{path}`{f' of {part}' if part else ''}" if path else "Top level"
    lines += [f"## {title}", ""]
    _add_table(schema, path, part, used, lines)
    for name, option in schema["properties"].items():
        key = f"{path}.{name}".lstrip(".")
        for section in option.get("anyOf", [option]):
            if section.get("properties") and "additionalProperties" in section and (key, section) not in seen:
                seen.append((key, section))
                names = section["properties"].get("name", {}).get("enum", [part])
                if section != _SCHEDULE:
                    _add_section(section, key, names[0], used, lines, seen)


def _add_table(
    schema: Schema, path: str, part: str, used: Mapping[tuple[str, str], list[str]], lines: list[str]
) -> None:
    """Adds one row for each option of a section."""
    lines += ["| Key | Type | Default | Meaning | Set by |", "| --- | --- | --- | --- | --- |"]
    for name, option in schema["properties"].items():
        key = f"{path}.{name}".lstrip(".")
        default = option.get("default")
        shown = "" if "default" not in option or isinstance(default, dict) else f"`{json.dumps(default)}`"
        recipes_ = _recipes(used.get((key, part), []))
        cells = (f"`{key}`", type_text(option), shown, option.get("description", ""), recipes_)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines.append("")


def type_text(option: Schema) -> str:
    """Returns what a value may be, in words."""
    if option == _SCHEDULE:
        return "schedule"
    if "anyOf" in option:
        return " or ".join(dict.fromkeys(type_text(choice) for choice in option["anyOf"]))
    if "enum" in option:
        return ", ".join(f"`{value}`" for value in option["enum"])
    kind = str(option["type"])
    kind = _TYPES.get(kind, kind)
    if kind == "list":
        return f"list of {option.get('maxItems', '')} {type_text(option['items'])}".replace("  ", " ")
    if "pattern" in option:
        return "share or duration" if "%" in option["pattern"] else "duration"
    signs = {"exclusiveMinimum": "> ", "minimum": "from ", "exclusiveMaximum": "< ", "maximum": "to "}
    bounds = [f"{sign}{option[bound]:g}" for bound, sign in signs.items() if bound in option]
    return " ".join([kind, *bounds])


def _keys(values: Mapping[str, Any], path: str = "", part: str = "") -> Iterator[tuple[str, str]]:
    """Yields the keys that a recipe sets, and the name of the part that they are options of."""
    for key, value in values.items():
        yield f"{path}{key}", part
        if isinstance(value, Mapping):
            default = part if path else _DEFAULTS.get(key, "")
            name = value.get("name", default) if key not in _NAMED_OTHERWISE else ""
            yield from _keys(value, f"{path}{key}.", name)


def _recipes(names: list[str]) -> str:
    if len(names) == len(list(recipes().glob("*.yaml"))):
        return "all"
    shown = [f"`{name}`" for name in names[:_MOST_NAMED]]
    return ", ".join(shown) if len(names) <= _MOST_NAMED else f"{shown[0]} and {len(names) - 1} others"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written to {PAGE}")
