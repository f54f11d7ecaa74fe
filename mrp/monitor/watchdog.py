"""Watches every process of a run: reports which one makes no progress, in which phase, and who waits for it."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from mrp import ending, progress
from mrp.files import mapping_in, step_name, write_atomically
from mrp.folder import starts_of
from mrp.locking import is_locked

RANKS, STALLS = ".ranks", "stalls"
JOINS, OPENS, WAITS = "joins the others", "opens the data", "waits for a batch"
# In the order in which a step goes through them: of two processes, the other one waits for the one further back.
PHASES = (
    JOINS, OPENS, "builds the model", "decodes", WAITS, "computes", "measures", "evaluates", "saves", "ends",
)  # fmt: skip
_PER_LIMIT = 4  # checks in the time that a phase may take
_UNSEEN = 75.0  # seconds after which another machine sees a heartbeat at the latest: NFS shows it after 60
_LOOK = 1.0  # seconds between two looks for a process to give up: all of them end before they miss each other
_BEAT = 10.0  # seconds between two heartbeats of the first process, by which others see whether a run is alive


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What one process writes about itself, for the others to read."""

    rank: int
    phase: str
    step: int
    since: float  # when the phase began
    alive: float  # when this was written
    host: str
    pid: int

    @property
    def progress(self) -> tuple[int, int]:
        """Returns how far the process has come, for comparison with others."""
        return self.step, PHASES.index(self.phase)

    def is_alive(self, now: float, limit: float) -> bool:
        """Returns whether the process has written lately, and not that it is given up."""
        return now - self.alive <= limit and self.phase != ending.GIVEN_UP


class Watchdog:
    """The loop reports each phase, which costs an assignment; threads do the rest.

    After `limit` seconds without a new phase one says who waits for whom and dumps all stacks; after `end` seconds
    another ends the process. That one touches no disk, since one that hangs would hold it too. Without a limit nothing
    is watched.
    """

    def __init__(self, folder: Path, rank: int, world: int, limit: float | None, end: float | None) -> None:
        self._folder, self._rank, self._world = folder, rank, world
        self._limit = limit
        self._now = (JOINS if world > 1 else OPENS, 0, time.monotonic())
        self._given_up = False
        self._reported: float | None = None  # the beginning of the stall that has been reported
        self.claimed = False  # whether the folder is this run's by now; until then nothing is written there
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=self._watch, name="watchdog", daemon=True)]
        if end is not None:
            self._threads += [threading.Thread(target=self._watch_end, args=(end,), name="give up", daemon=True)]

    def claim(self) -> None:
        """Notes that the folder is this run's now, and writes at once that this process is alive."""
        self.claimed = True
        if self._limit is not None:
            self._beat()

    def joined(self, rank: int, world: int) -> None:
        """Notes which process this is and of how many, now that they have met."""
        self._rank, self._world = rank, world
        self.at(OPENS, 0)

    def at(self, phase: str, step: int) -> None:
        """Notes that this process enters a phase; entering the same phase again counts as progress too."""
        self._now = (phase, step, time.monotonic())

    def __enter__(self) -> Watchdog:
        if self._limit is not None:
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._closed.set()
        if self._limit is not None:
            for thread in self._threads:
                thread.join()

    def _watch(self) -> None:
        assert self._limit is not None
        interval = self._limit / _PER_LIMIT
        while not self._closed.wait(interval if self._rank else min(interval, _BEAT)):
            self._check(self._limit)

    def _watch_end(self, end: float) -> None:
        while not self._closed.wait(min(_LOOK, end / _PER_LIMIT)):
            self._check_end(end)

    def _check(self, limit: float) -> None:
        """Writes a heartbeat; after `limit` reports who waits for whom."""
        phase, step, since = self._now
        own = self._beat()
        idle = own.alive - own.since
        if idle > limit and self._reported != since:
            self._reported = since
            if phase == JOINS:  # of the others nothing is known yet: the first process of each machine tells
                if os.environ.get("LOCAL_RANK", "0") == "0":
                    progress.tell(f"warning: {self._missing(idle)}; stacks in {self._dump(step)}")
                return
            stacks = self._dump(step)
            lines = explain([own], 1, limit, own.alive)[:1]
            if self.claimed:  # what is in the folder before that is an earlier start's
                lines = explain(self._heartbeats(), self._world, limit, own.alive)
            if self._is_first_alive(limit):
                progress.tell(f"warning: no progress for {idle:.0f} s: {'; '.join(lines)}; stacks in {stacks}")

    def _missing(self, idle: float) -> str:
        """Returns who waits where for processes that have not come."""
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return (
            f"process {self._rank} on {socket.gethostname()} has waited {idle:.0f} s for the others of {self._world} "
            f"to join at {place}; see whether all of them have started and reach it"
        )

    def _beat(self) -> Heartbeat:
        """Writes and returns a heartbeat."""
        phase, step, since = self._now
        idle = time.monotonic() - since  # not by the wall clock, which may be set while a healthy run goes on
        now = time.time()
        phase = ending.GIVEN_UP if self._given_up else phase  # the last word, also where the main thread wakes up
        beat = Heartbeat(self._rank, phase, step, now - idle, now, socket.gethostname(), os.getpid())
        path = self._folder / RANKS / f"rank-{self._rank}.json"
        with contextlib.suppress(OSError):  # a full disk must not end the watch
            if self.claimed:
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, json.dumps(asdict(beat)))
        return beat

    def _check_end(self, end: float) -> None:
        """Ends the process if it has stood still for longer than that."""
        phase, step, since = self._now
        idle = time.monotonic() - since
        if idle > end:
            stands = f"process {self._rank} {phase} (step {step}) since {idle:.0f} s and is ended (machine.give_up)"
            ending.within_seconds(lambda: self._last_words(stands))
            os._exit(ending.STALLED)

    def _last_words(self, stands: str) -> None:
        progress.put(f"mrp: error: {stands}; the same command goes on from the last checkpoint", sys.stderr)
        self._given_up = True
        self._beat()  # the script of a SLURM job reads it
        ending.note(self._folder, ending.FAILED, stands)

    def _heartbeats(self) -> list[Heartbeat]:
        heartbeats = []
        for rank in range(self._world):
            with contextlib.suppress(OSError, ValueError, TypeError):
                values = json.loads((self._folder / RANKS / f"rank-{rank}.json").read_text())
                heartbeats.append(Heartbeat(**values))
        return heartbeats

    def _is_first_alive(self, limit: float) -> bool:
        """Returns whether this is the first process that is alive, which reports for all."""
        alive = [heartbeat.rank for heartbeat in self._heartbeats() if heartbeat.is_alive(time.time(), limit)]
        return self._rank <= min(alive, default=self._rank)

    def _dump(self, step: int) -> Path | str:
        """Writes the stacks of all threads; returns where."""
        if not self.claimed:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            return "the error output"
        folder = self._folder / STALLS
        path = folder / f"{step_name(step)}-rank-{self._rank}.txt"
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


