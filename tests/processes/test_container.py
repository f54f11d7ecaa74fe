"""The limits that a container or a batch job sets to memory and cores are seen, in both versions of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mrp.processes.container import host_memory, usable_cores


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/job/step", {"job/memory.max": "1000", "job/step/memory.max": "max"}, 1000),
        ("0::/job/step", {"job/memory.max": "1000", "job/step/memory.max": "700"}, 700),
        ("0::/", {"memory.max": "500"}, 500),
        (
            "4:memory:/a\n3:cpu:/b",
            {"memory/a/memory.limit_in_bytes": "900", "memory/b/memory.limit_in_bytes": "1"},
            900,
        ),
        ("0::/none", {}, None),
    ],
)
def test_memory(tmp_path: Path, membership: str, files: dict[str, str], expected: int | None) -> None:
    write(tmp_path, files | {"membership": membership})
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert host_memory(tmp_path / "membership", tmp_path) == (expected or physical)
    assert host_memory(tmp_path / "nowhere", tmp_path) == physical


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/job/step", {"job/cpu.max": "350000 100000", "job/step/cpu.max": "max 100000"}, 4),
        ("0::/job", {"job/cpu.max": "10000 100000"}, 1),
        (
            "4:cpu,cpuacct:/a",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("4:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, 8),
        ("0::/job", {}, 8),
    ],
)
def test_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, files: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    write(tmp_path, files | {"membership": membership})
    assert usable_cores(tmp_path / "membership", tmp_path) == expected


def test_cores_of_this_process() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
