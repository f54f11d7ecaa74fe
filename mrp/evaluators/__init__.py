"""The evaluators, one file each: `Config`, its section, and `Evaluator`, which measures a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrp.config import ConfigError, Tree, build
from mrp.evaluate.config import Section
from mrp.registry import Registry

if TYPE_CHECKING:
    from mrp.evaluate.contract import Evaluator, Setting
    from mrp.evaluate.schedule import Evaluators
    from mrp.optim.average import Average

EVALUATORS = Registry("evaluator", __name__, ("Config", "Evaluator"))


def short_name(name: str) -> str:
    """Returns what an evaluator is called in results: its name, or that of its file without the folder."""
    return Path(name).stem if name.endswith(".py") else name


def read_options(options: Mapping[str, Any]) -> dict[str, Section]:
    """Returns the checked section of each evaluator, by its name or, for a file, by its whole path."""
    sections = dict(_read(str(name), values) for name, values in options.items())
    short_names = [short_name(name) for name in sections]
    for name in sections:
        taken = name.endswith(".py") and short_name(name) in (*EVALUATORS.names(), "features")
        if taken or short_names.count(short_name(name)) > 1:
            raise ConfigError(f"{name}: another evaluator is called '{short_name(name)}' too; rename the file")
    return sections


def _read(name: str, options: Any) -> tuple[str, Section]:
    if isinstance(options, Section):
        return name, options
    config = EVALUATORS.find(name).Config
    if not isinstance(options, Mapping | None):
        raise ConfigError(f"{name}: a section (key: value) is needed, such as {{every: 5 epochs}}; null: not measured")
    values = {"every": None} if options is None else dict(options)
    section: Section = build(config, Tree(values, {"": short_name(name)}))
    return str(Path(name).absolute()) if name.endswith(".py") else name, section


def read_sections(value: Any) -> dict[str, Section]:
    """Returns the sections of `evaluate:`, which maps the names or files of evaluators to their options.

    What is null, or is measured every `null`, a recipe has switched off that its base measures: it is left out.
    """
    if not isinstance(value, Mapping | None):
        raise ConfigError("a mapping is needed, such as {knn: {every: 10 epochs}}; null: nothing else is measured")
    sections = read_options(value or {})
    for name, section in sections.items():
        if "every" not in section.model_fields_set:
            raise ConfigError(f"{name}: every is missing; say how often, for example {{every: 10 epochs}}")
        if name in ("diagnose", "validation"):
            raise ConfigError(f"{name}: has a section of its own, '{name}:'; write its options there")
    return {name: section for name, section in sections.items() if section.every is not None}


def version_of(name: str) -> str:
    """Returns which version of an evaluator of mrp measures, such as v2; empty for the first one."""
    version: int = EVALUATORS.find(name).Evaluator.version
    return f"v{version}" if version > 1 else ""


def make(name: str, section: Section, setting: Setting) -> Evaluator:
    """Returns an evaluator of a name or file."""
    evaluator: Evaluator = EVALUATORS.find(name).Evaluator(section, setting)
    return evaluator


def scheduled(sections: Mapping[str, Section], setting: Setting, average: Average | None) -> Evaluators:
    """Returns what the training loop runs: the evaluators whose sections say how often."""
    from mrp.evaluate.schedule import Evaluators, Scheduled

    assert setting.training is not None
    parts = []
    for name, section in sections.items():
        every = setting.training.in_steps(section.every) if section.every else 0
        if every:
            parts.append(Scheduled(short_name(name), make(name, section, setting), every))
    return Evaluators(parts, setting, average)
