"""The processor, read from made-up /proc and /sys trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vit_edge.machine import cpus

X86 = """processor\t: 0
model name\t: AMD EPYC 9B45
flags\t\t: fpu vme avx2 avx512_vnni sse4_2 avx

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
ARM = """processor\t: 0
Features\t: fp asimd asimddp crc32 asimdhp
CPU part\t: 0xd42
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "rubbish"}, 8),
        ({"proc/self/cgroup": "rubbish\n::\n"}, 8),
    ],
)
def test_a_quota_of_version_2_limits_the_count(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    assert cpus.usable_cpus(write(tmp_path, files)) == expected


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    groups = {
        "proc/self/cgroup": "0::/a/b/c\n",
        "sys/fs/cgroup/a/b/c/cpu.max": "max 100000\n",
        "sys/fs/cgroup/a/b/cpu.max": "600000 100000\n",
        "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
    }
    assert cpus.usable_cpus(write(tmp_path, groups)) == 3


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_a_quota_of_version_1_limits_the_count(tmp_path: Path, mount: str) -> None:
    groups = {
        "proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/docker/1\n0::/\n",
        f"sys/fs/cgroup/{mount}/docker/1/cpu.cfs_quota_us": "-1\n",
        f"sys/fs/cgroup/{mount}/docker/1/cpu.cfs_period_us": "100000\n",
        f"sys/fs/cgroup/{mount}/docker/cpu.cfs_quota_us": "400000\n",
        f"sys/fs/cgroup/{mount}/docker/cpu.cfs_period_us": "100000\n",
    }
    assert cpus.usable_cpus(write(tmp_path, groups)) == 4


def test_a_container_that_sees_only_its_own_mount_is_limited(tmp_path: Path) -> None:
    groups = {
        "proc/self/cgroup": "3:cpu,cpuacct:/docker/not-mounted-here\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n",
    }
    assert cpus.usable_cpus(write(tmp_path, groups)) == 2


def test_a_memory_group_does_not_count_as_one_for_cpus(tmp_path: Path) -> None:
    groups = {
        "proc/self/cgroup": "4:memory:/m\n",
        "sys/fs/cgroup/cpu/m/cpu.cfs_quota_us": "100000\n",
        "sys/fs/cgroup/cpu/m/cpu.cfs_period_us": "100000\n",
    }
    assert cpus.usable_cpus(write(tmp_path, groups)) == 8


def test_affinity_limits_the_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert cpus.usable_cpus(tmp_path) == 2


@pytest.mark.parametrize(
    ("said", "expected"),
    [("1", 1), ("2", 2), ("64", 4), ("2,1", 2), (" 3 ", 3), ("0", 4), ("-1", 4), ("", 4), ("x", 4)],
)
def test_openmp_s_variable_is_followed_where_it_is_less(
    monkeypatch: pytest.MonkeyPatch, said: str, expected: int
) -> None:
    monkeypatch.setattr(cpus, "usable_cpus", lambda root: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert cpus.default_threads() == expected


def test_the_features_that_choose_kernels_are_sorted_and_the_rest_left_out(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/cpuinfo": X86})
    assert cpus.cpu_features(root) == ("avx", "avx2", "avx512_vnni", "sse4_2")
    assert cpus.cpu_model(root) == "AMD EPYC 9B45"


def test_an_arm_board_is_named_by_its_device_tree(tmp_path: Path) -> None:
    board = "NVIDIA Jetson Orin Nano\0"
    root = write(tmp_path, {"proc/cpuinfo": ARM, "proc/device-tree/model": board})
    assert cpus.cpu_features(root) == ("asimd", "asimddp", "asimdhp")
    assert cpus.cpu_model(root) == "NVIDIA Jetson Orin Nano"


def test_without_proc_there_are_no_features_and_still_a_name(tmp_path: Path) -> None:
    assert cpus.cpu_features(tmp_path) == ()
    assert cpus.cpu_model(tmp_path)


def test_this_machine_has_at_least_one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1 <= cpus.usable_cpus() <= (os.cpu_count() or 1)
