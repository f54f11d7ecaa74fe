"""Composition, types and error text: what files and the command line say is what comes out, or one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from mrp.config import ConfigError, Duration, Node, Tree, build, compose, dump, nearest, parse
from mrp.folder import flat
from mrp.run import Run, load


class Optimizer(Node):
    lr: float = Field(gt=0)
    clip: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    fused: bool = True


class Machine(Node):
    compile: Literal["auto", "yes", "no"] = "auto"
    micro_batch: int | Literal["auto"] = "auto"
    name: str = "here"


class Settings(Node):
    optim: Optimizer
    batch: int
    length: Duration = Duration(1, "epochs")
    machine: Machine = Machine()
    size: int | tuple[int, int] = 8


WHOLE = "optim: {lr: 0.1}\nbatch: 8\n"
Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def settings(path: Path, *words: str) -> Settings:
    return build(Settings, compose(path, words))


def fault(function: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Numbers and words


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-1E5", -1e5),
        ("1.5e-4", 1.5e-4),
        (".5", 0.5),
        ("1.", 1.0),
        ("10", 10),
        ("-3", -3),
        ("1_000", 1000),
        ("true", True),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("e4", "e4"),
        (".", "."),
        ("v1e4", "v1e4"),
        ("'1e-4'", "1e-4"),
        ("[0.9, 1e-2]", [0.9, 1e-2]),
    ],
)
def test_a_word_is_read_as_yaml_1_2_reads_it(text: str, value: object) -> None:
    found = parse(text, "here")
    assert found == value
    assert type(found) is type(value)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
TREES = st.recursive(
    st.dictionaries(st.text(), LEAVES | st.lists(LEAVES)), lambda inner: st.dictionaries(st.text(), inner), max_leaves=8
)


@given(values=TREES)
def test_what_is_dumped_is_read_back_by_us_and_by_others(values: dict[str, Any]) -> None:
    text = dump(values)
    assert parse(text, "here") == values
    assert yaml.safe_load(text) == values


@given(word=st.from_regex(r"[-+.eE0-9_:xo]{1,6}|[a-zA-Z~]{1,5}", fullmatch=True))
def test_a_word_stays_a_word(word: str) -> None:
    assert parse(dump({"a": word}), "here") == {"a": word}


# Files


def test_a_base_is_found_beside_the_file_and_then_by_its_name(write: Write, tmp_path: Path) -> None:
    write("shared/first.yaml", "batch: 1\noptim: {lr: 1, clip: 1}\n")
    write("shared/second.yaml", "base: first.yaml\nbatch: 2\noptim: {clip: 2}\n")
    found = settings(write("own/third.yaml", "base: ../shared/second.yaml\noptim: {betas: [0, 0]}\n"))
    assert found == Settings(batch=2, optim=Optimizer(lr=1, clip=2, betas=(0, 0)))
    write("own/fourth.yaml", "base: second")
    named = compose("own/fourth", (), lambda name: tmp_path / f"{name if '/' in name else f'shared/{name}'}.yaml")
    assert named.values == {"batch": 2, "optim": {"lr": 1, "clip": 2}}


@pytest.mark.parametrize(
    ("base", "child", "merged"),
    [
        ("a: {x: 1, y: 2}", "a: {y: 3, z: 4}", {"a": {"x": 1, "y": 3, "z": 4}}),
        ("a: [1, 2]", "a: [3]", {"a": [3]}),
        ("a: {x: {p: 1}, y: 2}", "a: {x: {q: 2}}", {"a": {"x": {"p": 1, "q": 2}, "y": 2}}),
        ("a: {name: mae, x: 1}", "a: {name: simmim, y: 2}", {"a": {"name": "simmim", "y": 2}}),
        ("a: {name: mae, x: 1}", "a: {name: mae, y: 2}", {"a": {"name": "mae", "x": 1, "y": 2}}),
        ("a: {name: mae, x: 1}", "a: {y: 2}", {"a": {"name": "mae", "x": 1, "y": 2}}),
        ("a: {x: 1}", "a: {name: mae}", {"a": {"name": "mae"}}),
        ("a: wandb", "a: {mode: offline}", {"a": {"name": "wandb", "mode": "offline"}}),
        ("a: wandb", "a: {name: none}", {"a": {"name": "none"}}),
        ("a: {name: wandb, x: 1}", "a: none", {"a": "none"}),
        ("a: {x: 1}", "a: 5", {"a": 5}),
        ("a: 5", "a: {x: 1}", {"a": {"x": 1}}),
        ("a: {x: 1}", "a: null", {"a": None}),
        ("a: {x: 1}", "a: {}", {"a": {"x": 1}}),
        ("a: 1", "", {"a": 1}),
    ],
)
def test_merging(write: Write, base: str, child: str, merged: dict[str, Any]) -> None:
    write("base.yaml", base)
    tree = compose(write("child.yaml", f"base: base.yaml\n{child}"))
    assert tree.values == merged
    assert set(flat(merged)) - {""} <= set(tree.origins)


# A place holds a number everywhere or a section everywhere: then the order of merging cannot matter.
PLAIN = st.recursive(
    st.dictionaries(st.sampled_from("xyz"), st.integers(0, 9)),
    lambda inner: st.fixed_dictionaries({}, optional={"x": st.integers(0, 9), "p": inner, "q": inner}),
    max_leaves=6,
)


def merge(tmp_path: Path, *layers: dict[str, Any]) -> dict[str, Any]:
    """The layers composed by files, each on the one before it."""
    for index, layer in enumerate(layers):
        text = dump(layer | ({"base": f"{index - 1}.yaml"} if index else {}))
        (tmp_path / f"{index}.yaml").write_text(text)
    return compose(tmp_path / f"{len(layers) - 1}.yaml").values


@examples(max_examples=30)
@given(one=PLAIN, two=PLAIN, three=PLAIN)
def test_merging_plain_sections_is_associative(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, Any], two: dict[str, Any], three: dict[str, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    at_once = merge(folder, one, two, three)
    assert merge(folder, merge(folder, one, two), three) == at_once
    assert merge(folder, one, merge(folder, two, three)) == at_once
    assert merge(folder, one, one) == one
    assert flat(at_once) == flat(one) | flat(two) | flat(three)


@given(
    words=st.lists(st.tuples(st.sampled_from(["batch", "optim.lr", "optim.clip", "machine.name"]), st.integers(1, 99)))
)
def test_the_last_word_wins(tmp_path_factory: pytest.TempPathFactory, words: list[tuple[str, int]]) -> None:
    path = tmp_path_factory.getbasetemp() / "whole.yaml"
    path.write_text(WHOLE)
    tree = compose(path, [f"{key}={value}" for key, value in words])
    last = dict(words)
    assert flat(tree.values) == {"optim.lr": 0.1, "batch": 8} | last
    for key in ("batch", "optim.lr", *last):
        assert tree.origins[key] == ("the command line" if key in last else str(path))


def test_each_value_knows_where_it_was_written(write: Write) -> None:
    base = write("base.yaml", WHOLE)
    child = write("child.yaml", "base: base.yaml\noptim: {lr: fast}\n")
    assert fault(settings, child).startswith(f"{child}: optim.lr: 'fast' was given")
    assert fault(settings, child, "optim.lr=1", "batch=x").startswith("the command line: batch: 'x' was given")
    base.write_text("optim: {lr: 1}\nbatch: many\n")
    assert fault(settings, child, "optim.lr=1").startswith(f"{base}: batch: 'many' was given")
    base.write_text("optim: {lr: 1}")
    assert fault(settings, child, "optim.lr=1") == f"{child}: batch: this key is required and missing; add it"


# What a wrong value is answered with


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("bacth=8", ["bacth: unknown key; did you mean 'batch'?"]),
        ("zzz=8", ["zzz: unknown key; the top level has: optim, batch, length, machine, size"]),
        ("optim.clipp=1", ["optim.clipp: unknown key; did you mean 'clip'?"]),
        ("optim.zzz=1", ["optim.zzz: unknown key; optim has: lr, clip, betas, fused"]),
        ("optim.lr=abc", ["optim.lr: 'abc' was given; allowed: number"]),
        ("optim.lr=0", ["optim.lr: 0 was given; allowed: greater than 0"]),
        ("optim.lr=.nan", ["optim.lr: nan was given; allowed: finite number"]),
        ("optim.lr=", ["optim.lr: null was given; allowed: number"]),
        ("optim.lr=true", ["optim.lr: 'true' was given; allowed: number"]),
        ("optim.clip=none", ["optim.clip: 'none' was given; allowed: number or null"]),
        ("optim.fused=3", ["optim.fused: 3 was given; allowed: boolean"]),
        ("optim.betas=[1]", ["optim.betas.1: the list is too short"]),
        ("optim.betas=[1, 2, 3]", ["optim.betas: [1, 2, 3] was given", "at most 2"]),
        ("optim.betas=[1, a]", ["optim.betas.1: 'a' was given; allowed: number"]),
        ("optim.betas=1", ["optim.betas: 1 was given; allowed: list"]),
        ("optim=1", ["optim: 1 was given; allowed: a section (key: value)"]),
        ("optim=", ["optim: null was given; allowed: a section (key: value)"]),
        ("batch=1.5", ["batch: 1.5 was given; allowed: integer"]),
        ("batch=true", ["batch: 'true' was given; allowed: integer"]),
        ("batch=[1, 2]", ["batch: [1, 2] was given; allowed: integer"]),
        ("size=[1, a]", ["size.1: 'a' was given; allowed: integer"]),
        ("size={a: 1}", ["size: {'a': 1} was given; allowed: integer or list"]),
        ("size=abc", ["size: 'abc' was given; allowed: integer or list"]),
        ("machine.compile=maybe", ["machine.compile: 'maybe' was given; allowed: 'auto', 'yes' or 'no'"]),
        ("machine.compile=atuo", ["; did you mean 'auto'?"]),
        ("machine.compile=true", ["machine.compile: 'true' was given"]),
        ("machine.micro_batch=abc", ["machine.micro_batch: 'abc' was given; allowed: integer or 'auto'"]),
        ("machine.name=3", ["machine.name: 3 was given; allowed: string"]),
        ("machine.name=true", ["machine.name: true was given; allowed: string"]),
        ("length=10", ["length: 10 is not a duration; write for example '800 epochs'"]),
        ("length=ten epochs", ["length: 'ten epochs' is not a duration"]),
        ("length=10 minutes", ["length: '10 minutes' is not a duration"]),
        ("length=-1 epochs", ["length: '-1 epochs' is not a duration"]),
        ("length=1e999 epochs", ["length: '1e999 epochs' is not a duration"]),
        ("length=", ["length: None is not a duration"]),
        ("optim.lr", ["'optim.lr' is not of the form key=value"]),
        ("=3", ["'=3' is not of the form key=value"]),
        ("optim..lr=3", ["'optim..lr=3' is not of the form key=value"]),
        ("optim.lr=[1", ["the command line, optim.lr, line 1: not valid YAML"]),
        ("optim.lr=!!int x", ["the command line, optim.lr: not valid YAML"]),
        ("optim.lr=!!python/name:os.system", ["not valid YAML", "could not determine a constructor"]),
        ("optim={lr: 1, lr: 2}", ["the key 'lr' stands twice"]),
    ],
)
def test_a_wrong_word_is_one_line_that_says_what_is_allowed(write: Write, word: str, parts: list[str]) -> None:
    line = fault(settings, write("whole.yaml", WHOLE), word)
    assert line.startswith("the command line")
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("optim: {lr: 0.1\n", ["line 2: not valid YAML"]),
        ("batch: 1\nbatch: 2\n", ["line 2: not valid YAML: the key 'batch' stands twice"]),
        ("batch: 1\noptim:\n  lr: 1\n  lr: 2\n", ["line 4: not valid YAML: the key 'lr' stands twice"]),
        ("1: 2\n", ["line 1: not valid YAML: the key 1 is not text; put it in quotes"]),
        ("batch: \x07\n", ["not valid YAML: unacceptable character"]),
        ("optim: &a\n  lr: *a\n", ["line 1: not valid YAML: found unconstructable recursive node"]),
        ("- 1\n- 2\n", ["a configuration is a mapping (key: value), not a list"]),
        ("just words\n", ["a configuration is a mapping (key: value), not a text"]),
        ("base: nowhere.yaml\n", ["nowhere.yaml: cannot be read: No such file"]),
        ("base: [a.yaml, b.yaml]\n", ["base: one other file is named here, not a list"]),
        ("base: bad.yaml\n", ["bad.yaml: base: the files name each other in a circle"]),
        ("base: near.yaml\n", ["bad.yaml: base: the files name each other in a circle"]),
        ("optim.lr: 1\nbatch: 1\n", ["optim.lr: unknown key; dotted keys are for the command line"]),
        ("", ["required and missing"]),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(write: Write, text: str, parts: list[str]) -> None:
    write("near.yaml", "base: bad.yaml\n")
    line = fault(settings, write("bad.yaml", text))
    assert all(part in line for part in parts), line
    assert str(Path("bad.yaml")) in line or "nowhere.yaml" in line or "configuration: " in line


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert fault(compose, tmp_path / "none.yaml").startswith(f"{tmp_path}/none.yaml: cannot be read: No such file")
    assert fault(compose, tmp_path).startswith(f"{tmp_path}: cannot be read: Is a directory")
    (tmp_path / "noise.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert fault(compose, tmp_path / "noise.yaml").startswith(f"{tmp_path}/noise.yaml: cannot be read: not a text file")


def test_a_base_that_is_no_recipe_is_told_by_the_file_that_names_it(write: Write) -> None:
    path = write("child.yaml", "base: demmo\n")
    assert fault(load, path).startswith(f"{path}: base: demmo: is neither a file nor a recipe")
    assert "did you mean 'demo'?" in fault(load, path)


def test_a_node_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Optimizer(lr=1).lr = 2  # type: ignore[misc]


def test_nearest_says_nothing_where_nothing_is_near() -> None:
    assert nearest("crpo", ["crop", "resize"]) == "; did you mean 'crop'?"
    assert nearest("zzz", ["crop", "resize"]) == ""


# The whole tree

DEMO = load("demo")
KEYS = sorted({prefix for key in flat(DEMO.resolved()) for prefix in (key, key.rpartition(".")[0] or key)})
WORDS = st.one_of(
    st.sampled_from(
        ["", "~", "true", "no", "-1", "0", "1", "0.5", "1e400", "[]", "{}", "[1, 2]", "[a]", "{a: 1}", "{name: 1}"]
    ),
    st.sampled_from(
        ["mae", "crop", "wandb", "10 epochs", "1e9 samples", ".nan", "'", "[", "vit_base_patch16_224", "./x.py"]
    ),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=8),
)


def answer(word: str) -> Run | str:
    try:
        return load("demo", [word])
    except ConfigError as error:
        return str(error)


@examples(max_examples=400)
@given(key=st.sampled_from(KEYS), word=WORDS)
def test_whatever_is_written_the_answer_is_a_run_or_one_line(key: str, word: str) -> None:
    found = answer(f"{key}={word}")
    if isinstance(found, str):
        assert f": {key.partition('.')[0]}" in found or f", {key}" in found  # a fault of the whole section names that
        assert "\n" not in found
    else:
        assert build(Run, Tree(parse(dump(found.resolved()), "config.yaml"), {})) == found


# Durations


@given(amount=st.integers(0, 2**70) | st.floats(0, 1e300), unit=st.sampled_from(["steps", "epochs", "samples"]))
def test_a_duration_written_is_the_duration_read(amount: float, unit: Any) -> None:
    duration = Duration(float(amount), unit)
    assert Duration.parse(str(duration)) == duration
    assert parse(dump({"length": str(duration)}), "here") == {"length": str(duration)}


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("10 steps", 10),
        ("1 epoch", 8),
        ("2epochs", 15),
        ("0.5 epochs", 4),
        ("1_000 samples", 10),
        ("1e3 samples", 10),
        ("0 epochs", 0),
        ("1e-3 epochs", 1),
        ("1 sample", 1),
    ],
)
def test_a_duration_in_steps(text: str, steps: int) -> None:
    assert Duration.parse(text).steps(7.5, 100) == steps
