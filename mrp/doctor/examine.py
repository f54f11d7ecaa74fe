"""All checks in turn: the data, the recipe, the machine, the speed there, and what that comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mrp.config import ConfigError
from mrp.doctor import data, environment, forecast, recipe, speed
from mrp.doctor.case import Case, Missing
from mrp.doctor.finding import Finding, said

Check = Callable[[Case], Iterator[Finding]]

CHECKS: dict[str, tuple[Check, ...]] = {
    "data": data.CHECKS + data.MEASURES,
    "recipe": (*recipe.CHECKS, data.mixture, data.evaluators),  # these would meet the recipe's faults too
    "environment": environment.CHECKS,
    "throughput": speed.MEASURES,
    "forecast": forecast.CHECKS,
}
MEASURES = data.MEASURES + speed.MEASURES  # which take seconds, and which --quick leaves out


def examine(case: Case, quick: bool = False) -> Iterator[tuple[str, Finding]]:
    """Yields what the checks find, each with its group; a fault that several checks would meet is found once."""
    told = set[str]()
    for group, checks in CHECKS.items():
        for check in checks:
            if quick and check in MEASURES:
                continue
            try:
                for finding in check(case):
                    yield group, finding
            except Missing:  # said already
                continue
            except ConfigError as fault:
                if str(fault) not in told:
                    told.add(str(fault))
                    yield group, said("error", check.__name__.replace("_", " "), str(fault))
