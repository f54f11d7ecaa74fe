"""`mrp submit`: the script that SLURM gets, and what it does when a run ends, with stand-ins for SLURM's programs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from mrp import cli
from mrp.config import ConfigError
from mrp.monitor.watchdog import Watchdog
from mrp.processes import slurm as cluster
from mrp.run import load
from tests.waiting import LONG, until

WORDS = ["submit", "demo", "batch=64", "--nodes", "2", "--gpus", "2", "--time", "2:00:00", "--partition", "fast"]

# Stand-ins in shell, which start at once.
SBATCH = """\
[ $# -gt 0 ] || { echo "no script" >&2; exit 1; }
cp "$1" submitted.sh
echo "Submitted batch job 7"
"""
REFUSING = """\
echo "sbatch: error: invalid partition specified: fast" >&2
echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
exit 1
"""
# Runs one task of the step, as rank 3 of 4, with a Python that only notes what it was told.
SRUN = """\
while [ "$1" != bash ]; do printf '%s\\0' "$1"; shift; done > step
export SLURM_PROCID=3 SLURM_LOCALID=1
[ "$4" = rank ] || exit 99
exec "${@:1:4}" ./python "${@:6}"
"""
PYTHON = """\
printf '%s\\0' "$@" > words
env --null > environment.new && mv environment.new environment
[ -z "$SAVES" ] || mkdir -p "$SAVES"
[ -z "$BEATS" ] || { mkdir -p "$BEATS" && cp -r .ranks "$BEATS"; }
for _ in $(seq $((ENDS_LATE * 6000))); do
  [ ! -e go ] || break
  sleep 0.05
done
exit $CODE
"""
SCONTROL = """\
case $* in
  "show hostnames gpu[3-4]") printf 'gpu3\\ngpu4\\n' ;;
  "show job 7") cat <<END ;;
JobId=7 JobName=demo
   RunTime=00:00:01 TimeLimit=02:00:00 TimeMin=N/A
   StartTime=$STARTED EndTime=2026-11-20T15:00:00 Deadline=N/A
   PreemptEligibleTime=$STARTED PreemptTime=$PREEMPTED
END
  "requeue 7") touch requeued; exit ${REQUEUE_FAILS:-0} ;;
  *) echo "scontrol $*?" >&2; exit 99 ;;
esac
"""
REQUEST = cluster.Request(nodes=2, gpus=2, cpus=3, time="2:00:00")


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}")
    (folder / name).chmod(0o755)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, whose programs come first."""
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "python": PYTHON, "scontrol": SCONTROL}.items():
        program(tmp_path, name, text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


@pytest.fixture
def job(place: Path) -> Path:
    """The place of a job whose script SLURM has; without the command line and the recipe, which take their time."""
    submission = cluster.Submission(REQUEST, ["python", "-m", "mrp", "pretrain", "demo"], place / "runs" / "demo")
    submission.files.mkdir(parents=True)
    (place / "submitted.sh").write_text(submission.script())
    return place


def told(place: Path) -> list[str]:
    """What the task's Python was told."""
    return (place / "words").read_text().split("\0")[:-1]


def surroundings(place: Path) -> dict[str, str]:
    """The environment of the task's Python."""
    lines = (place / "environment").read_text().split("\0")[:-1]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def submit(*more: str) -> None:
    cli.main([*WORDS, *more])


def options(script: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.MULTILINE)
    return dict(found)


def error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(list(words))
    assert left.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0
    return said


def test_a_dry_run_prints_what_is_submitted_and_writes_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.iterdir())
    submit("--dry-run")
    printed = capsys.readouterr().out
    assert sorted(place.iterdir()) == before
    submit()
    assert (place / "submitted.sh").read_text() + "\n" == printed
    said = capsys.readouterr().out
    assert "job 7 was submitted" in said
    assert str(place / "runs/demo.slurm/7_0_log.out") in said


def test_what_is_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--mem", "200G", "--account", "vision", "--qos", "long", "--constraint", "h100", "--cpus-per-gpu", "11"]
    submit(*more, "--notice", "300", "--dry-run")
    asked = options(capsys.readouterr().out)
    assert asked == {
        "nodes": "2", "gpus-per-node": "2", "ntasks-per-node": "2", "cpus-per-task": "11", "time": "120",
        "partition": "fast", "mem": "200G", "account": "vision", "qos": "long", "constraint": "h100",
        "signal": "TERM@300", "requeue": "", "open-mode": "append", "job-name": "demo", "chdir": str(place),
        "output": f"{place}/runs/demo.slurm/%j_0_log.out",
    }  # fmt: skip


