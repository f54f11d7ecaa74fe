"""Schedules: how a number changes over a run. Its value follows from the step and the run's length alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import core_schema

from mrp.config import ConfigError, Duration, Node


@dataclass(frozen=True, slots=True)
class Length:
    """The length of a run, in which durations become steps."""

    steps: int
    steps_per_epoch: float
    batch: int


@dataclass(frozen=True)
class Span:
    """A part of a run: a share of it, which another length of the run leaves right, or a duration."""

    amount: float | Duration

    @classmethod
    def parse(cls, value: Any) -> Span:
        """Reads '10 %' or a duration."""
        if isinstance(value, Span):
            return value
        share = re.fullmatch(r"\s*([0-9]+\.?[0-9]*)\s*%\s*", str(value), re.ASCII)
        if share is not None and float(share[1]) <= 100:
            return cls(float(share[1]) / 100)
        try:
            return cls(Duration.parse(value))
        except ValueError:
            raise ValueError(
                f"{value!r} is no part of a run; write for example '10 %', '40 epochs' or '500 steps'"
            ) from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Tells pydantic how to read and write it."""
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    def __str__(self) -> str:
        return str(self.amount) if isinstance(self.amount, Duration) else f"{100 * self.amount:.10g} %"

    def steps(self, length: Length) -> int:
        """Returns the same in optimizer steps."""
        if isinstance(self.amount, Duration):
            return self.amount.steps(length.steps_per_epoch, length.batch)
        return round(self.amount * length.steps)


_USED = {
    "linear": {"end", "until"},
    "cosine": {"end", "until", "whole"},
    "wsd": {"end", "decay"},
    "steps": {"drops", "factor"},
}


class Schedule(Node):
    """A number that changes over the run: a warm-up, where one is asked for, then what `kind` says."""

    # constant: stays at `value`. linear and cosine: from `value` to `end` along a line or half a cosine. wsd (warm-up,
    # stable, decay): stays at `value`, then goes to `end` along a line in the last part of the run. steps: multiplied
    # by `factor` at each of `drops`.
    kind: Literal["constant", "linear", "cosine", "wsd", "steps"]
    value: float  # the number after the warm-up
    end: float = 0.0  # what linear, cosine and wsd reach in the end
    until: Span = Span(1.0)  # where linear and cosine reach `end`: a share of the run, or a duration
    # Whether a cosine begins with the run, so that the warm-up replaces its first part; false: it begins after the
    # warm-up.
    whole: bool = False
    decay: Span = Span(0.1)  # of wsd: the last part of the run, in which the number goes to `end`
    drops: tuple[Span, ...] = ()  # of steps: where the number changes
    factor: float = 0.1  # of steps: what the number is multiplied by at each of `drops`
    warmup: Span = Span(0.0)  # how long the number takes from `start` to `value`, along a line
    start: float = 0.0  # the number at the beginning of the warm-up

    @model_validator(mode="after")
    def _every_option_does_something(self) -> Schedule:
        for key in ("end", "until", "whole", "decay", "drops", "factor"):
            if key in self.model_fields_set and key not in _USED.get(self.kind, ()) and not self._is_default(key):
                kinds = " and ".join(kind for kind, keys in _USED.items() if key in keys)
                raise ValueError(f"{key} is for {kinds}, and the kind is {self.kind}; leave it out")
        if self.kind == "steps" and not self.drops:
            raise ValueError("drops are missing, at which the number changes; for example [60 %, 80 %]")
        if not self._is_default("start") and self._is_default("warmup"):
            raise ValueError("start is where a warm-up begins, and warmup is not set; set it, or leave start out")
        return self

    def _is_default(self, key: str) -> bool:
        return bool(getattr(self, key) == type(self).model_fields[key].default)

    @property
    def values(self) -> tuple[float, ...]:
        """Returns the values between which the number moves."""
        ends = [self.end] if "end" in _USED.get(self.kind, ()) else []
        if self.kind == "steps":
            ends = [self.value * self.factor**count for count in range(1, len(self.drops) + 1)]
        starts = [] if self._is_default("warmup") else [self.start]
        return (*starts, self.value, *ends)

    def check(self, where: str, length: Length) -> None:
        """Refuses parts that do not fit into the run."""
        warmup = self.warmup.steps(length)
        rest = {"until": self.until.steps(length) - warmup, "decay": length.steps - warmup - self.decay.steps(length)}
        for key, steps in rest.items():
            if key in _USED.get(self.kind, ()) and steps < 0:
                raise ConfigError(
                    f"{where}.{key}: {getattr(self, key)} and a warm-up of {self.warmup} do not fit into the run of "
                    f"{length.steps} steps; shorten one of them"
                )
        if warmup > length.steps:
            raise ConfigError(
                f"{where}.warmup: {self.warmup} ({warmup} steps) is longer than the run ({length.steps} steps); "
                "shorten it"
            )

    def at(self, step: int, length: Length) -> float:
        """Returns the number in step `step`, counted from zero."""
        warmup = self.warmup.steps(length)
        if step < warmup:
            return self.start + (self.value - self.start) * step / warmup
        if self.kind == "cosine":
            until = self.until.steps(length)
            begin = 0 if self.whole else warmup
            return half_cosine(min(step, until), until, begin, self.value, self.end) if until > begin else self.end
        if self.kind == "linear":
            return self._line(step, warmup, self.until.steps(length))
        if self.kind == "wsd":
            return self._line(step, length.steps - self.decay.steps(length), length.steps)
        return stepwise(step, warmup, self.value, [drop.steps(length) for drop in self.drops], self.factor)

    def _line(self, step: int, first: int, last: int) -> float:
        """Returns a point of the line from the value at step `first` to the end at step `last`."""
        done = (step - first) / (last - first) if last > first else float(step >= last)
        return self.value + (self.end - self.value) * min(max(done, 0.0), 1.0)


