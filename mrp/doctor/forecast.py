"""How long the run takes, and what it costs: on this machine as measured, on a named GPU as counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mrp.doctor.case import Case
from mrp.doctor.finding import Finding, ok
from mrp.doctor.speed import Rate

_HOUR = 3600
_APART = 2  # times the slowest pace, from which on the fastest one is told too
ASSUMED = 0.3  # of a GPU's peak that training reaches, as in docs/scale.md: not measured


class Gpu(NamedTuple):
    """A GPU by its data sheet: dense matrix products, and the power of the board."""

    name: str
    bf16: float  # TFLOP/s
    fp32: float  # TFLOP/s without tensor cores, which fp32 runs do not use
    watts: int


GPUS = {
    "a100": Gpu("NVIDIA A100 SXM", 312, 19.5, 400),
    "h100": Gpu("NVIDIA H100 SXM", 989, 67, 700),
    "h200": Gpu("NVIDIA H200 SXM", 989, 67, 700),
    "l4": Gpu("NVIDIA L4", 121, 30.3, 72),
    "l40s": Gpu("NVIDIA L40S", 362, 91.6, 350),
}


def forecast(case: Case) -> Iterator[Finding]:
    """Says what the run takes here, and on the named GPU."""
    plan, terms = case.plan, case.terms
    if "source" in case.faults:
        return
    images = plan.steps * case.run.batch
    if case.speed is not None:
        hours = images / (case.speed.both.median * plan.processes) / _HOUR
        what = f"{plan.processes} processes as fast as the one measured" if plan.processes > 1 else "as measured"
        used = "energy unknown (give --watts)" if terms.watts is None else _energy(hours, plan.processes, terms.watts)
        price = None if terms.on else terms.price
        yield ok(
            "here",
            f"{_time(hours)}{_between(hours, case.speed.both)} for {plan.steps:,} steps, {what}, without evaluations "
            f"and checkpoints; {used}{_price(hours, plan.processes, price)}",
        )
    if terms.on is not None:
        gpu = GPUS[terms.on]
        peak, flops = (gpu.bf16 if case.run.precision == "bf16" else gpu.fp32), case.cost.training_flops * images
        share = terms.share or ASSUMED
        hours = flops / (peak * 1e12 * share * plan.processes) / _HOUR
        how = "as given" if terms.share else "assumed: we have measured no GPU"
        yield ok(
            terms.on,
            f"{_time(hours)} on {plan.processes} x {gpu.name}: {case.cost.bound}{flops:.3g} FLOP at {share:.0%} "
            f"({how}) of its {peak:g} TFLOP/s in {case.run.precision}; {_energy(hours, plan.processes, gpu.watts)}"
            f"{_price(hours, plan.processes, terms.price)}",
        )


def _time(hours: float) -> str:
    if hours < 1 / 60:
        return f"{_HOUR * hours:.0f} seconds"
    if hours < 1:
        return f"{60 * hours:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:,.1f} days"


def _between(hours: float, rate: Rate) -> str:
    """Returns what it would be at the fastest and the slowest pace measured, where these are far apart."""
    if rate.high < _APART * rate.low:
        return ""
    return f" ({_time(hours * rate.median / rate.high)} to {_time(hours * rate.median / rate.low)}: the pace varies)"


def _energy(hours: float, devices: int, watts: float) -> str:
    return f"{_number(hours * devices * watts / 1000)} kWh at {watts:g} W each, at most"


def _price(hours: float, devices: int, price: float | None) -> str:
    return "" if price is None else f"; {_number(hours * devices * price)} at {price:g} per hour and device"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


CHECKS = (forecast,)
