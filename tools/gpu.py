"""The first minutes on a GPU: whether all is right, how fast a step is, and how much of that a whole run reaches.

    python tools/gpu.py --out gpu                   # all parts; the same command again does what is still missing
    python tools/gpu.py --out gpu --parts agree fast
    python tools/gpu.py --out rehearsal --rehearse  # all of it, tiny, without a GPU on the CPU

Each part runs in processes of its own with its own time limit, those that measure no time beside each other. Every
result is written as it comes: OUT/PART.jsonl, OUT/table.md over all parts, and OUT/gpu.tar.gz, the one file to copy
back. The exit code is 1 if anything is not as it must be. docs/gpu.md says what has to be there.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shlex
import shutil
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gpu_faster
import gpu_right
import gpu_speed
import torch
from gpu_setup import Process, Row, Scale

Part = Callable[[Scale], Iterator[Row]]
# In their order, with the seconds that each may take.
PARTS: dict[str, tuple[Part, int]] = {
    "agree": (gpu_right.agree, 240),
    "graphs": (gpu_right.graphs, 240),
    "kernels": (gpu_right.kernels, 120),
    "syncs": (gpu_right.syncs, 240),
    "faults": (gpu_right.faults, 240),
    "resume": (gpu_right.resume, 240),
    "warm": (gpu_speed.warm, 240),
    "fast": (gpu_speed.fast, 300),
    "whole": (gpu_speed.whole, 300),
    "decoding": (gpu_speed.decoding, 120),
    "faster": (gpu_faster.faster, 540),
    "certify": (gpu_speed.certify, 600),
    "learn": (gpu_speed.learn, 540),
    "more": (gpu_speed.more, 600),
}
GROUPS = {"right": ("agree", "graphs", "kernels", "syncs", "faults", "resume")}
TOGETHER = (*GROUPS["right"], "warm")  # they measure no time, so they run beside each other
DIVIDED = {
    "agree": (11, 2),
    "graphs": (4, 1),
    "warm": (2, 1),
}  # over so many processes, and in a rehearsal over so many
_LEAST = 15  # seconds that are worth beginning a part for
_DONE = "done"  # marks the line that says how a part has ended
_LOG = 1 << 18  # bytes of the end of a log that are copied back


def main() -> None:
    """Runs the parts that are asked for and not done yet, and prints the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--out", type=Path, required=True, help="the folder for results and whatever the parts write")
    words.add_argument("--parts", nargs="+", choices=[*GROUPS, *PARTS], default=list(PARTS))
    words.add_argument("--cifar", type=Path, help="CIFAR-10, for the speedrun of the part learn")
    words.add_argument("--rehearse", action="store_true", help="tiny, and on the CPU where there is no GPU")
    words.add_argument(
        "--seconds", type=int, default=540, help="for the whole call; the same command goes on (default: 540)"
    )
    options = words.parse_args()
    deadline = time.perf_counter() + options.seconds
    if not options.rehearse and not torch.cuda.is_available():
        words.error("there is no GPU here; --rehearse runs everything on the CPU")
    header = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")  # Debian's default is another folder
    if not any(map(shutil.which, ("gcc", "clang"))) or not header.is_file():
        print("warning: a C compiler or Python's headers (Python.h) are missing: nothing can be compiled", flush=True)
    os.environ.pop("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", None)  # of NVIDIA's images; mrp's float32 is float32
    out = options.out.absolute()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(out / "work" / "compiled"))  # of all parts and calls
    if options.rehearse:  # before the first process: the same sums in the same order on every machine
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels in Triton on a CPU
    scale = Scale(options.rehearse, out / "work", options.cifar and options.cifar.absolute())
    names = [name for part in options.parts for name in GROUPS.get(part, (part,))]
    (out / "work").mkdir(parents=True, exist_ok=True)
    keep(out)
    waiting = [name for name in names if not _is_done(out, name)]
    together = [name for name in waiting if name in TOGETHER]
    for some in ([together] if together else []) + [[name] for name in waiting if name not in TOGETHER]:
        if (left := deadline - time.perf_counter()) < _LEAST:
            break
        _run(some, scale, out, left)
    print((out / "table.md").read_text())
    if missing := [name for name in names if not _is_done(out, name)]:
        print(f"not done: {', '.join(missing)}; the same command goes on: {shlex.join(['python', *sys.argv])}")
    failed = [row["what"] for name in names for row in _rows(out, name) if row["passed"] is False]
    sys.exit(1 if failed else 0)