def within(low: float, high: float = math.inf) -> AfterValidator:
    """Returns the check that a schedule stays between two bounds, both of which it may reach."""

    def check(schedule: Schedule) -> Schedule:
        odd = next((value for value in schedule.values if not low <= value <= high), None)
        if odd is not None:
            allowed = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
            raise ValueError(f"it reaches {odd:g}; allowed: {allowed}")
        return schedule

    return AfterValidator(check)


def _rises(schedule: Schedule) -> Schedule:
    if max(schedule.values) <= 0:
        raise ValueError("it is 0 throughout; allowed: a value greater than 0")
    return schedule


def _says_its_end(schedule: Schedule) -> Schedule:
    if "end" in _USED.get(schedule.kind, ()) and "end" not in schedule.model_fields_set:
        raise ValueError("end is missing, which it reaches at the end of the run; for example end: 1.0")
    return schedule


# The types of options that are a number or a schedule of one. A share has to say where it ends: a
# learning rate or a weight that vanishes at the end is usual, a mask ratio or a teacher's decay of 0 is a mistake.
Positive = Annotated[float, Field(gt=0)] | Annotated[Schedule, within(0), AfterValidator(_rises)]
NonNegative = Annotated[float, Field(ge=0)] | Annotated[Schedule, within(0)]
Share = Annotated[float, Field(ge=0, le=1)] | Annotated[Schedule, within(0, 1), AfterValidator(_says_its_end)]
ProperShare = Annotated[float, Field(gt=0, lt=1)] | Annotated[Schedule, within(0, 1), AfterValidator(_says_its_end)]


def main_value(number: float | Schedule) -> float:
    """Returns a number, or what a schedule goes to in its warm-up."""
    return number.value if isinstance(number, Schedule) else number


def extremes(number: float | Schedule) -> tuple[float, float]:
    """Returns the least and the greatest value that a number takes."""
    values = number.values if isinstance(number, Schedule) else (number,)
    return min(values), max(values)


def schedules(section: Node, prefix: str = "") -> Iterator[tuple[str, Schedule]]:
    """Yields every schedule in a section, with its dotted name."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Schedule):
            yield f"{prefix}{name}", value
        elif isinstance(value, Node):
            yield from schedules(value, f"{prefix}{name}.")


def half_cosine(at: float, total: float, warmup: float, peak: float, floor: float = 0.0) -> float:
    """Returns a linear warm-up from zero, then half a cosine from the peak to the floor; in steps or in epochs."""
    if at < warmup or total <= warmup:  # at the end of a run that does nothing but warm up
        return peak * min(1.0, at / warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * (at - warmup) / (total - warmup)))


def stepwise(at: float, warmup: float, peak: float, drops: Sequence[float], factor: float = 0.1) -> float:
    """Returns a linear warm-up from zero, then the peak, multiplied by the factor at each drop."""
    if at < warmup:
        return peak * at / warmup
    return peak * factor ** sum(at >= drop for drop in drops)
