"""SLURM: the script of a job that goes on after time-outs, preemptions and lost nodes until its run is finished.

One task is one process of the run, started by srun. So every process receives SLURM's signals itself; torchrun, as a
launcher in between, would end it 30 seconds later, perhaps before its checkpoint is written.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrp.checkpoint.sealed import PREFIX
from mrp.config import ConfigError
from mrp.ending import GIVEN_UP, STALLED

REQUEUE = 85  # a run that was told to stop ends with this code; Linux calls it ERESTART
SUFFIX = ".slurm"  # of the folder of a job's files
PATIENCE = 3  # attempts in a row; with fewer steps than this between the first's end and the last's, a job gives up
_LIMIT = re.compile(r"(?:(?P<days>\d+)-(?P<of_day>\d+(?::\d+){0,2})|(?P<plain>\d+(?::\d+){0,2}))")
_UNITS = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}  # MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS
_UNITS_OF_DAY = {1: (3600,), 2: (3600, 60), 3: (3600, 60, 1)}  # after DAYS-

_BODY = """\
set -u
{seeds}run={run}
# The processes find each other at the first node; the port differs between jobs that share it.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT WORLD_SIZE={world} LOCAL_WORLD_SIZE={per_node}
export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{threads}}}"

ended=
trap 'ended=yes' TERM  # the whole job is ended: cancelled, preempted, or over its time
trap : USR1  # the notice is for the processes, which save and end; this shell outlives it

began={files}/"$SLURM_JOB_ID.began"
touch "$began"
# A process that has ended leaves the others five minutes: for a last checkpoint, or to notice that it has failed.
srun --ntasks={world} --ntasks-per-node={per_node} --cpus-per-task={cpus} --distribution=block \\
  --kill-on-bad-exit=0 --wait=300 --unbuffered \\
  bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID; exec "$@"' rank \\
  {command}
code=$?

case $code in
  0) exit 0 ;;  # finished, or ended for good by a STOP file
  2|3) exit $code ;;  # a fault in the recipe or the data, or an incident: the next attempt would end in the same way
esac
again= preempted= job=$(scontrol show job "$SLURM_JOB_ID")
started=$(sed -n 's/^ *StartTime=\\([^ ]*\\).*/\\1/p' <<< "$job")  # a prolog comes before this script
if grep -q 'PreemptTime=[0-9]' <<< "$job"; then
  again=yes preempted=yes
elif [ -z "$ended" ]; then
  # Told to stop, and saved; told before it could listen; or given up by the watchdog, perhaps for a node's fault. A
  # process that hangs in a driver or on a disk srun has to kill: it returns the highest code, which is that one's.
  # Then the heartbeats tell, except those that an earlier attempt has left.
  case $code in
    {requeue}|143|{stalled}) again=yes ;;
    *) given_up=$(
        find "$run/.ranks" -newer "$began" -name 'rank-*.json' -exec grep -l '"{given_up}"' {{}} + 2> /dev/null
      )
      [ -z "$given_up" ] || again=yes ;;
  esac
elif [ $(($(date +%s) - $(date --date="$started" +%s))) -ge {limit} ]; then
  again=yes  # over its time, and not cancelled: what somebody has cancelled stays so
fi
[ -n "$again" ] || exit $code

attempt=$((${{SLURM_RESTART_COUNT:-0}} + 1))
reached={files}/"$SLURM_JOB_ID.reached"
[ $attempt -gt 1 ] || rm -f "$reached"  # of an older job with this number
if [ -z "$preempted" ]; then  # it had all its time: is that enough for more than to start and to end?
  step=$(ls "$run/checkpoints" 2> /dev/null | sed -n 's/^{prefix}0*\\([0-9][0-9]*\\)$/\\1/p' | sort -n | tail -n 1)
  step=${{step:-0}}
  echo $step >> "$reached"
  before=$(tail -n {patience} "$reached" | head -n 1)
  if [ "$(wc -l < "$reached")" -ge {patience} ] && [ $((step - before)) -lt {patience} ]; then
    echo "mrp: $run: from step $before to step $step in the last $(({patience} - 1)) attempts," \\
      "which hardly do more than start: job $SLURM_JOB_ID is not requeued; submit it again with more --time"
    exit 2
  fi
