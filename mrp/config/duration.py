"""Lengths of training: in steps, epochs or samples."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import core_schema

UNITS = ("steps", "epochs", "samples")


@dataclass(frozen=True)
class Duration:
    """A length of training: a number of steps, epochs or samples."""

    amount: float
    unit: Literal["steps", "epochs", "samples"]

    @classmethod
    def parse(cls, value: Any) -> Duration:
        """Reads '800 epochs', '100 steps' or '1e6 samples'; refuses a bare number, since its unit would be a guess."""
        if isinstance(value, Duration):
            return value
        number = r"[0-9][0-9_]*\.?[0-9]*(?:[eE][-+]?[0-9]+)?"
        match = re.fullmatch(rf"\s*({number})\s*(step|epoch|sample)s?\s*", str(value), re.ASCII)
        if match is None or not math.isfinite(amount := float(match[1].replace("_", ""))):
            raise ValueError(
                f"{value!r} is not a duration; write for example '800 epochs', '10 steps' or '1e6 samples'"
            )
        return cls(amount, f"{match[2]}s")  # type: ignore[arg-type]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Tells pydantic how to read and write a duration."""
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    def __str__(self) -> str:
        return f"{int(self.amount) if float(self.amount).is_integer() else self.amount} {self.unit}"

    def steps(self, steps_per_epoch: float, batch: int) -> int:
        """Returns the same length in optimizer steps, at least one unless it is zero."""
        scale = {"steps": 1.0, "epochs": steps_per_epoch, "samples": 1 / batch}[self.unit]
        exact = self.amount * scale
        return max(round(exact), 1 if exact > 0 else 0)
