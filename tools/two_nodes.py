"""Trains on two network namespaces as two nodes, with torchrun; a node is killed and comes back.

    sudo .venv/bin/python tools/two_nodes.py FOLDER

Three runs of the same recipe, one process per node: undisturbed; the second node killed, which rejoins; the first node
killed, which hosts the rendezvous, so that the whole job is started again. All three must end with the same weights,
bit for bit. Linux, root and `ip` are needed (namespaces and a veth pair, removed at the end); about three minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mrp.checkpoint import checkpoints

NODES = ("mrp-one", "mrp-two")  # the namespaces
ADDRESSES = ("10.213.77.1", "10.213.77.2")
PORT = 29400
PATIENCE = 300.0  # seconds for anything to happen
RECIPE = [
    "demo", "length=240 steps", "optim.warmup=10 steps", "batch=64", "backbone.depth=2", "backbone.width=32",
    "objective.decoder.depth=1", "checkpoint.every=20 steps", "track.every=20",
]  # fmt: skip
KILL_AT = 60  # once this step is saved


class Node:
    """A namespace, and the torchrun that runs in it."""

    def __init__(self, index: int, folder: Path) -> None:
        self.name, self._address = NODES[index], ADDRESSES[index]
        self._hosts = index == 0  # given, since torchrun guesses it from the machine's name, which both nodes share
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts one process of the run, and the agent that watches it."""
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
        # Left on, a survivor of rank 0 does not tell a newcomer where it is, and both wait for each other (torch 2.15).
        environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        words = [
            "ip", "netns", "exec", self.name, sys.executable, "-m", "torch.distributed.run",
            "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=two-nodes",
            f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}", f"--rdzv-conf=is_host={self._hosts}",
            f"--local-addr={self._address}",
            "-m", "mrp", "pretrain", *RECIPE, "--folder", str(self._folder),
        ]  # fmt: skip
        with self._folder.with_name(f"{self._folder.name}-{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                words, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def code(self) -> int | None:
        """Returns the agent's exit code, once it has ended."""
        assert self._process is not None
        return self._process.poll()

    def kill(self) -> int:
        """Kills everything in the namespace, as when a machine loses its power; returns the number of processes."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)  # noqa: S607
        for process in listed.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        return len(listed.stdout.split())


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Makes two namespaces with a cable between them."""
    taken = [name for name in NODES if Path("/run/netns", name).exists()]
    if taken:
        sys.exit(f"the network namespace {taken[0]} exists already; end what uses it, then: ip netns del {taken[0]}")
    try:
        for name in NODES:
            ip("netns", "add", name)
            names_of(name).mkdir(parents=True)  # `ip netns exec` lays it over /etc: no name server that never answers
            (names_of(name) / "resolv.conf").touch()
            (names_of(name) / "hosts").write_text(
                "127.0.0.1 localhost\n" + "".join(map("{} {}\n".format, ADDRESSES, NODES))
            )
        ip("link", "add", "eth0", "netns", NODES[0], "type", "veth", "peer", "name", "eth0", "netns", NODES[1])
        for name, address in zip(NODES, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in NODES:
            if Path("/run/netns", name).exists():
                ip("netns", "del", name)
            shutil.rmtree(names_of(name), ignore_errors=True)


def names_of(node: str) -> Path:
    """Returns the folder with the node's own /etc/hosts and /etc/resolv.conf."""
    return Path("/etc/netns", node)


def ip(*words: str) -> None:
    """Runs one command of iproute2."""
    subprocess.run(["ip", *words], check=True)  # noqa: S607


def until(condition: Callable[[], bool], what: str) -> None:
    """Waits until something is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"waited {PATIENCE:.0f} s in vain for {what}; the logs lie beside the run's folder")
        time.sleep(0.1)


def saved(folder: Path) -> int:
    """Returns the step of the newest checkpoint."""
    checkpoint = checkpoints.newest(folder)
    return checkpoint.step if checkpoint else 0


def weights(folder: Path) -> str:
    """Returns a digest of the tensors of the newest checkpoint, the optimizer's included."""
    checkpoint = checkpoints.newest(folder)
    assert checkpoint is not None
    digest = hashlib.sha256()
    for path in sorted(checkpoint.folder.glob("*.safetensors")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def play(folder: Path, killed: int | None) -> str:
    """Trains one run to its end; returns the digest of its weights."""
    nodes = [Node(index, folder) for index in range(2)]
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"  {time.monotonic() - began:6.1f} s  {text}", flush=True)

    try:
        for node in nodes:
            node.start()
        if killed is not None:
            until(lambda: saved(folder) >= KILL_AT, f"step {KILL_AT}")
            lost, other = nodes[killed], nodes[1 - killed]
            say(f"{lost.name}: {lost.kill()} processes killed after step {saved(folder)} was saved")
            if killed == 0:
                until(lambda: other.code() is not None, "the second node to notice")
                say(f"{other.name}: ended with code {other.code()}, as the rendezvous is gone")
                other.start()
            lost.start()
            say("started again" if killed == 0 else f"{lost.name}: started again, joins the other")
        until(lambda: all(node.code() is not None for node in nodes), "the end of the run")
        codes = [node.code() for node in nodes]
        say(f"ended with codes {codes} at step {saved(folder)}, weights {weights(folder)[:16]}")
        if any(codes):
            sys.exit("a node has failed; the logs lie beside the run's folder")
        return weights(folder)
    finally:
        for node in nodes:
            node.kill()


def main() -> None:
    """Trains three runs and compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where runs and logs are written; must be new")
    folder = parser.parse_args().folder.absolute()
    if os.geteuid() or shutil.which("ip") is None:
        sys.exit("network namespaces need root and the program ip (iproute2)")
    folder.mkdir(parents=True)
    contents = {}
    with network():
        for name, killed in {"undisturbed": None, "second-node-killed": 1, "first-node-killed": 0}.items():
            print(name.replace("-", " "), flush=True)
            contents[name] = play(folder / name, killed)
    equal = len(set(contents.values())) == 1
    print(f"final weights and optimizer: {'bit-equal in all three' if equal else 'THEY DIFFER'}")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
