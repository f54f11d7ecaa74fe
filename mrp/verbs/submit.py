"""`mrp submit`."""

from __future__ import annotations

import argparse
import hashlib
import sys
from typing import TYPE_CHECKING

from mrp import imports
from mrp.verbs import _words

if TYPE_CHECKING:
    from mrp.processes.slurm import Request

HELP = "train a recipe as a SLURM job, which is requeued after time-outs and preemptions until it is finished"
EXAMPLE = "mrp submit mae_vit_base_in1k data.train=/data/in1k/train --nodes 2 --gpus 8 --time 12:00:00"

_WORKERS = 10  # decoding processes that CPUs are requested for where the recipe leaves their number to the machine


def words(parser: argparse.ArgumentParser) -> None:
    """Adds a recipe, a folder, and what to ask SLURM for."""
    _words.add_recipe(parser)
    _words.add_folder(parser)
    add = parser.add_argument
    add("--nodes", type=_words.count, default=1, metavar="N", help="how many nodes (default: 1)")
    add(
        "--gpus", type=_words.number, default=1, metavar="G",
        help="GPUs per node, each with a process (default: 1; 0: CPUs)",
    )  # fmt: skip
    add("--time", required=True, metavar="T", help="limit of one attempt: minutes, HH:MM:SS or D-HH:MM:SS")
    add("--partition", metavar="P", help="partition, or several with commas")
    add(
        "--cpus-per-gpu", type=_words.count, metavar="C",
        help=f"CPUs per process (default: machine.workers + 1, where auto counts as {_WORKERS})",
    )  # fmt: skip
    add("--mem", metavar="M", help="memory per node, such as 200G; 0: all of it")
    add("--account", help="account to charge")
    add("--qos", help="quality of service")
    add("--constraint", help="features that the nodes must have")
    add("--notice", type=_words.count, default=120, metavar="S", help="seconds left for saving (default: 120)")
    add("--seeds", type=_words.number, nargs="+", default=[], metavar="SEED", help="one job per seed, as an array")
    add("--dry-run", action="store_true", help="print the script that would be submitted, and submit nothing")


def run(options: argparse.Namespace) -> None:
    """Checks the recipe and its data, then submits the job or prints its script."""
    with imports.undisturbed():
        from mrp.build import open_source
    from mrp.config import ConfigError, dump
    from mrp.processes import slurm
    from mrp.run import load, run_folder

    run = load(options.recipe, options.overrides)
    workers = _WORKERS if run.machine.workers == "auto" else run.machine.workers
    request = _request(options, workers)
    if run.machine.workers == "auto":  # under srun a process cannot tell its own share of a node's cores
        machine = run.machine.model_copy(update={"workers": max(1, request.cpus - 1)})
        run = run.model_copy(update={"machine": machine})
    if run.batch % request.processes:
        raise ConfigError(f"batch: {run.batch} is not a multiple of the {request.processes} processes; change one")
    open_source(run, "train")
    if run.data.test is not None:
        open_source(run, "test")
    folder = run_folder(options.recipe, options.folder).absolute()
    # The job trains what was checked here, even if the recipe's file has changed by the time it starts.
    text = dump(run.resolved())
    kept = slurm.files(folder) / f"recipe-{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"
    command = [sys.executable, "-m", "mrp", "pretrain", str(kept), f"machine.requeue_code={slurm.REQUEUE}"]
    submission = slurm.Submission(request, command, folder)
    if options.dry_run:
        print(submission.script())
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(text, encoding="utf-8")
    job = submission.submit()
    print(f"job {job} was submitted; it writes {folder}, and prints into {slurm.log(folder, job, request.seeds)}")
    print(f"squeue -j {job} shows its state; scancel {job} ends it, and the same mrp submit continues")


def _request(options: argparse.Namespace, workers: int) -> Request:
    from mrp.processes.slurm import Request

    return Request(
        nodes=options.nodes, gpus=options.gpus, cpus=options.cpus_per_gpu or workers + 1, time=options.time,
        notice=options.notice, partition=options.partition, mem=options.mem, account=options.account, qos=options.qos,
        constraint=options.constraint, seeds=tuple(dict.fromkeys(options.seeds)),
    )  # fmt: skip
