"""What is open while a run trains, and closed when it ends: processes, signals, the watchdog, the folder's lock."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from mrp import ending, progress
from mrp.checkpoint import checkpoints
from mrp.checkpoint.checkpoints import Checkpoint
from mrp.config import ConfigError, FaultElsewhere, Preempted, Stopped
from mrp.environment import versions
from mrp.folder import claim, flat
from mrp.monitor import watchdog
from mrp.monitor.journal import Journal
from mrp.monitor.watchdog import Watchdog
from mrp.prepare.config import Precision
from mrp.processes import faults
from mrp.processes.cost import device_memory
from mrp.processes.join import EVALUATION, from_all, from_first, join
from mrp.processes.signals import Interrupted, Signals
from mrp.processes.transfer import Transfer
from mrp.run import Machine
from mrp.trackers import Section as Track


class Closable(Protocol):
    """Something that has to be closed at the end of a session."""

    def close(self) -> None:
        """Releases what it holds."""


C = TypeVar("C", bound=Closable)
T = TypeVar("T")
LATE = 75.0  # seconds after which a network disk shows a new folder to every machine; NFS does after 60
_TRAINING = threading.Lock()  # held by the session that this process is in


class Session:
    """One process's part in the training of a run, from joining the other processes to leaving them."""

    journal: Journal  # once it is known from which step the run goes on

    def __init__(
        self, accelerator: Accelerator, folder: Path, stack: contextlib.ExitStack, machine: Machine, watch: Watchdog
    ) -> None:
        self.accelerator, self.folder = accelerator, folder
        self.device: torch.device = accelerator.device
        self.main: bool = accelerator.is_main_process
        self.rank: int = accelerator.process_index
        self.processes: int = accelerator.num_processes
        self.to_device = Transfer(self.device)
        self._stack, self._requeue_code = stack, machine.requeue_code
        self.signals = stack.enter_context(Signals(folder if self.main else None, self.say))
        self._watchdog = watch

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, folder: Path, machine: Machine, precision: Precision, long_evaluations: bool = False
    ) -> Iterator[Session]:
        """Joins the other processes; at the end of the block everything is closed in reverse order.

        With `long_evaluations` the processes wait for each other for days, since the first one alone trains heads.
        """
        refuse_launcher_settings(precision)
        if not _TRAINING.acquire(blocking=False):  # two would draw from one generator: neither could be repeated
            raise ConfigError(f"{folder}: this process trains another run already; train each in a process of its own")
        with contextlib.ExitStack() as stack:
            stack.callback(_TRAINING.release)
            if machine.deterministic:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
                before = torch.are_deterministic_algorithms_enabled()  # as others have chosen
                warns = torch.is_deterministic_algorithms_warn_only_enabled()
                stack.callback(torch.use_deterministic_algorithms, before, warn_only=warns)
                torch.use_deterministic_algorithms(True)
            # A compiled step may give the gradient of the patch embedding in another order: it is copied, which is all.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            wrapping = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
            processes = int(os.environ.get("WORLD_SIZE") or 1)
            rank = int(os.environ.get("RANK") or 0) if processes > 1 else 0  # for who never meets the others
            watch = stack.enter_context(Watchdog(folder, rank, processes, machine.watchdog, machine.give_up))
            accelerator = join(wrapping, timeout=EVALUATION if long_evaluations else None)
            watch.joined(accelerator.process_index, accelerator.num_processes)
            stack.enter_context(faults.lost(folder, accelerator.num_processes))
            yield cls(accelerator, folder, stack, machine, watch)

    def closing(self, part: C) -> C:
        """Returns the same object, which is closed at the end of the session."""
        self._stack.callback(part.close)
        return part

    def enter(self, context: AbstractContextManager[Any]) -> None:
        """Enters a context, which is left at the end of the session."""
        self._stack.enter_context(context)

    def open_journal(self, track: Track, resolved: dict[str, Any], start: int, steps: int, batch: int) -> None:
        """Opens what records and shows the numbers of the run, whose steps go on from `start`."""
        self.signals.training = True
        self.journal = self.closing(
            Journal(
                track,
                self.folder,
                resolved,
                start=start,
                steps=steps,
                batch=batch,
                main=self.main,
                say=self.say,
                asked=lambda: self.signals.asked is not None,
            )
        )

    def say(self, text: str) -> None:
        """Prints a line of the run's log, on the main process alone."""
        if self.main:
            progress.tell(text)

    def beat(self, name: str, step: int) -> None:
        """Tells the watchdog that work goes on which need not be finished; raises `Interrupted` if asked to end."""
        self.phase(name, step)
        if self.signals.asked is not None:
            raise Interrupted

    def phase(self, name: str, step: int) -> None:
        """Tells the watchdog what this process does now."""
        self._watchdog.at(name, step)

    def lock(
        self, config: Mapping[str, Any], identity: Mapping[str, Any], defaults: Mapping[str, Any],
        allow: Sequence[str], steps: int, balance: str | None,
    ) -> None:  # fmt: skip
        """Claims the run's folder, on the main process; the others wait until that is done."""

        def claimed() -> None:
            if (other := watchdog.writer_elsewhere(self.folder, self.say)) is not None:
                raise ConfigError(f"{self.folder}: {other} is writing this run; wait for it, or use --folder FOLDER")
            saved = [checkpoint.step for checkpoint in checkpoints.listed(self.folder)]
            lock = claim(
                self.folder, config, identity, allow, defaults=defaults, begun=checkpoints.any_left(self.folder),
                step=max(saved, default=0), steps=steps, processes=self.processes, balance=balance,
                say=self.say,
            )  # fmt: skip
            self.enter(lock)
            self.enter(ending.noted(self.folder, lambda: self.signals.asked))
            faults.forget(self.folder)
            watchdog.forget(self.folder)

        self.together(claimed if self.main else lambda: None)
        self._watchdog.claim()
        self.enter(faults.shared(self.folder, self.processes))
        self.enter(self._left_together())

    @contextlib.contextmanager
    def _left_together(self) -> Iterator[None]:
        """Has all processes wait where they end alike: a launcher ends the others as soon as one has ended.

        The first may still be writing the last checkpoint then.
        """
        try:
            yield
        except (Stopped, Preempted):
            self.accelerator.wait_for_everyone()
            raise

    def together(self, work: Callable[[], T]) -> T:
        """Returns what this process works out; where any process has a fault, all of them end with its line.

        The others would wait for it in their next exchange, and report a lost connection, each with a traceback.
        """
        try:
            found = work()
        except Exception as error:
            line = ending.line_of(error) or (str(error) if isinstance(error, OSError) else None)
            if line is not None:
                from_all(f"process {self.rank} on {socket.gethostname()}: {line}")
            raise
        for text in filter(None, from_all(None)):
            raise FaultElsewhere(text)
        return found

    def least_memory(self) -> int:
        """Returns the bytes that the process with the least memory may use, since all take the same micro-batch."""
        memory = device_memory(self.device, int(os.environ.get("LOCAL_WORLD_SIZE", self.processes)))
        return int(self.accelerator.gather(torch.tensor([memory], device=self.device)).min())

    def newest_checkpoint(self) -> Checkpoint | None:
        """Returns the checkpoint to go on from: the main process checks every file and decides for all."""
        newest = checkpoints.latest(self.folder, self.say) if self.main else None
        step, deadline = from_first(newest.step if newest else 0), time.monotonic() + LATE
        while True:
            by_step = {checkpoint.step: checkpoint for checkpoint in checkpoints.listed(self.folder)}
            if not step or step in by_step or time.monotonic() > deadline:
                return by_step.get(step, max(by_step.values(), default=None))
            time.sleep(0.5)  # saved by another machine a moment ago

    def agree(self, checkpoint: Checkpoint | None, common: Mapping[str, Any]) -> None:
        """Refuses to start where the processes would not train the same run from the same checkpoint.

        Each has read files by itself: on disks of their own, or where a file was written meanwhile, these may differ.
        It comes before the model, since torch would end processes of different models with a traceback.
        """
        step, seal = (checkpoint.step, checkpoint.seal()) if checkpoint else (0, "")
        local = step, flat(common) | {f"checkpoints (other files of step {step})": seal}
        seen = from_all(local)
        steps = sorted({step for step, _ in seen})
        if len(steps) > 1:
            raise ConfigError(
                f"{self.folder}: the processes see different checkpoints (steps {', '.join(map(str, steps))}); the "
                "run's folder must lie on a disk that all machines share, under the same name"
            )
        self._refuse_differences([values for _, values in seen])

    def compare_versions(self) -> None:
        """Warns of a process that has other versions than the first: one machine may have been left behind."""
        if self.processes == 1:
            return
        first, *others = from_all(versions())
        for rank, own in enumerate(others, start=1):  # another mrp may name other packages
            both = {name: (own.get(name, "unknown"), first.get(name, "unknown")) for name in {**first, **own}}
            other = [f"{name} {here} in place of {there}" for name, (here, there) in both.items() if here != there]
            if other:
                self.say(f"warning: process {rank} runs on {', '.join(other)} of the first one; results may differ")
                return

    def any_asked_to_end(self) -> bool:
        """Returns whether any process was asked to end; all get the same answer."""
        return any(from_all(self.signals.asked is not None))

    def agree_on(self, name: str, value: str | None) -> None:
        """Refuses to go on where the processes have read something different under the same name."""
        self._refuse_differences(from_all({name: value}))

    def _refuse_differences(self, seen: Sequence[Mapping[str, Any]]) -> None:
        for rank, values in enumerate(seen):
            differing = [key for key in {**seen[0], **values} if values.get(key) != seen[0].get(key)]
            if differing and differing[0] in ("data.content", "data.test"):
                raise ConfigError(
                    f"{self.folder}: the processes see different data ({differing[0]}); copy one and the same set to "
                    "every machine"
                )
            if differing:
                raise ConfigError(
                    f"{self.folder}: the processes see different {', '.join(differing)}, the first one and process "
                    f"{rank}; all machines must see the same files. Where one has just been written, a minute may do: "
                    "run the same command again"
                )

    def pause(self, step: int) -> Callable[[], None]:
        """Returns what an evaluation calls between batches: it raises `Interrupted` if any process was asked to end."""

        def pause() -> None:
            self.phase("evaluates", step)
            asked = torch.tensor(float(self.signals.asked is not None), device=self.device)
            if bool(self.accelerator.reduce(asked, "sum")):
                raise Interrupted

        return pause

    def leave(self, step: int, steps: int) -> NoReturn:
        """Ends the run, which is saved, because some process was asked to."""
        reason = self.signals.asked or "another process was asked to end"
        by_person = from_first(self.signals.by_file)  # who wrote the file wants no scheduler to start the run again
        self.signals.obeyed()
        raise Preempted(
            f"{self.folder}: {reason}: stopped at step {step} of {steps}; the same command goes on from there",
            0 if by_person else self._requeue_code,
        )


def refuse_launcher_settings(precision: Precision) -> None:
    """Refuses settings of accelerate that a recipe decides: accelerate launches and wraps, and nothing else."""
    chosen = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if chosen not in {"no", precision}:
        raise ConfigError(
            f"precision: the recipe says {precision}, but accelerate was configured with mixed_precision={chosen}; "
            f"set 'mixed_precision: no' there, or give precision={'bf16' if chosen == 'bf16' else 'fp32'}"
        )
    for variable, key in (
        ("GRADIENT_ACCUMULATION_STEPS", "machine.micro_batch"),
        ("DYNAMO_BACKEND", "machine.compile"),
    ):
        if os.environ.get(f"ACCELERATE_{variable}", "no").lower() not in {"no", "1"}:
            raise ConfigError(f"ACCELERATE_{variable} is set, which {key} decides; unset it")
    for name, value in os.environ.items():
        if name.startswith("ACCELERATE_USE_") and name != "ACCELERATE_USE_CPU" and value.lower() in {"1", "true"}:
            raise ConfigError(f"{name} is set, but mrp wraps the model itself; configure accelerate without it")