def writer_elsewhere(folder: Path, say: Callable[[str], object]) -> str | None:
    """Returns which process writes this run, by its heartbeat, where no lock can tell; or None.

    Not every network disk carries locks from one machine to another, and some have none. Where the last start has left
    no word of its end, and its heartbeat is fresh, the next one is waited for: clocks of two machines may differ, but
    one that is gone does not write again.
    """
    path = folder / RANKS / "rank-0.json"
    last, starts = mapping_in(path), starts_of(folder)
    if "host" not in last or not starts or "end" in starts[-1]:
        return None
    if last["host"] == socket.gethostname() and is_locked(folder) is not None:  # its lock tells
        return None
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > 2 * _UNSEEN:
            return None
    say(f"{folder}: the last start, on {last['host']}, left no word of its end; looking whether it still goes on")
    deadline = time.monotonic() + _UNSEEN
    while time.monotonic() < deadline:
        time.sleep(min(_LOOK, _UNSEEN))
        beat = mapping_in(path)
        if beat and beat.get("alive") != last.get("alive"):
            return f"process {beat.get('pid')} on {beat.get('host')}"
    return None


def forget(folder: Path) -> None:
    """Removes the heartbeats of an earlier start, whose processes would seem to be silent ones of this start."""
    for heartbeat in (folder / RANKS).glob("rank-*.json"):
        with contextlib.suppress(OSError):
            heartbeat.unlink()


def explain(heartbeats: list[Heartbeat], world: int, limit: float, now: float) -> list[str]:
    """Returns one line per process, with its phase and since when, and one line that says who waits for whom."""
    lines = []
    alive = [beat for beat in heartbeats if beat.is_alive(now, limit)]
    gone = [beat.rank for beat in heartbeats if not beat.is_alive(now, limit)]
    for beat in heartbeats:
        dead = f", without a sign of life for {now - beat.alive:.0f} s" if now - beat.alive > limit else ""
        lines.append(
            f"process {beat.rank} (pid {beat.pid} on {beat.host}) {beat.phase}, step {beat.step}, "
            f"since {now - beat.since:.0f} s{dead}"
        )
    missing = sorted(set(range(world)) - {beat.rank for beat in heartbeats})
    lines += [f"process {rank} has not reported yet" for rank in missing]
    least = min((beat.progress for beat in alive), default=None)
    behind = gone + missing or [beat.rank for beat in alive if beat.progress == least]
    waiting = [beat.rank for beat in alive if beat.rank not in behind]
    if waiting:
        lines.append(f"{_processes(waiting)} wait{'s' * (len(waiting) == 1)} for {_processes(behind)}")
    elif world > 1:
        lines.append("all processes are at the same point")
    return lines


def _processes(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"process {shown}" if len(ranks) == 1 else f"processes {shown}"
