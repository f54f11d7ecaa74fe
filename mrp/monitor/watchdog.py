"""A watch over every process of a run: which one stands still, in what, and who waits for it."""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

RANKS, STALLS = ".ranks", "stalls"
STALLED = 4  # the exit code of a process that has been given up
# In the order in which a step goes through them: of two processes, the one further back is waited for.
PHASES = (
    "opens the data", "builds the model", "waits for a batch", "computes", "measures", "evaluates", "saves", "ends",
)  # fmt: skip
_OFTEN = 4  # signs of life in the time that a step may take


@dataclass(frozen=True, slots=True)
class Sign:
    """What one process says of itself."""

    rank: int
    phase: str
    step: int
    since: float  # when the phase began
    alive: float  # when this was written
    host: str
    pid: int

    @property
    def place(self) -> tuple[int, int]:
        """How far it has come."""
        return self.step, PHASES.index(self.phase)


class Watchdog:
    """Told of each phase by the loop, at the price of an assignment; a thread does the rest.

    After `limit` seconds without a new phase it says who waits for whom and dumps all stacks; after `end` seconds it
    ends the process. Without a limit nothing is watched.
    """

    def __init__(self, folder: Path, rank: int, world: int, limit: float | None, end: float | None) -> None:
        self._folder, self._rank, self._world = folder, rank, world
        self._limit, self._end = limit, end
        self._now = (PHASES[0], 0, time.monotonic())
        self._said: float | None = None  # the beginning of the stall that has been spoken of
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def at(self, phase: str, step: int) -> None:
        """Notes that this process enters a phase; noting the same phase again counts as progress too."""
        self._now = (phase, step, time.monotonic())

    def __enter__(self) -> Watchdog:
        if self._limit is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._closed.set()
        if self._limit is not None:
            self._thread.join()

    def _watch(self) -> None:
        assert self._limit is not None
        while not self._closed.wait(min(self._limit, self._end or self._limit) / _OFTEN):
            self._check(self._limit)

    def _check(self, limit: float) -> None:
        """Writes a sign of life; after a stall says who waits for whom, and in the end ends the process."""
        phase, step, since = self._now
        still = time.monotonic() - since  # a clock that is set anew must not end a healthy run
        now = time.time()
        self._write(Sign(self._rank, phase, step, now - still, now, socket.gethostname(), os.getpid()))
        if still > limit and self._said != since:
            self._said = since
            stacks = self._dump(step)
            lines = explain(self._signs(), self._world, limit, now)
            if self._speaks(limit):
                print(f"warning: no progress for {still:.0f} s: {'; '.join(lines)}; stacks in {stacks}", flush=True)
        if self._end is not None and still > self._end:
            print(
                f"mrp: error: process {self._rank} {phase} (step {step}) since {still:.0f} s and is ended "
                "(machine.give_up); the same command goes on from the last checkpoint",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            os._exit(STALLED)

    @property
    def _claimed(self) -> bool:
        """Whether the folder is a run's: in any other, what is written would be in the way of the claim."""
        return (self._folder / "identity.json").exists()

    def _write(self, sign: Sign) -> None:
        """Best effort: a full disk must not end the watch, and before the folder is claimed there is no place."""
        if not self._claimed:
            return
        path = self._folder / RANKS / f"rank-{self._rank}.json"
        try:
            path.parent.mkdir(exist_ok=True)
            new = path.with_suffix(".tmp")
            new.write_text(json.dumps(asdict(sign)))
            new.replace(path)
        except OSError:
            return

    def _signs(self) -> list[Sign]:
        found = []
        for rank in range(self._world):
            try:
                values = json.loads((self._folder / RANKS / f"rank-{rank}.json").read_text())
                found.append(Sign(**values))
            except (OSError, ValueError, TypeError):
                continue
        return found

    def _speaks(self, limit: float) -> bool:
        """One process speaks for all: the first that is alive."""
        awake = [sign.rank for sign in self._signs() if time.time() - sign.alive < limit]
        return self._rank <= min(awake, default=self._rank)

    def _dump(self, step: int) -> Path | str:
        """Where the stacks of all threads are now."""
        if not self._claimed:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            return "the error output"
        folder = self._folder / STALLS
        path = folder / f"step-{step:08d}-rank-{self._rank}.txt"
        try:
            folder.mkdir(exist_ok=True)
            with path.open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}: process {self._rank} {self._now[0]}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            return "the error output"
        return folder


def explain(signs: list[Sign], world: int, limit: float, now: float) -> list[str]:
    """Who is where since when, and who waits for whom, a line each."""
    lines = []
    silent = [sign for sign in signs if now - sign.alive > limit]
    awake = [sign for sign in signs if now - sign.alive <= limit]
    for sign in signs:
        dead = f", without a sign of life for {now - sign.alive:.0f} s" if sign in silent else ""
        lines.append(
            f"process {sign.rank} (pid {sign.pid} on {sign.host}) {sign.phase}, step {sign.step}, "
            f"since {now - sign.since:.0f} s{dead}"
        )
    missing = sorted(set(range(world)) - {sign.rank for sign in signs})
    lines += [f"process {rank} has never been heard of" for rank in missing]
    last = min((sign.place for sign in awake), default=None)
    behind = [sign.rank for sign in silent] + missing or [sign.rank for sign in awake if sign.place == last]
    waiting = [sign.rank for sign in awake if sign.rank not in behind]
    if waiting:
        lines.append(f"{_processes(waiting)} wait{'s' * (len(waiting) == 1)} for {_processes(behind)}")
    elif world > 1:
        lines.append("all processes stand at the same place")
    return lines


def _processes(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"process {shown}" if len(ranks) == 1 else f"processes {shown}"
