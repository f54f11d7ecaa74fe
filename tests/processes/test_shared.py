"""Memory that the processes of a node share."""

from __future__ import annotations

import sys

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from mrp.config import ConfigError
from mrp.processes import shared
from mrp.processes.signals import Interrupted
from tests.forked import together


def share(case: str) -> None:
    """Fills memory and prints who has filled it and whether the other sees what one writes."""
    accelerator, filled_here = Accelerator(cpu=True), []

    def fill(memory: Tensor) -> None:
        filled_here.append(1)
        if case == "damaged":
            raise ConfigError("image 3: damaged")
        if case == "interrupted":
            raise Interrupted
        memory.copy_(torch.arange(1000).byte())

    def refused(path: str) -> Tensor:
        raise PermissionError(path)

    if case == "hidden" and accelerator.process_index:  # as where each process is in a container of its own
        shared._mapped = refused  # type: ignore[assignment]
    try:
        memory = shared.filled(1000, fill, accelerator)
    except ConfigError as error:
        print(f"refused {error}", flush=True)
        return
    except Interrupted:
        print("interrupted", flush=True)
        return
    assert torch.equal(memory, torch.arange(1000).byte())
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        memory[0] = 9
    accelerator.wait_for_everyone()
    print(f"filled {sum(filled_here)} shared {memory[0] == 9}", flush=True)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("whole", ["filled 0 shared True", "filled 1 shared True"]),
        ("hidden", ["filled 1 shared False", "filled 1 shared True"]),
        ("damaged", ["refused image 3: damaged"] * 2),
        ("interrupted", ["interrupted"] * 2),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every process fills its own memory")
def test_two_processes_share_what_one_fills(case: str, said: list[str]) -> None:
    done = together(2, share, case)
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    assert sorted(line for each in done for line in each.stdout.splitlines()) == said, [each.stderr for each in done]