def _run(names: list[str], scale: Scale, out: Path, left: float) -> None:
    """Runs some parts beside each other, each in processes of its own, as long as it may."""
    begin, running = time.perf_counter(), dict[str, list[Process]]()
    limits = {name: min(scale.seconds(PARTS[name][1]), left) for name in names}
    for name, limit in limits.items():
        print(f"{name}: at most {limit:.0f} s", flush=True)
        running[name] = _started(name, scale, out)
    try:
        while running:
            seconds = time.perf_counter() - begin
            for name, processes in [*running.items()]:
                if seconds > limits[name] or not any(process.alive() for process in processes):
                    _finish(name, running.pop(name), out, seconds, limits[name], limits[name] == left)
            time.sleep(0.05)
    finally:
        for process in (process for processes in running.values() for process in processes):
            process.kill()


def _started(name: str, scale: Scale, out: Path) -> list[Process]:
    """Starts a part; what it has found before is not done again, unless something of the same name was wrong."""
    rows = [row for row in _lines(out, name) if _DONE not in row]
    wrong = {_subject(row) for row in rows if row["passed"] is False}
    kept = [row for row in rows if _subject(row) not in wrong]
    (out / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in kept))
    scale = replace(scale, known=frozenset(str(row["what"]) for row in kept))
    count = scale.of(*DIVIDED.get(name, (1, 1)))
    shares = [replace(scale, share=(number, count)) for number in range(count)]
    logs = [out / f"{name}{f'-{number}' if number else ''}.log" for number in range(count)]
    return [Process(log, _write, name, share, out) for log, share in zip(logs, shares, strict=True)]


def _subject(row: dict[str, Any]) -> str:
    """Returns what a result is about, such as the method."""
    return str(row["what"]).partition(": ")[0]


def _finish(name: str, processes: list[Process], out: Path, seconds: float, limit: float, last: bool) -> None:
    """Ends a part, and writes down how it has ended; the end of the whole call's time is nobody's fault."""
    ended = [process.wait(0) for process in processes]
    failed = next((each for each in ended if each.code != 0), None)
    line: dict[str, object] = {_DONE: failed is None, "seconds": seconds}
    if failed is not None:
        reason = failed.text.strip().splitlines()[-1:] or [""]
        failure = f"over its {limit:.0f} s" if failed.code is None else reason[0][:300]
        wrong = failed.code is not None or not last
        line |= asdict(Row(f"{name} was not finished", f"{failure}; see {name}.log", False if wrong else None))
    _append(out, name, line)
    keep(out)
    print(f"{name}: {seconds:.0f} s", flush=True)


def _write(name: str, scale: Scale, out: Path) -> None:
    for row in PARTS[name][0](scale):
        _append(out, name, asdict(row))


def _append(out: Path, name: str, values: dict[str, object]) -> None:
    with (out / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(values) + "\n")


def _lines(out: Path, name: str) -> list[dict[str, object]]:
    path = out / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _is_done(out: Path, name: str) -> bool:
    return any(line.get(_DONE) for line in _lines(out, name))


def _rows(out: Path, name: str) -> list[dict[str, object]]:
    """Returns the results of a part, the newest of each kind."""
    return [*{line["what"]: line for line in _lines(out, name) if "what" in line}.values()]


def keep(out: Path) -> None:
    """Writes the table, and one file with all results and the ends of all logs."""
    (out / "table.md").write_text(table(out))
    unfinished = out / "gpu.tar.gz.new"
    with tarfile.open(unfinished, "w:gz") as archive:
        for path in sorted([*out.glob("*.*"), *(out / "work").glob("*.*")]):
            if path.suffix in (".md", ".jsonl", ".json", ".txt", ".log") and path.is_file():
                content = path.read_bytes()[-_LOG:] if path.suffix == ".log" else path.read_bytes()
                entry = tarfile.TarInfo(str(path.relative_to(out)))
                entry.size, entry.mtime = len(content), int(path.stat().st_mtime)
                archive.addfile(entry, io.BytesIO(content))
    unfinished.replace(out / "gpu.tar.gz")


def table(out: Path) -> str:
    """Returns all results so far as a table."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    lines = [f"{device}, torch {torch.__version__}, Python {platform.python_version()}", ""]
    lines += ["| part | what | result | |", "|---|---|---|---|"]
    verdicts = {None: "", True: "right", False: "**wrong**"}
    for name in PARTS:
        for row in _rows(out, name):
            value = str(row["value"]).replace("|", "/").replace("\n", " ")
            lines.append(f"| {name} | {row['what']} | {value} | {verdicts[row['passed']]} |")  # type: ignore[index]
    ends = [(name, line["seconds"]) for name in PARTS for line in _lines(out, name) if line.get(_DONE)]
    lines += ["", f"Seconds: {', '.join(f'{name} {seconds:.0f}' for name, seconds in ends)}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