def test_what_is_not_asked_for_is_left_to_the_cluster(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(
        [
            "submit",
            "mae_vit_base_in1k",
            "data.train=digits",
            "data.test=digits",
            "--gpus",
            "0",
            "--time",
            "1-12",
            "--dry-run",
        ]
    )
    asked = options(capsys.readouterr().out)
    assert not {"partition", "mem", "account", "qos", "constraint", "gpus-per-node", "array", "wckey"} & asked.keys()
    assert asked["ntasks-per-node"] == "1"
    assert asked["time"] == str(36 * 60)
    assert load("mae_vit_base_in1k").machine.workers == "auto"
    assert asked["cpus-per-task"] == "11"


def test_an_array_has_a_job_for_each_seed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submit("--seeds", "0", "5", "5", "9", "--folder", "my runs/demo")
    script = (place / "submitted.sh").read_text()
    assert options(script)["array"] == "0-2%3"
    assert attempt(place, 0, SLURM_ARRAY_TASK_ID="2") == 0
    read = cli._read(told(place)[2:])
    assert read.folder == str(place / "my runs/demo/seed-9")
    assert load(read.recipe, read.overrides).seed == 9


def attempt(place: Path, code: int, preempted: str = "None", **more: str) -> int:
    """Run the submitted script, as SLURM would, with a run that ends with this code."""
    return start(place, code, preempted, **more).wait(LONG)


def start(place: Path, code: int, preempted: str, **more: str) -> subprocess.Popen[bytes]:
    for left in ("environment", "go"):  # by the attempt before it
        (place / left).unlink(missing_ok=True)
    environment = os.environ | {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "gpu[3-4]", "CODE": str(code)}
    environment |= {
        "PREEMPTED": preempted,
        "ENDS_LATE": "0",
        "SAVES": "",
        "BEATS": "",
        "STARTED": "2026-11-20T14:00:00",
    }
    environment |= more
    return subprocess.Popen(["bash", "submitted.sh"], cwd=place, env=environment)


def test_each_process_gets_its_place(job: Path) -> None:
    assert attempt(job, 0) == 0
    task = surroundings(job)
    assert {name: task[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")} == {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    assert task["MASTER_ADDR"] == "gpu3"
    assert task["MASTER_PORT"] == "10007"
    step = (job / "step").read_text().split("\0")
    assert {"--ntasks=4", "--ntasks-per-node=2", "--cpus-per-task=3", "--kill-on-bad-exit=0"} <= set(step)


def test_workers_that_the_recipe_leaves_to_the_machine_follow_from_the_cpus_of_a_process(place: Path) -> None:
    cli.main(["submit", "demo", "machine.workers=auto", "--time", "60", "--cpus-per-gpu", "6"])
    (recipe,) = place.rglob("recipe-*.yaml")
    assert load(recipe).machine.workers == 5


def test_the_job_trains_what_was_submitted(place: Path) -> None:
    recipe = place / "mine.yaml"
    recipe.write_text("base: demo\nbatch: 32\n")
    cli.main(["submit", "mine.yaml", "seed=4", "--time", "60", "--cpus-per-gpu", "2"])
    submitted = load("mine.yaml", ["seed=4"])
    recipe.write_text("base: demo\nbatch: 99\n")
    assert attempt(place, 0) == 0
    words = told(place)
    assert words[:2] == ["-m", "mrp"]
    read = cli._read(words[2:])
    assert read.verb == "pretrain"
    assert read.folder == str(place / "runs/mine")
    run = load(read.recipe, read.overrides)
    assert run.machine.requeue_code == cluster.REQUEUE
    assert run.identity("data") == submitted.identity("data")


@pytest.mark.parametrize(
    ("code", "requeued"),
    [(0, False), (cluster.REQUEUE, True), (1, False), (2, False), (3, False), (4, True), (137, False), (143, True)],
)
def test_only_a_run_that_was_told_to_stop_or_stood_still_is_requeued(
    job: Path, capfd: pytest.CaptureFixture[str], code: int, requeued: bool
) -> None:
    assert attempt(job, code) == (0 if requeued else code)
    assert not capfd.readouterr().err
    assert (job / "requeued").exists() == requeued


def test_a_job_that_stood_still_is_requeued_though_a_process_had_to_be_killed(job: Path) -> None:
    """Its code, 137, is higher than that of the others, which the watchdog has given up."""
    run = str(job / "runs/demo")
    watched = Watchdog(job, 3, 4, 600.0, 900.0)
    watched.claim()
    assert attempt(job, 137, BEATS=run) == 137, "it goes on"
    watched._last_words("process 3 computes")
    assert attempt(job, 137, BEATS=run) == 0
    (job / "requeued").unlink()
    assert attempt(job, 137) == 137, "the heartbeats are those of the attempt before"
    assert not (job / "requeued").exists()


def test_a_cluster_that_does_not_requeue_sees_the_code(job: Path) -> None:
    assert attempt(job, cluster.REQUEUE, REQUEUE_FAILS="1") == cluster.REQUEUE


def attempts(job: Path, saved: Sequence[str], first: int = 0, preempted: str = "None") -> list[int]:
    """How attempts end that are told to stop, each with this checkpoint ('': none), until one is not requeued."""
    codes = []
    for restarts, name in enumerate(saved, start=first):
        (job / "requeued").unlink(missing_ok=True)
        saves = str(job / "runs/demo/checkpoints" / name) if name else ""
        codes += [attempt(job, cluster.REQUEUE, preempted, SLURM_RESTART_COUNT=str(restarts), SAVES=saves)]
        if not (job / "requeued").exists():
            break
    return codes


@pytest.mark.parametrize(
    ("saved", "between"),
    [
        (["", "", ""], "from step 0 to step 0"),
        (["step-00000400"] * 3, "from step 400 to step 400"),
        (["step-00000008", "step-00000009", "step-00000010"], "from step 8 to step 10"),  # each ends after its first
        (["", "step-00000700", "step-00000700", "step-00000701"], "from step 700 to step 701"),
    ],
)
def test_a_job_that_gets_nowhere_gives_up(
    job: Path, capfd: pytest.CaptureFixture[str], saved: list[str], between: str
) -> None:
    assert attempts(job, saved) == [0] * (len(saved) - 1) + [2]
    said = capfd.readouterr().out.splitlines()
    assert f"{job}/runs/demo: {between} in the last 2 attempts" in said[-1]
    assert "job 7 is not requeued" in said[-1]
    assert "--time" in said[-1]


def test_a_job_that_gets_on_is_requeued_for_ever(job: Path) -> None:
    reached = ["", "", "step-00000003", "step-00000099", ".unfinished-step-00000400"]
    assert attempts(job, reached) == [0] * len(reached)


def test_an_older_job_with_the_same_number_counts_for_nothing(job: Path) -> None:
    assert attempts(job, ["step-00000400"] * 2) == [0, 0]
    assert attempts(job, ["step-00000400"] * 2) == [0, 0]


def test_preemptions_say_nothing_about_a_job(job: Path) -> None:
    reached = ["step-00000400"]
    assert attempts(job, reached * 2) == [0] * 2
    assert attempts(job, reached * 4, first=2, preempted="2026-11-20T15:00:00") == [0] * 4
    assert attempts(job, reached, first=6) == [2]


@pytest.mark.parametrize(
    ("code", "preempted", "minutes", "requeued"),
    [
        (cluster.REQUEUE, "None", 118, False),
        (143, "None", 5, False),
        (cluster.REQUEUE, "2026-11-20T15:00:00", 5, True),
        (143, "2026-11-20T15:00:00", 5, True),
        (137, "None", 120, True),
        (0, "2026-11-20T15:00:00", 120, False),
        (2, "2026-11-20T15:00:00", 120, False),
    ],
)
def test_an_ended_job_comes_back_unless_it_was_cancelled(
    job: Path, code: int, preempted: str, minutes: int, requeued: bool
) -> None:
    started = (datetime.now() - timedelta(minutes=minutes)).isoformat(timespec="seconds")
    ended = start(job, code, preempted, ENDS_LATE="1", STARTED=started)
    assert end(job, ended) == (0 if requeued else code)
    assert (job / "requeued").exists() == requeued


def end(place: Path, job: subprocess.Popen[bytes]) -> int:
    """Signal the shell, as SLURM does, which has to outlive its task; how it ends."""
    until((place / "environment").exists)
    job.send_signal(signal.SIGTERM)
    job.send_signal(signal.SIGUSR1)
    (place / "go").touch()
    return job.wait(LONG)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("30", 1800), ("30:20", 1820), ("2:00:00", 7200), ("1-2", 93600), ("1-2:30", 95400), ("0-0:2:05", 125)],
)
def test_time_limits_are_read_as_slurm_reads_them(limit: str, expected: int) -> None:
    assert cluster.seconds(limit) == expected


@pytest.mark.parametrize("limit", ["", "2h", "1:2:3:4", "1-", "-5", "1d 2h"])
def test_other_time_limits_are_refused(limit: str) -> None:
    with pytest.raises(ConfigError, match="--time"):
        cluster.seconds(limit)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--time", "2", "--notice", "120"], "--time: 2 is 120 seconds"),
        (["--time", "1 day"], "--time: '1 day' was given"),
        (["--time", "60", "--gpus", "3"], "batch: 128 is not a multiple of the 3 processes"),
        (["--time", "60", "--gpus", "some"], "'some' was given; allowed: a number from 0"),
        (["--time", "60", "bacth=3"], "bacth"),
        ([], "--time"),
    ],
)
def test_faults_are_one_line_before_anything_is_submitted(
    place: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert said in error(capsys, "submit", "demo", *words)
    assert not (place / "runs").exists()


def test_what_slurm_refuses_is_passed_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program(place, "sbatch", REFUSING)
    said = error(capsys, *WORDS)
    assert "SLURM refuses the job: invalid partition specified: fast" in said


def test_without_slurm_there_is_the_dry_run(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(place / "nowhere"))
    assert "--dry-run" in error(capsys, *WORDS)
    submit("--dry-run")
    assert "#SBATCH --nodes=2" in capsys.readouterr().out


def test_without_submitit_it_says_what_to_install(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert "pip install 'mrp-vit[cluster]'" in error(capsys, *WORDS, "--dry-run")