fi
echo "mrp: attempt $attempt of job $SLURM_JOB_ID was ended early (code $code): requeued"
scontrol requeue "$SLURM_JOB_ID" && exit 0
exit $code"""


@dataclass(frozen=True, slots=True)
class Request:
    """The resources that a job requests from SLURM."""

    nodes: int
    gpus: int  # of each node; 0: one process per node, without a GPU
    cpus: int  # of each process
    time: str
    notice: int = 120  # seconds between the warning and the time limit: enough for a checkpoint
    partition: str | None = None
    mem: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    seeds: Sequence[int] = ()

    def __post_init__(self) -> None:
        limit = seconds(self.time)
        if limit <= self.notice:
            raise ConfigError(
                f"--time: {self.time} is {limit} seconds, and the run is told to stop {self.notice} seconds before its "
                "end; ask for more time, or give a smaller --notice"
            )

    @property
    def per_node(self) -> int:
        """Returns the number of processes of each node: one per GPU."""
        return max(1, self.gpus)

    @property
    def processes(self) -> int:
        """Returns the number of processes of the whole job."""
        return self.nodes * self.per_node


def seconds(limit: str) -> int:
    """Returns the seconds of a time limit as SLURM writes it."""
    match = _LIMIT.fullmatch(limit)
    if not match:
        raise ConfigError(
            f"--time: '{limit}' was given; allowed, as SLURM writes it: MINUTES, HOURS:MINUTES:SECONDS, DAYS-HOURS or "
            "DAYS-HOURS:MINUTES:SECONDS"
        )
    parts = (match["of_day"] or match["plain"]).split(":")
    units = (_UNITS_OF_DAY if match["days"] else _UNITS)[len(parts)]
    return int(match["days"] or 0) * 86400 + sum(int(part) * unit for part, unit in zip(parts, units, strict=True))


def body(request: Request, command: Sequence[str], folder: Path) -> str:
    """Returns the job's script; `command` trains, and the script adds its folder and its seed."""
    seeds, run = "", shlex.quote(str(folder))
    words = [*map(shlex.quote, command)]
    if request.seeds:
        seeds = f"SEEDS=({' '.join(map(str, request.seeds))})\nseed=${{SEEDS[$SLURM_ARRAY_TASK_ID]}}\n"
        words, run = [*words, '"seed=$seed"'], f'{run}/seed-"$seed"'
    return _BODY.format(
        seeds=seeds, world=request.processes, per_node=request.per_node, threads=request.cpus, cpus=request.cpus,
        command=" ".join([*words, "--folder", '"$run"']), run=run, files=shlex.quote(str(files(folder))),
        requeue=REQUEUE, stalled=STALLED, given_up=GIVEN_UP, limit=seconds(request.time), prefix=PREFIX,
        patience=PATIENCE,
    )  # fmt: skip


class Submission:
    """A job that submitit writes and submits; its files are in a folder beside the run's."""

    def __init__(self, request: Request, command: Sequence[str], folder: Path) -> None:
        try:
            from submitit import SlurmExecutor
        except ModuleNotFoundError:
            raise ConfigError(
                "mrp submit needs submitit, which is not installed; pip install 'mrp-vit[cluster]'"
            ) from None

        class Executor(SlurmExecutor):
            @classmethod
            def affinity(cls) -> int:
                return 1  # so that the script can be shown where there is no SLURM

        self.files = files(folder)
        self._body = body(request, command, folder)
        self._executor = Executor(self.files)
        self._executor.update_parameters(**_parameters(request, folder.name))
        if request.seeds:
            self._executor.parameters["map_count"] = len(request.seeds)  # submitit's word for the size of an array

    def script(self) -> str:
        """Returns the script."""
        # submitit's own `submit` would pickle a function and read the pickle on the node; our job is a shell script.
        text: str = self._executor._make_submission_file_text(self._body, "")
        return text

    def submit(self) -> str:
        """Submits the script to SLURM; returns the job's number."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if shutil.which("sbatch") is None:
            raise ConfigError("there is no sbatch here; run mrp submit where SLURM's commands are, or use --dry-run")
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the error repeats what sbatch says there
                return str(self._executor._submit_command(self._body).job_id)
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            raise ConfigError(f"SLURM refuses the job: {_reason(error)}") from None


def files(folder: Path) -> Path:
    """Returns the folder of a job's script, recipe and output: beside the run's folder, which is the run's alone."""
    return folder.with_name(f"{folder.name}{SUFFIX}")


def log(folder: Path, job: str, seeds: Sequence[int]) -> Path:
    """Returns the file of what the job prints, over all its attempts."""
    return files(folder) / (f"{job}_*_0_log.out" if seeds else f"{job}_0_log.out")


def _parameters(request: Request, name: str) -> Mapping[str, Any]:
    """Returns the request under submitit's names."""
    optional = {
        "partition": request.partition,
        "account": request.account,
        "qos": request.qos,
        "constraint": request.constraint,
        "gpus_per_node": request.gpus or None,
    }
    return {
        "job_name": name,
        "time": math.ceil(seconds(request.time) / 60),  # SLURM counts minutes
        "nodes": request.nodes,
        "ntasks_per_node": request.per_node,
        "cpus_per_task": request.cpus,
        "stderr_to_stdout": True,
        "use_srun": False,  # the script starts the processes itself, and looks at how they end
        "wckey": None,
        # Not B: the processes receive it, and the shell does not. TERM: SLURM signals every process of a task, and what
        # Python starts beside a rank (multiprocessing's resource tracker) ignores this one, and would die of USR1.
        "additional_parameters": {"signal": f"TERM@{request.notice}", "requeue": True, "chdir": str(Path.cwd())}
        | ({"mem": request.mem} if request.mem else {}),
    } | {key: value for key, value in optional.items() if value is not None}


def _reason(error: Exception) -> str:
    """Returns the message of sbatch on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines if line.startswith("sbatch: ")]
    return "; ".join(said or lines[-1:])
