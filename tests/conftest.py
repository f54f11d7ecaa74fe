"""What every test stands on: no network, no caches of this user, no leftovers of a launcher, repeatable properties."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from mrp import progress

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",  # the same sums in the same order on every machine, and room for a second process
    "TOKENIZERS_PARALLELISM": "false",
    # The processes that a test starts have no guard: their downloads meet a closed port.
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "no_proxy": "localhost,127.0.0.1,::1",
}
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
LAUNCHERS = ("ACCELERATE_", "FSDP_", "SLURM_", "TORCHELASTIC_")
THIS_MACHINE = ("localhost", "::1", "0.0.0.0", "::", "", socket.gethostname())

hypothesis.settings.register_profile(
    "mrp", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)  # nothing fails because the machine is busy
hypothesis.settings.load_profile("mrp")


class NetworkError(Exception):
    """A test reached for the network."""


def pytest_configure(config: pytest.Config) -> None:
    for name in list(os.environ):
        if name in LAUNCHER or name.startswith(LAUNCHERS) or name.lower().endswith("_proxy"):
            del os.environ[name]
    os.environ.update(OFFLINE | {name.upper(): OFFLINE[name] for name in OFFLINE if name.endswith("_proxy")})
    caches = tempfile.mkdtemp(prefix="mrp-tests-")  # not TemporaryDirectory, which a forked process would remove
    config.add_cleanup(partial(shutil.rmtree, caches, ignore_errors=True))
    os.environ.update(HF_HOME=caches, TORCH_HOME=caches)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of the GPU skip themselves where there is none; where processes share the files, the long ones begin."""
    if hasattr(config, "workerinput"):
        length = Counter[Path]()  # about, in quick tests
        for item in items:
            length[item.path] += 50 if item.get_closest_marker("slow") else 1
        items.sort(key=lambda item: (-length[item.path], item.path))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        for item in marked:
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Some plugin may have loaded OpenMP before OMP_NUM_THREADS was set; sums in another order differ in a last bit."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def loud() -> None:
    """A command with --quiet in an earlier test keeps nothing from being said in this one."""
    progress.silence(False)


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Only this machine answers: a hidden download fails at its first look-up."""

    def check(host: Any) -> None:
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and name not in THIS_MACHINE and not name.startswith("127."):
            raise NetworkError(f"a test reached for {name}; tests use nothing but this machine")

    def guarded(original: Any) -> Any:
        def connect(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                check(address[0])
            return original(self, address)

        return connect

    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        check(host)
        return look_up(host, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[DeviceMesh]:
    """A group of one process, over which parameters are sharded."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()
