"""A claim of a paper, what an experiment should measure if it is true, and the verdict on what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from mrp.config import Node
from mrp.lab.claims.number import Number, Numbers, plain


class Verdict(StrEnum):
    """What can be said of a claim."""

    HOLDS = "holds"
    REGIME = "holds in its regime; breaks at"
    FAILS = "does not hold"
    SMALL = "too small to tell"
    ALGEBRA = "true by algebra"
    OURS = "our extension"
    MORE = "needs more compute"
    NEVER = "cannot be evaluated"


class Prediction(NamedTuple):
    """An inequality about one number."""

    number: str  # its name
    comparison: Literal[">", "<"]
    limit: float

    def __str__(self) -> str:
        return f"{self.number} {self.comparison} {plain(self.limit)}"

    def holds_for(self, number: Number, seeds: int = 1) -> bool | None:
        """Returns whether the whole interval lies on the predicted side or on the other one, and else None.

        None is also what a number without an interval or with too few seeds comes to, whichever side it lies on.
        """
        if number.half is None or number.seeds < seeds:
            return None
        sign = 1 if self.comparison == ">" else -1
        middle = sign * (number.value - self.limit)
        return True if middle - number.half > 0 else False if middle + number.half <= 0 else None

    def doubt(self, number: Number, seeds: int) -> str:
        """Returns why a number does not decide."""
        lacking = "no interval" if number.half is None else "the interval allows both"
        return f"{number.seeds} of {seeds} seeds" if number.seeds < seeds else f"{lacking}: {self.number} is {number}"


class Board(Node):
    """A claim's line on the scoreboard."""

    title: str
    paper: str  # the paper's figure
    number: str = ""  # the name of ours


class Claim(Node):
    """One claim of `claims.yaml`; the head of that file explains the fields."""

    id: str
    claim: str
    source: str
    board: Board | None = None
    commands: tuple[str, ...] = ()
    cost: str = ""
    measures: tuple[dict[str, Any], ...] = ()
    predictions: tuple[Prediction, ...] = ()
    regime: tuple[Prediction, ...] = ()
    elsewhere: tuple[Prediction, ...] = ()
    seeds: int = 3
    recipes: tuple[str, ...] = ()
    algebra: str = ""
    ours: bool = False
    never: str = ""
    note: str = ""

    def verdict(self, numbers: Numbers) -> tuple[Verdict, str]:
        """Returns the verdict, and the reason where the numbers alone do not show it.

        A confirmation and a refutation ask for the same: the claim's own regime, enough seeds, and a whole interval.
        """
        if self.never:
            return Verdict.NEVER, self.never
        verdict, reason = self._measured(numbers)
        if self.algebra and verdict != Verdict.FAILS:  # a proof that is contradicted is a fault of ours, to be seen
            return Verdict.ALGEBRA, self.algebra
        if self.ours and verdict != Verdict.MORE:
            found = {Verdict.HOLDS: "as we predicted", Verdict.FAILS: "not as we predicted"}.get(verdict, str(verdict))
            return Verdict.OURS, f"{found}: {reason}" if reason else found
        return verdict, reason

    def _measured(self, numbers: Numbers) -> tuple[Verdict, str]:
        if not numbers:
            return Verdict.MORE, self.cost
        if outside := [each for each in self.regime if not _known(each, numbers, 1)]:
            return Verdict.SMALL, "outside of the claim's regime: " + _listed(outside, numbers)
        results = {each: _known(each, numbers, self.seeds) for each in self.predictions}
        if wrong := [each for each, holds in results.items() if holds is False]:
            return Verdict.FAILS, _listed(wrong, numbers)
        if any(each.number not in numbers for each in self.predictions):
            return Verdict.MORE, self.cost
        if doubts := [each.doubt(numbers[each.number], self.seeds) for each, holds in results.items() if holds is None]:
            return Verdict.SMALL, "; ".join(dict.fromkeys(doubts))
        if broken := self._boundary(numbers):
            return Verdict.REGIME, broken
        return Verdict.HOLDS, ""

    def _boundary(self, numbers: Numbers) -> str:
        """Returns where sweeps refute the claim, which says how far it reaches and takes nothing from it.

        A prediction about `sigma` is one about every number that is called `at sigma = VALUE`.
        """
        broken = []
        for prediction in self.elsewhere:
            start = f"at {prediction.number} = "
            values = {name: number for name, number in numbers.items() if name.startswith(start)}
            failed = [
                name.removeprefix(start) for name, number in values.items() if prediction.holds_for(number) is False
            ]
            if failed:
                broken.append(f"{prediction.number} = {', '.join(failed)}")
        return "; ".join(broken)


def _known(prediction: Prediction, numbers: Numbers, seeds: int) -> bool | None:
    number = numbers.get(prediction.number)
    return None if number is None else prediction.holds_for(number, seeds)


def _listed(predictions: Iterable[Prediction], numbers: Numbers) -> str:
    """Returns what was asked for, and the numbers there are."""
    return "; ".join(
        f"{each.number} is {numbers[each.number]}, asked for: {each.comparison} {plain(each.limit)}"
        if each.number in numbers
        else f"{each.number} is not known"
        for each in predictions
    )
