"""`mrp adapt`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mrp import imports, progress
from mrp.verbs import _words, doctor

if TYPE_CHECKING:
    from mrp.adapting.rules import Choice
    from mrp.report.verdict import Verdict
    from mrp.run import Run

HELP = "train weights of any origin further on images of your own, and say whether that has made them better"
EXAMPLE = "mrp adapt mae_pretrain_vit_base_full.pth /data/xray"


def words(parser: argparse.ArgumentParser) -> None:
    """Adds weights, images, a folder, what to stop at."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a run, or what 'mrp import' reads: a file, a folder, hf:"
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="a folder of images (of class folders, where there are labels), shards, or a section of "
        "data.train, such as '{name: tiff, path: PATH, window: 256}'",
    )
    _words.add_key_values(parser, "values that replace what the rules give")
    parser.add_argument(
        "--out",
        dest="folder",
        metavar="FOLDER",
        help="where the recipe, the run (FOLDER/after) and the verdict go (default: runs/adapt-DATA)",
    )
    parser.add_argument("--plan-only", action="store_true", help="write the recipe, FOLDER/adapt.yaml, and stop")
    parser.add_argument(
        "--method", help="the method to train with (default: the weights' own method, where they are whole)"
    )
    _words.add_planned_processes(parser, "processes on this machine that train")
    _words.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Plans, examines, trains and judges; the same command goes on wherever it was interrupted."""
    with imports.undisturbed():
        from mrp.adapting import AFTER, PLAN, plan
    from mrp.checkpoint.checkpoints import any_left
    from mrp.config import ConfigError, parse
    from mrp.report import verdict
    from mrp.run import load

    if "RANK" in os.environ:
        raise ConfigError("adapt: is started once; give --processes N, and it starts those that train")
    data = options.data
    if data.startswith("{"):  # a section of the kind that data.train takes
        data = dict(parse(data, "DATA"))
    place = data if isinstance(data, str) else str(data.get("path", data.get("name")))
    folder = Path(options.folder or Path("runs") / f"adapt-{Path(place).absolute().name}")
    words, file, after = _words.data_words(options), folder / PLAN, folder / AFTER
    progress.silence(options.json or options.quiet)
    choices = plan.make(options.checkpoint, data, folder, options.method, options.planned_for, words)
    if not options.json and not options.quiet:
        _show(choices, file)
    if options.plan_only:
        print(json.dumps(plan.result(folder), indent=1) if options.json else _next(options, folder))
        return
    recipe = load(file, words, after)
    if recipe.init is None:
        raise ConfigError(
            f"{file}: init: is missing, so there is nothing to go on from; put it back, or remove the file"
        )
    before = Path(recipe.init.source)
    if not any_left(after):
        _examine(recipe, folder, options)
        verdict.measure(recipe, [before])
    seconds = _train(folder, words, options)
    found = verdict.measure(recipe, [after, before])
    told = plan.write_result(folder, seconds=seconds, verdict=found.plain())
    if options.json:
        print(json.dumps(told, indent=1))
    else:
        _print(found, folder)


def _show(choices: list[Choice] | None, file: Path) -> None:
    """Prints each choice and its reason, where they have just been made."""
    if choices is None:
        return print(f"goes on with {file}", flush=True)
    for one in choices:
        print(one.yaml)
        print(*(f"    {line}" for line in textwrap.wrap(one.why, 110)), sep="\n")
    print(f"written to {file}", flush=True)


def _next(options: argparse.Namespace, folder: Path) -> str:
    from mrp.adapting import AFTER, PLAN

    look = ["mrp", "doctor", str(folder / PLAN), "--folder", str(folder / AFTER)]
    again = ["mrp", "adapt", options.checkpoint, options.data, "--out", str(folder)]
    again += ["--method", options.method] if options.method else []
    again += ["--processes", str(options.planned_for)] if options.planned_for > 1 else []
    return "\n".join(
        [
            "next:",
            f"  {shlex.join(look)}  # what would go wrong, and how long it takes",
            f"  {shlex.join(again)}  # train, and judge before against after",
        ]
    )


def _examine(run: Run, folder: Path, options: argparse.Namespace) -> None:
    """Has the doctor look, keeps his forecast, and ends where the run could not go well."""
    from mrp.adapting import AFTER, PLAN, plan
    from mrp.doctor.case import Case

    found = doctor.look(Case(run, options.planned_for, folder / AFTER), quiet=options.json or options.quiet)
    forecast = {finding.about: finding.found for group, finding in found if group == "forecast"}
    plan.write_result(folder, forecast=forecast)
    progress.say(doctor.check(found, str(folder / PLAN)))


def _train(folder: Path, words: list[str], options: argparse.Namespace) -> float:
    """Trains the recipe to its end, and returns how many seconds that took."""
    from mrp import api
    from mrp.adapting import AFTER, PLAN
    from mrp.ending import FINISHED
    from mrp.processes.launch import launch
    from mrp.status import status_of

    begin, after = time.monotonic(), folder / AFTER
    if options.planned_for == 1:
        api.pretrain(folder / PLAN, *words, folder=after)
        return time.monotonic() - begin
    processes = ["--processes", str(options.planned_for), *(["--quiet"] if options.json or options.quiet else [])]
    code = launch(options.planned_for, ["pretrain", str(folder / PLAN), *words, "--folder", str(after), *processes])
    if code or status_of(after).state != FINISHED:
        sys.exit(code)  # it has said why
    return time.monotonic() - begin


def _print(verdict: Verdict, folder: Path) -> None:
    """Prints every number before and after, and then in one sentence what that comes to."""
    from rich.table import Table

    from mrp.adapting import RESULT

    table = Table("measure", "before", "after", "difference (95 % interval)", "")
    table.title = f"{verdict.images:,} held-out images"
    for change in verdict.changes:
        unit = " %" if change.share else ""
        shown = [f"{change.text(value)}{unit}" for value in (change.before, change.after)]
        table.add_row(change.title, *shown, change.interval, change.word)
    _words.print_table(table)
    for note in verdict.notes:
        print(note)
    print(verdict.sentence)
    print(f"written to {folder / RESULT}")
