"""What the checks look at: a run, the machine, and what follows from both, each made once and only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mrp.build import build_empty, measure_cost, open_source
from mrp.config import ConfigError
from mrp.data.mixtures import Mixed
from mrp.data.order import Order
from mrp.data.source import Source
from mrp.doctor.machine import Machine, this_machine
from mrp.plan import Plan, plan_order, plan_run
from mrp.processes.cost import Cost
from mrp.run import Run
from mrp.step import Step

if TYPE_CHECKING:
    from mrp.doctor.speed import Speed

_SIZE = 1_281_167  # images that are planned for while the data is not there: ImageNet's

T = TypeVar("T")


class Missing(Exception):
    """A part of the case could not be made, which was said when it was first asked for."""


class part(Generic[T]):
    """A property that is made once; a fault in it is raised once, and after that it is `Missing`."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make, self._name = make, make.__name__

    def __get__(self, case: Case, _: type[Case]) -> T:
        if self._name in case.faults:
            raise Missing(self._name)
        if self._name not in case.made:
            try:
                case.made[self._name] = self._make(case)
            except (ConfigError, Missing) as fault:
                case.faults[self._name] = str(fault)
                raise
        made: T = case.made[self._name]
        return made


@dataclass(frozen=True, slots=True)
class Terms:
    """For what the forecast is made."""

    on: str | None = None  # a named GPU
    price: float | None = None  # per hour and device, in whatever currency
    watts: float | None = None  # per device of this machine
    share: float | None = None  # of the named GPU's peak


class Case:
    """A run on so many processes of a machine, in a folder; `written` are the recipe's own values."""

    def __init__(
        self,
        run: Run,
        processes: int,
        folder: Path,
        written: Mapping[str, Any] | None = None,
        machine: Machine | None = None,
        terms: Terms | None = None,
        speed: Speed | None = None,
    ) -> None:
        self.run, self.processes, self.folder, self.written = run, processes, folder, written or {}
        self.terms = terms or Terms()
        self.speed = speed  # what has been measured
        self._machine = machine
        self.made: dict[str, Any] = {}
        self.faults: dict[str, str] = {}

    @cached_property
    def machine(self) -> Machine:
        """The facts of the machine."""
        return self._machine or this_machine(self.folder, self.processes)

    @part
    def source(self) -> Source:
        """The training data."""
        return open_source(self.run, "train")

    @part
    def test(self) -> Source | None:
        """The test data, where the run has any."""
        return open_source(self.run, "test") if self.run.data.test is not None else None

    @part
    def step(self) -> Step:
        """The model, without content."""
        return build_empty(self.run)

    @part
    def cost(self) -> Cost:
        """What an image costs."""
        return measure_cost(self.run)

    @part
    def order(self) -> Order | Mixed:
        """The order of the data, or of as many images as ImageNet has while there are none."""
        try:
            data: Source | int = self.source
        except (ConfigError, Missing):
            data = max(self.run.batch, _SIZE)
        return plan_order(self.run, data)

    @part
    def plan(self) -> Plan:
        """What the run comes to."""
        return plan_run(self.run, self.order.steps_per_epoch, self.processes, self.machine.memory, self.cost)

    @property
    def workers(self) -> int:
        """Decoding processes of each process, on the cores of this machine."""
        return self.run.machine.workers_on(self.cores)

    @property
    def cores(self) -> int:
        """Cores of each process."""
        return max(1, self.machine.cores // self.processes)
