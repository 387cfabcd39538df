"""What a run was measured on, from folders as kernels show them, and on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bench.planted import tree
from vit_edge.bench.device import facts, noise
from vit_edge.bench.results.compare import MACHINE, SOFTWARE
from vit_edge.errors import ResourceError
from vit_edge.machine import child
from vit_edge.machine.cgroups import ROOT
from vit_edge.machine.cuda import Gpu, Gpus

# What not every machine tells, and what belongs to an entry and not to the run.
OPTIONAL = {"smt", "clock_max", "governor", "cpu_quota", "power", "driver", "gpu"}
OF_ENTRIES = {"runtime"}


def test_every_fact_that_is_compared_is_told_or_known_to_be_optional() -> None:
    told = facts.run_facts()
    assert set(MACHINE) | set(SOFTWARE) <= told.keys() | OPTIONAL | OF_ENTRIES
    assert all(told.values())


def test_a_jetson_tells_its_mode_clocks_and_governor(tmp_path: Path) -> None:
    cpu = f"sys/devices/system/cpu/cpu{min(os.sched_getaffinity(0))}/cpufreq"
    tree(
        tmp_path,
        {
            f"{cpu}/scaling_governor": "schedutil", f"{cpu}/scaling_max_freq": 1_510_400,
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >",
            "var/lib/nvpmodel/status": "pmode:0001 fmode:quiet",
            "sys/devices/system/cpu/smt/active": "0", "proc/loadavg": "0.52 0.40 0.30 1/200 300",
            "sys/module/nvidia/version": "540.4.0", ".dockerenv": "",
        },
    )  # fmt: skip
    told = facts.run_facts(tmp_path)
    assert told["governor"] == "schedutil"
    assert told["clock_max"] == "1510 MHz"
    assert told["power"] == "25W (1) of 15W (0), 25W (1)"
    assert (told["smt"], told["load"], told["driver"]) == ("off", "0.52", "540.4.0")
    assert told["container"] == "yes"


def test_the_limits_of_a_container_are_facts(tmp_path: Path) -> None:
    group = "sys/fs/cgroup"
    tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/", "proc/meminfo": "MemTotal: 8000000 kB",
            f"{group}/memory.max": 512_000_000, f"{group}/memory.current": 1000,
            f"{group}/cpu.max": "50000 100000",
        },
    )  # fmt: skip
    told = facts.run_facts(tmp_path)
    assert told["memory_limit"] == "512 MB"
    assert told.get("cpu_quota") == ("1 CPUs" if len(os.sched_getaffinity(0)) > 1 else None)


def test_a_machine_that_tells_nothing_lacks_only_what_is_optional(tmp_path: Path) -> None:
    told = facts.run_facts(tmp_path)
    assert not OPTIONAL & told.keys()
    assert (told["memory_limit"], told["container"]) == ("none", "no")


def test_a_busy_machine_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = min(os.sched_getaffinity(0))
    looks = iter([f"cpu{ours} 1000 0 0 1000 0 0 0 0", f"cpu{ours} 1080 0 0 1020 0 0 0 0"])
    monkeypatch.setattr(noise, "read", lambda path: next(looks))
    (told,) = noise.warnings_now(tmp_path, look_s=0.0)
    assert told.startswith("other processes used ")
    assert "of the CPUs before it began: stop them (top)" in told


def test_a_quiet_machine_is_not_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = min(os.sched_getaffinity(0))
    looks = iter([f"cpu{ours} 1000 0 0 1000 0 0 0 0", f"cpu{ours} 1010 0 0 1090 0 0 0 0"])
    monkeypatch.setattr(noise, "read", lambda path: next(looks))
    assert noise.warnings_now(tmp_path, look_s=0.0) == []


ORIN = Gpu(0, "Orin", (8, 7), 8, 8 << 30, integrated=True)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            Gpus((ORIN,), "12.6", ""),
            {
                "gpu": "Orin (SM87, 8 multiprocessors, 8.6 GB shared with the CPU); "
                "the driver serves CUDA 12.6"
            },
        ),
        (Gpus((), "12.6", "the driver shows no GPU"), {}),
        (Gpus((), None, "no libcuda"), {}),
        (ResourceError("it died\n  | of a stub"), {"gpu": "not to be asked: it died"}),
    ],
)
def test_gpus_are_a_fact_only_where_the_driver_lists_them(
    told: Gpus | ResourceError, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_child(target: str, **options: object) -> Gpus:
        assert target == "vit_edge.machine.cuda:gpus"
        if isinstance(told, ResourceError):
            raise told
        return told

    monkeypatch.setattr(facts, "_driver", lambda root: "540.4.0")
    monkeypatch.setattr(child, "call_in_child", in_child)
    assert facts._gpu(ROOT) == expected
