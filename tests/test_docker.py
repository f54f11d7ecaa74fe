"""The image, the compose file and the Kubernetes templates: what they name exists, agrees, and is understood by mrp."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mrp import cli
from mrp.processes import slurm as cluster
from mrp.run import load

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
JOBS = {"indexed-job": "Job", "pytorchjob": "PyTorchJob"}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def copied() -> list[str]:
    return [source for word, rest in instructions() if word == "COPY" for source in rest.split()[:-1]]


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DOCKER / "kubernetes" / f"{name}.yaml").read_text("utf-8")))


def pod(name: str) -> dict[str, Any]:
    job = documents(name)[-1]
    assert job["kind"] == JOBS[name]
    replicas = job["spec"]["pytorchReplicaSpecs"]["Worker"] if name == "pytorchjob" else job["spec"]
    found: dict[str, Any] = replicas["template"]["spec"]
    return found


def container(name: str) -> dict[str, Any]:
    (found,) = pod(name)["containers"]
    return dict(found)


def environment(name: str) -> dict[str, Any]:
    return {variable["name"]: variable.get("value") for variable in container(name)["env"]}


def torchrun(words: list[str]) -> argparse.Namespace:
    """What torchrun understands, with mrp's own reading of what it would start."""
    from torch.distributed.run import parse_args

    read = parse_args(words)
    assert read.module
    assert read.training_script == "mrp"
    return read


def pretrain(words: list[str]) -> argparse.Namespace:
    options = cli._read(words)
    load(options.recipe, options.overrides)
    return options


def test_what_the_image_copies_exists_and_reaches_the_builder() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied()) == allowed
    assert all((ROOT / source).exists() for source in copied())


def test_the_image_holds_all_that_a_wheel_is_made_of() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    named = {project["project"]["readme"], *project["project"]["license-files"], "mrp", "configs", "pyproject.toml"}
    assert named <= set(copied())


def test_dependencies_are_installed_before_the_sources_come() -> None:
    steps = instructions()
    requirements = next(at for at, (_, rest) in enumerate(steps) if "--requirement" in rest)
    sources = next(at for at, (word, rest) in enumerate(steps) if word == "COPY" and "mrp" in rest.split())
    assert requirements < sources
    assert "--constraint constraints.txt" in steps[requirements][1]


def test_every_dependency_of_the_image_is_pinned() -> None:
    (extras,) = [
        rest.partition("=")[2].strip('"') for word, rest in instructions() if word == "ARG" and "EXTRAS" in rest
    ]
    words = [sys.executable, "docker/requirements.py", *extras.split()]
    printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    names = {re.split(r"[<>=\[]", line)[0].lower() for line in printed}
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {"torch", "timm", "submitit", "setuptools"} <= names
    assert names <= pinned


def test_the_image_is_pinned_and_runs_as_nobody_in_particular() -> None:
    steps = dict(instructions())
    base = next(rest for word, rest in instructions() if word == "ARG").removeprefix("BASE=")
    assert re.fullmatch(r"python:3\.1[123]\.\d+-slim-\w+", base)
    assert steps["USER"].split(":")[0].isdecimal()
    assert int(steps["USER"].split(":")[0]) > 0
    assert steps["ENTRYPOINT"] == '["mrp"]'
    cli.parser().parse_args(["demo"])


def compose() -> dict[str, Any]:
    text = (DOCKER / "compose.yaml").read_text("utf-8")
    values = {"GPUS": "8"}  # the rest by default
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: values.get(found[1], found[2]), text)
    assert "$" not in text
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def test_the_services_run_verbs_of_ours_on_what_they_mount() -> None:
    services = compose()["services"]
    options = pretrain(services["pretrain"]["command"])
    assert options.processes == 8
    inside = {volume.split(":")[1] for volume in services["pretrain"]["volumes"]}
    assert Path(options.folder).parent == Path("/runs")
    run = load(options.recipe, options.overrides)
    assert {Path(str(run.data.train)).parent, Path(options.folder).parent} == {Path(path) for path in inside}
    cli._read(services["demo"]["command"])


def test_a_service_builds_this_image_and_has_time_for_a_checkpoint() -> None:
    for service in compose()["services"].values():
        assert (
            DOCKER / service["build"]["context"] / service["build"]["dockerfile"]
        ).resolve() == DOCKER / "Dockerfile"
        assert service["stop_grace_period"] == "2m"
        assert service["network_mode"] == "none"
    assert compose()["services"]["pretrain"]["shm_size"] == "16gb"


@pytest.mark.parametrize("index", [0, 1])
def test_the_indexed_job_starts_torchrun_in_every_pod(index: int, tmp_path: Path) -> None:
    script = container("indexed-job")["command"]
    assert script[:2] == ["bash", "-c"]
    (tmp_path / "torchrun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    given = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": str(index), "POD_IP": "10.0.0.7"}
    printed = subprocess.run(script, env=given, capture_output=True, text=True, check=True).stdout.splitlines()
    read = torchrun(printed)
    assert f"is_host={'false' if index else 'true'}," in read.rdzv_conf
    assert read.local_addr == "10.0.0.7"

    service, job = documents("indexed-job")
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert read.rdzv_endpoint == f"{name}-0.{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert pod("indexed-job")["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["ports"][0]["port"] == container("indexed-job")["ports"][0]["containerPort"]
    assert int(read.nnodes) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(read.nproc_per_node) == container("indexed-job")["resources"]["limits"]["nvidia.com/gpu"]
    assert load("mae_vit_base_in1k").batch % (int(read.nnodes) * int(read.nproc_per_node)) == 0
    pretrain(read.training_script_args)


def test_the_pytorchjob_leaves_the_rendezvous_to_the_operator() -> None:
    job = documents("pytorchjob")[-1]["spec"]
    program, *words = container("pytorchjob")["command"]
    assert program == "torchrun"
    read = torchrun(words)
    pretrain(read.training_script_args)
    replicas = job["pytorchReplicaSpecs"]["Worker"]["replicas"]
    assert job["elasticPolicy"]["minReplicas"] == job["elasticPolicy"]["maxReplicas"] == replicas
    assert int(job["nprocPerNode"]) == container("pytorchjob")["resources"]["limits"]["nvidia.com/gpu"]
    assert container("pytorchjob")["name"] == "pytorch"
    assert not any(word.startswith(("--rdzv", "--nnodes", "--nproc")) for word in words)


@pytest.mark.parametrize("name", JOBS)
def test_a_pod_has_what_a_run_needs(name: str) -> None:
    spec, box = pod(name), container(name)
    mounts = {mount["name"]: mount["mountPath"] for mount in box["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert mounts == {"data": "/data", "runs": "/runs", "shm": "/dev/shm"}
    assert mounts.keys() == volumes.keys()
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert volumes["data"]["persistentVolumeClaim"] != volumes["runs"]["persistentVolumeClaim"]
    assert spec["terminationGracePeriodSeconds"] >= 60
    assert spec["securityContext"]["runAsNonRoot"]
    # A pod that was evicted must not pass for one that has finished.
    assert f"machine.requeue_code={cluster.REQUEUE}" in " ".join(box["command"])
    assert environment(name)["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
