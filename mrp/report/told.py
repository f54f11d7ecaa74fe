"""What a report is about: a run, one of its checkpoints or imported weights, and what there is to say of it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mrp.config import ConfigError
from mrp.ending import FAILED
from mrp.evaluate import results
from mrp.folder import CONFIG
from mrp.interop import hub, runs
from mrp.progress import duration
from mrp.report import about, compare, gallery, render, story
from mrp.report.document import Markup, facts, tag
from mrp.report.gallery import Drawn
from mrp.report.history import History
from mrp.report.page import Page
from mrp.status import DIED, Status, status_of

_MOST = 4  # numbers of the summary


@dataclass(frozen=True)
class Told:
    """Everything that is known of a run, of one of its checkpoints, or of imported weights."""

    path: Path
    history: History  # in the folder of the run, or of the results of imported weights
    imported: bool = False

    @classmethod
    def of(cls, path: Path, name: str = "") -> Told:
        """Finds what a path is; weights that are not ours are imported ones."""
        own = name or path.absolute().name
        is_of_the_hub = str(path).startswith(hub.PREFIX)
        if is_of_the_hub or (path.exists() and not runs.is_ours(path)):
            return cls(path, History(own, results.folder_of_import(path)), imported=True)
        if (path / CONFIG).is_file() and not path.name.startswith("step-"):
            return cls(path, History(own, path))
        folder, checkpoint = runs.locate(path)  # refuses what is not there
        name = name or f"{folder.absolute().name}, step {checkpoint.step:,}"
        return cls(path, History(name, folder, checkpoint.step))

    @property
    def step(self) -> int | None:
        """Returns the step of the checkpoint that was asked for; None of a whole run."""
        return None if self.history.until == math.inf else int(self.history.until)

    @property
    def out(self) -> Path:
        """Returns where the page is written unless a file is named."""
        return self.history.folder / ("report.html" if self.step is None else f"report-{self.step:08d}.html")

    @cached_property
    def status(self) -> Status | None:
        """The state of the run; None for imported weights."""
        return None if self.imported else status_of(self.history.folder)

    @property
    def results(self) -> Page | None:
        """What was measured of the run after its training; None where nothing was, or its file is damaged."""
        return self._results[0]

    @property
    def damage(self) -> str:
        """What is wrong with the file of the results."""
        return self._results[1]

    @cached_property
    def _results(self) -> tuple[Page | None, str]:
        try:
            path, name = self.path, self.history.name
            return compare.page_of([path], [name]) if compare.Measured.of(path, name).points() else None, ""
        except ConfigError as error:
            return None, str(error)

    @cached_property
    def tags(self) -> Mapping[str, Any]:
        """What `tags` has measured last, after the training or else in it; empty where it has not."""
        if self.damage or self.results is None:
            return self.history.measured("tags")
        found = compare.Measured.of(self.path, self.history.name)
        records = [one for one in results.read(found.folder) if found.has(one) and one.evaluator == "tags"]
        last = max(records, key=lambda one: one.step, default=None)
        return self.history.measured("tags") if last is None else {"step": last.step} | last.result

    @cached_property
    def pictures(self) -> Drawn:
        """The pictures of some checkpoints, the newest last."""
        if self.imported:
            return Drawn([gallery.of_weights(self.path)])
        return gallery.of_run(self.history.folder, self.step)

    @property
    def verdict(self) -> story.Verdict | None:
        """Returns whether the loader or the computation limited the speed."""
        return story.verdict(self.history.curve("loader/waiting"), self.history.curve("images_per_second"))


def summary(told: Told) -> Iterator[Markup]:
    """Yields what ran, on what, how it ended, what came out, and what to worry about."""
    if told.imported:
        yield tag("p", f"Weights of another project, read from {told.path}.", class_="lead")
    elif told.history.values:
        yield tag("p", what_ran(told.history), class_="lead")
    if best := _best(told):
        yield tag("p", "Best results: " + "; ".join(best) + ".")
    elif lasts := [story.accuracy(one) for one in told.history.accuracies()][:_MOST]:
        yield tag("p", "Last accuracies in training: " + "; ".join(lasts) + ".")
    found = list(warnings(told))
    if found:
        yield tag("ul", *(tag("li", one) for one in found), class_="warnings", role="list")
    pairs = list(_facts(told))
    if pairs:
        yield facts(pairs)


def what_ran(history: History) -> str:
    """Returns the method, the backbone, the data and the length in a sentence."""
    values = history.values
    objective, backbone, data = map(history.section, ("objective", "backbone", "data"))
    method = Path(str(objective.get("name", "a method"))).name  # of a file of one's own, its name alone
    details = [f"mask ratio {_number(objective['mask_ratio'])}"] if objective.get("mask_ratio") is not None else []
    uniformity = objective.get("uniformity")
    weight = uniformity.get("weight") if isinstance(uniformity, Mapping) else uniformity
    kind = uniformity.get("kind", "gram") if isinstance(uniformity, Mapping) else "gram"
    details += [f"{'uniformity' if kind == 'gram' else kind} {_number(weight)}"] if weight else []
    parts = [f"{method} ({', '.join(details)})" if details else method]
    shape = backbone.get("name") or f"a ViT of {backbone.get('depth')} blocks of width {backbone.get('width')}"
    size = data.get("size")
    size = "x".join(map(str, size)) if isinstance(size, list | tuple) else f"{size}x{size}"
    init = values.get("init")
    source = Path(str(init.get("from") if isinstance(init, Mapping) else init))
    trained = f"goes on from {'/'.join(source.parts[-2:])}," if init else "trains"
    parts.append(f"{trained} {shape}, patches of {backbone.get('patch')}")
    parts.append(f"on {compare.Named.of(data, None).name}, images of {size}")
    steps = f"{values.get('length')} of {values.get('batch')} images per step, {values.get('precision')}"
    return f"{' '.join(parts)}: {steps}."


def _number(value: Any) -> str:
    """Returns an option that is a number, or one that changes over the run."""
    if not isinstance(value, Mapping):
        return str(value)
    end = f" to {value.get('end')}" if value.get("kind") in ("linear", "cosine", "wsd") else ""
    return f"{value.get('value')}{end}, {value.get('kind')}"


def _facts(told: Told) -> Iterator[tuple[str, object]]:
    history, status = told.history, told.status
    if status is not None:
        left = f", {duration(status.seconds_left)} left" if status.seconds_left else ""
        yield (
            "state" if told.step is None else "state of the run",
            f"{status.state}{f': {status.why}' if status.why else ''}; step {steps_of(status)}{left}",
        )
    if history.starts:
        first, last = history.starts[0], history.starts[-1]
        resumed = len(history.resumes)
        again = f", resumed {resumed} {'time' if resumed == 1 else 'times'}" if resumed else ""
        yield "started", f"{first.get('time')}{again}"
        packages = last["packages"]
        count = last.get("processes")
        versions = f"Python {last.get('python')}, torch {packages.get('torch')}, mrp {last.get('mrp')}"
        code = str(last.get("code"))[:12]
        yield (
            "machine",
            f"{last.get('device')}, {count} {'process' if count == 1 else 'processes'}; {versions} ({code})",
        )
        yield "command", tag("code", shlex.join(["mrp", *map(str, last.get("command") or [])]))
    step = told.step or history.step
    cost = about.costs(history.folder, [step]).get(step) if step else None
    if cost is not None:
        hours = "" if cost.hours is None else f"{duration(3600 * cost.hours)} of training, "
        yield "cost", f"{hours}{cost.images:,} images, {cost.bound}{cost.flops:.2g} FLOPs"
    if (verdict := told.verdict) is not None:
        yield "speed", verdict.text


def steps_of(status: Status) -> str:
    """Returns how far a run is."""
    return f"{status.step:,}" + (f" of {status.steps:,}" if status.steps else "")


def _best(told: Told) -> list[str]:
    """Returns the best of what was measured after the training, and in its validations, with intervals."""
    found = []
    if (page := told.results) is not None:
        for number, column in enumerate(page.columns):
            cells = [(cell, row) for (row, at), cell in page.cells.items() if at == number and cell.measure]
            if column.data and column.better and cells:
                sign = 1 if column.better == "higher" else -1
                cell, row = max(cells, key=lambda one: sign * (one[0].measure.value if one[0].measure else 0.0))
                step = page.rows[row].step
                chosen = ""
                if len(cells) > 1:  # its interval does not know of the choice
                    same = [one for one in cells if page.rows[one[1]].run == page.rows[row].run]  # student or average
                    last, at = max(same, key=lambda one: (page.rows[one[1]].step or 0, one[1]))
                    when = f" of step {page.rows[at].step:,}" if page.rows[at].step else ""
                    other = ", and the last" if at == row else f"; the last{when}: {render.text_of(last)}"
                    chosen = f" (the best of {len(cells)} by these images{other})"
                where = f", step {step:,}" if step else ""
                whose = page.rows[row].run.removeprefix(told.history.name)  # such as " (average)"
                found.append(f"{column.title}{whose} {render.text_of(cell)} on {column.data}{where}{chosen}")
    return found[:_MOST]


def warnings(told: Told) -> Iterator[str]:
    """Yields what a reader has to know before he trusts the rest."""
    history, status = told.history, told.status
    whole = told.step is None  # of a checkpoint, it is not told how the run ended
    if whole and status is not None and status.state in (DIED, FAILED):
        yield f"The run {status.state}{f': {status.why}' if status.why else ''}."
    if history.alarms:
        yield f"Collapse: diagnose raised its alarm at step {history.alarms[0]:,}; the evidence is in alarms/."
    if history.incidents:
        steps = story.listed([f"{one['step']:,}" for one in history.incidents[:5]])
        yield f"Not finite: the loss or the gradient of step {steps}; 'mrp replay' finds the cause."
    if spikes := history.marks.spikes:
        yield f"The loss has spikes: {len(spikes)}, the first at step {spikes[0]:,}."
    if whole and history.quarantined:
        yield f"{history.quarantined:,} samples are no images and were replaced; quarantine.jsonl lists them."
    if history.starts and isinstance(balance := history.starts[-1].get("balance"), str):
        yield _sentence(balance.removeprefix("warning: "))
    if (verdict := told.verdict) is not None and verdict.starves:
        yield _sentence(f"{verdict.text}; docs/loading.md says what helps")
    changed = [name for start in history.starts for name in start["changed"] if name.startswith("packages.torch")]
    if changed:
        yield "torch changed between two starts, so rounding may differ."


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
