"""The first minutes on a GPU: whether all is right, how fast a step is, and how much of that a whole run reaches.

    python tools/gpu.py --out gpu                   # all parts; the same command again does what is still missing
    python tools/gpu.py --out gpu --parts agree fast
    python tools/gpu.py --out rehearsal --rehearse  # all of it, tiny, on a CPU

Each part runs in a process of its own with its own time limit, and writes every result as it comes: OUT/PART.jsonl, and
OUT/table.md over all parts. The exit code is 1 if anything is not as it must be. docs/gpu.md says what has to be there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import gpu_faster
import gpu_right
import gpu_speed
import torch
from gpu_setup import Process, Row, Scale

Part = Callable[[Scale], Iterator[Row]]
# In their order, with the seconds that each may take.
PARTS: dict[str, tuple[Part, int]] = {
    "agree": (gpu_right.agree, 240),
    "graphs": (gpu_right.graphs, 120),
    "kernels": (gpu_right.kernels, 60),
    "syncs": (gpu_right.syncs, 120),
    "faults": (gpu_right.faults, 120),
    "resume": (gpu_right.resume, 300),
    "fast": (gpu_speed.fast, 300),
    "faster": (gpu_faster.faster, 540),
    "more": (gpu_speed.more, 600),
    "whole": (gpu_speed.whole, 300),
    "decoding": (gpu_speed.decoding, 120),
    "learn": (gpu_speed.learn, 540),
    "certify": (gpu_speed.certify, 600),
}
GROUPS = {"right": ("agree", "graphs", "kernels", "syncs", "faults", "resume")}
_LEAST = 15  # seconds that are worth beginning a part for
_DONE = "done"  # the last line of a part that has come to its end


def main() -> None:
    """Runs the parts that are asked for and not done yet, and prints the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--out", type=Path, required=True, help="the folder for results and whatever the parts write")
    words.add_argument("--parts", nargs="+", choices=[*GROUPS, *PARTS], default=list(PARTS))
    words.add_argument("--cifar", type=Path, help="CIFAR-10, for the speedrun of the part learn")
    words.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    words.add_argument(
        "--seconds", type=int, default=540, help="for the whole call; the same command goes on (default: 540)"
    )
    options = words.parse_args()
    deadline = time.perf_counter() + options.seconds
    if not options.rehearse and not torch.cuda.is_available():
        words.error("there is no GPU here; --rehearse runs everything on the CPU")
    if options.rehearse:  # before the first process: the same sums in the same order on every machine
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    out = options.out.absolute()
    scale = Scale(options.rehearse, out / "work", options.cifar and options.cifar.absolute())
    names = [name for part in options.parts for name in GROUPS.get(part, (part,))]
    (out / "work").mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(table(out))
    for name in names:
        left = deadline - time.perf_counter()
        if _DONE not in "".join(_lines(out, name)[-1:]):
            if left < _LEAST:
                print(f"{name}: not begun, for the {options.seconds} s are over; the same command goes on", flush=True)
                continue
            _run(name, scale, out, min(PARTS[name][1], left))
        (out / "table.md").write_text(table(out))
    print((out / "table.md").read_text())
    failed = [row["what"] for name in names for row in _rows(out, name) if row["passed"] is False]
    sys.exit(1 if failed else 0)


def _run(name: str, scale: Scale, out: Path, limit: float) -> None:
    """Runs one part from its beginning, in a process of its own, as long as it may."""
    begin = time.perf_counter()
    (out / f"{name}.jsonl").unlink(missing_ok=True)
    print(f"{name}: at most {limit:.0f} s", flush=True)
    ended = Process(out / f"{name}.log", _write, name, scale, out).wait(limit)
    seconds = time.perf_counter() - begin
    if ended.code == 0:
        _append(out, name, {_DONE: True, "seconds": seconds})
    else:
        reason = ended.text.strip().splitlines()[-1:] or [""]
        failure = f"over its {limit:.0f} s" if ended.code is None else reason[0][:300]
        wrong = ended.code is not None or limit >= PARTS[name][1]  # the end of the call's time is nobody's fault
        _append(
            out, name, asdict(Row(f"{name} was not finished", f"{failure}; see {name}.log", False if wrong else None))
        )
    print(f"{name}: {seconds:.0f} s", flush=True)


def _write(name: str, scale: Scale, out: Path) -> None:
    for row in PARTS[name][0](scale):
        _append(out, name, asdict(row))


def _append(out: Path, name: str, values: dict[str, object]) -> None:
    with (out / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(values) + "\n")


def _lines(out: Path, name: str) -> list[str]:
    path = out / f"{name}.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def _rows(out: Path, name: str) -> list[dict[str, object]]:
    return [row for row in map(json.loads, _lines(out, name)) if _DONE not in row]


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
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
