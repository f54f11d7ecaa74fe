"""The schema of recipes and the page of all options: what they say is what the code takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mrp.cli import main
from mrp.config import ConfigError, parse
from mrp.run import Run, load, recipes
from mrp.schema import recipe_schema
from tools.configuration import PAGE, page

SCHEMA = recipe_schema(Run)
TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float),
    "null": type(None),
}  # fmt: skip
BOUNDS = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
    "minLength": lambda value, bound: len(value) >= bound,
    "minItems": lambda value, bound: len(value) >= bound,
    "maxItems": lambda value, bound: len(value) <= bound,
    "pattern": lambda value, pattern: re.search(pattern, value) is not None,
    "enum": lambda value, allowed: value in allowed,
}
READ_ELSEWHERE = {"properties", "patternProperties", "additionalProperties", "items", "required", "anyOf", "type"}
NOTES = {"description", "default", "title", "$schema"}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is valid: as much of JSON Schema as ours uses; another keyword is an error here."""
    assert schema.keys() <= BOUNDS.keys() | READ_ELSEWHERE | NOTES, schema
    if "anyOf" in schema:
        return any(fits(value, choice) for choice in schema["anyOf"])
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind in ("integer", "number"))):
        return False
    if not all(check(value, schema[name]) for name, check in BOUNDS.items() if name in schema):
        return False
    if kind == "array":
        return all(fits(item, schema["items"]) for item in value)
    if kind != "object" or not all(key in value for key in schema.get("required", ())):
        return kind != "object"
    patterns = schema.get("patternProperties", {})
    for key, item in value.items():
        known = [schema.get("properties", {}).get(key), *(patterns[text] for text in patterns if re.search(text, key))]
        options = [option for option in known if option is not None]
        if not options and schema.get("additionalProperties") is False:
            return False
        if not all(fits(item, option) for option in options):
            return False
    return True


@pytest.mark.parametrize("path", sorted(recipes().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_fits_the_schema(path: Path) -> None:
    assert fits(parse(path.read_text(), str(path)), SCHEMA)


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("objective.mask_ratio=1.5", "objective: {name: mae, mask_ratio: 1.5}"),
        ("objective.mask_ration=0.5", "objective: {name: mae, mask_ration: 0.5}"),
        ("objective.decoder.width=a", "objective: {name: mae, decoder: {width: a}}"),
        ("objective.name=maee", "objective: {name: maee}"),
        ("optim.lr=fast", "optim: {lr: fast}"),
        ("optim.betas=[0.9]", "optim: {betas: [0.9]}"),
        ("batch=true", "batch: true"),
        ("batch=0", "batch: 0"),
        ("length=10", "length: 10"),
        ("length=ten epochs", "length: ten epochs"),
        ("machine.compile=maybe", "machine: {compile: maybe}"),
        ("track=wandbb", "track: wandbb"),
        ("data.augment=[]", "data: {augment: []}"),
        ("data.augment=[crop, blurr]", "data: {augment: [crop, blurr]}"),
        ("data.augment=[crop, {name: blur, chance: 2}]", "data: {augment: [crop, {name: blur, chance: 2}]}"),
        ("evaluate={validation: {every: 1 epoch}}", "evaluate: {validation: {every: 1 epoch}}"),
        ("precison=bf16", "precison: bf16"),
    ],
)
def test_what_the_code_refuses_the_schema_refuses(word: str, text: str) -> None:
    with pytest.raises(ConfigError):
        load("demo", [word])
    assert not fits(parse(text, "here"), SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        "base: demo\noptim: {lr: 1e-3}",
        "objective: {name: ./mine.py, radius: 3}",
        "track: wandb",
        "data: {mean: 0.5, std: [0.1, 0.2, 0.3], augment: resize, size: [8, 16]}",
        "data: {train: {name: folder, path: images}}",
        "data: {train: [{source: digits, weight: 1}]}",
        "data: {augment: [crop, {name: blur, chance: 0.5}, {name: ./mine.py, radius: 3}]}",
        "checkpoint: {best: loss, milestone: 10 epochs}",
        "objective: {uniformity: 0.01}",
        "evaluate: null\nvalidation: null",
        "evaluate: {knn: null, linear: {every: null}}",
        "init: runs/demo",
        "init: {from: runs/demo, weights: teacher}",
        "evaluate: {knn: {every: 10 epochs}, ./mine.py: {every: 1 epoch, radius: 3}}",
        "coupled_batch: null",
    ],
)
def test_what_the_code_takes_the_schema_takes(text: str) -> None:
    assert fits(parse(text, "here"), SCHEMA)


def options(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for choice in schema.get("anyOf", [schema]):
        for name, option in choice.get("properties", {}).items() if "additionalProperties" in choice else ():
            yield f"{path}{name}", option
            yield from options(option, f"{path}{name}.")


def test_every_option_is_described_beside_its_code() -> None:
    assert not [name for name, option in options(SCHEMA) if not option.get("description")], "add a comment to its line"
    words = dict(options(SCHEMA))
    assert words["machine.workers"]["description"] == (
        "Decoding processes per rank: 0 decodes in the training process; auto: its cores less one, at most 16."
    )
    assert words["guard.policy"]["description"].startswith("stop: the run ends with the weights before the step.")
    assert words["machine.micro_batch"]["default"] == "auto"
    assert len(words) > 150


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run 'make docs'"


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["config", "--schema"])
    assert json.loads(capsys.readouterr().out) == SCHEMA
    with pytest.raises(SystemExit):
        main(["config"])
    assert capsys.readouterr().err.startswith("mrp: error: a recipe is missing; give its name or file, or --schema")
