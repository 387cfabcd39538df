"""Energy, temperature, clocks and throttling, from folders as the kernels of devices show them."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bench.planted import process, tree
from tests.bench.report_runs import made_entry, typed_entry
from vit_edge.bench.device import noise, power, sensors, thermal
from vit_edge.machine import nvml

RAPL = "sys/class/powercap/intel-rapl:0"
INA = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
ZONE = "sys/class/thermal/thermal_zone0"
CPU = "sys/devices/system/cpu"


def rapl(root: Path, microjoules: int) -> None:
    tree(
        root,
        {
            f"{RAPL}/name": "package-0",
            f"{RAPL}/energy_uj": microjoules,
            f"{RAPL}/max_energy_range_uj": 10_000_000,
        },
    )


def test_where_there_is_nothing_nothing_is_told_and_no_thread_runs(tmp_path: Path) -> None:
    threads = threading.active_count()
    with sensors.Watch(tmp_path) as watch:
        assert threading.active_count() == threads
    assert watch.readings(5) == {
        "energy_j_per_image": None, "power_w": None, "energy_j": {}, "temperature_c": {},
        "clocks_mhz": {}, "throttled": [], "gpu_memory_bytes": None, "absent": {},
    }  # fmt: skip


def test_rapl_is_counted_over_its_wrap_around(tmp_path: Path) -> None:
    rapl(tmp_path, 9_000_000)
    (meter,), absent = power.meters(tmp_path)
    for microjoules in (9_000_000, 9_500_000, 500_000, 1_500_000):
        rapl(tmp_path, microjoules)
        meter.look(0.0)
    assert absent == {}
    assert meter.joules == pytest.approx(0.5 + 1.0 + 1.0)


def test_packages_and_memory_are_counted_and_parts_of_packages_are_not(tmp_path: Path) -> None:
    rapl(tmp_path, 0)
    for index, name in enumerate(("core", "dram", "uncore")):
        zone = f"sys/class/powercap/intel-rapl:0:{index}"
        tree(tmp_path, {f"{zone}/name": name, f"{zone}/energy_uj": 0})
    tree(tmp_path, {"sys/class/powercap/intel-rapl:1/name": "psys"})
    found, _ = power.meters(tmp_path)
    assert [meter.name for meter in found] == ["RAPL package-0", "RAPL package-0 dram"]


def test_a_meter_for_root_alone_is_absent_with_the_reason(tmp_path: Path) -> None:
    rapl(tmp_path, 0)
    (tmp_path / RAPL / "energy_uj").unlink()
    with sensors.Watch(tmp_path) as watch:
        pass
    told = watch.readings(1)
    assert told["energy_j_per_image"] is None
    assert "for root alone" in told["absent"]["RAPL package-0"]


def test_energy_is_told_by_image_and_second(tmp_path: Path) -> None:
    rapl(tmp_path, 1_000_000)
    with sensors.Watch(tmp_path) as watch:
        rapl(tmp_path, 3_000_000)
        time.sleep(0.02)
    told = watch.readings(4)
    assert told["energy_j_per_image"] == pytest.approx(0.5)
    assert 0 < told["power_w"] <= 2 / 0.02


def rails(root: Path, **milliwatts: int) -> None:
    for index, (label, value) in enumerate(milliwatts.items(), start=1):
        tree(
            root,
            {
                f"{INA}/in{index}_label": label,
                f"{INA}/in{index}_input": 5000,
                f"{INA}/curr{index}_input": value // 5,
            },
        )


def test_a_jetson_is_measured_where_its_board_is_fed(tmp_path: Path) -> None:
    rails(tmp_path, VDD_IN=10_000, VDD_CPU_GPU_CV=4000, VDD_SOC=2000)
    (meter,), _ = power.meters(tmp_path)
    meter.look(0.0)
    rails(tmp_path, VDD_IN=20_000, VDD_CPU_GPU_CV=4000, VDD_SOC=2000)
    meter.look(2.0)
    assert meter.name == "VDD_IN"
    assert meter.joules == pytest.approx(30.0)


def test_a_jetson_without_such_a_rail_is_the_sum_of_its_rails(tmp_path: Path) -> None:
    rails(tmp_path, VDD_GPU_SOC=4000, VDD_CPU_CV=2000, VIN_SYS_5V0=3000)
    second = "sys/bus/i2c/drivers/ina3221/1-0041/hwmon/hwmon4"
    tree(tmp_path, {f"{second}/in1_label": "NC", f"{second}/in2_label": "VDDQ_VDD2_1V8AO"})
    (meter,), _ = power.meters(tmp_path)
    meter.look(0.0)
    meter.look(1.0)
    assert meter.name == "VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0"
    assert meter.joules == pytest.approx(9.0)


def test_thor_is_measured_at_its_input_in_microwatts(tmp_path: Path) -> None:
    rails(tmp_path, VDD_GPU=4000, VDD_CPU_SOC_MSS=2000, VIN_SYS_5V0=3000)
    tree(tmp_path, {"sys/bus/i2c/drivers/ina238/2-0044/hwmon/hwmon1/power1_input": 25_000_000})
    (meter,), _ = power.meters(tmp_path)
    meter.look(0.0)
    meter.look(1.0)
    assert meter.name == "VIN"
    assert meter.joules == pytest.approx(25.0)


def test_a_rail_that_fails_meanwhile_leaves_no_number(tmp_path: Path) -> None:
    rails(tmp_path, VDD_IN=10_000)
    with sensors.Watch(tmp_path) as watch:
        (tmp_path / INA / "curr1_input").unlink()
    told = watch.readings(1)
    assert told["power_w"] is None
    assert told["absent"] == {"VDD_IN": "it failed meanwhile"}


def test_power_is_looked_at_meanwhile_and_not_only_at_the_ends(tmp_path: Path) -> None:
    rails(tmp_path, VDD_IN=1000)
    with sensors.Watch(tmp_path) as watch:
        rails(tmp_path, VDD_IN=9000)
        time.sleep(0.5)
        rails(tmp_path, VDD_IN=1000)
    assert 4 < watch.readings(1)["power_w"] < 9  # the ends alone give 1


def test_temperatures_have_a_start_and_a_highest(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            f"{ZONE}/type": "cpu-thermal", f"{ZONE}/temp": 45_000,
            "sys/class/thermal/thermal_zone1/type": "cv0-thermal",
            "sys/class/thermal/thermal_zone1/temp": -256_000,
            "sys/class/hwmon/hwmon0/name": "coretemp",
            "sys/class/hwmon/hwmon0/temp1_label": "Package id 0",
            "sys/class/hwmon/hwmon0/temp1_input": 50_000,
            "sys/class/hwmon/hwmon0/temp2_label": "Core 0",
            "sys/class/hwmon/hwmon0/temp2_input": 51_000,
            "sys/class/hwmon/hwmon1/name": "nvme", "sys/class/hwmon/hwmon1/temp1_input": 90_000,
        },
    )  # fmt: skip
    with sensors.Watch(tmp_path) as watch:
        tree(tmp_path, {f"{ZONE}/temp": 61_500})
    assert watch.readings(1)["temperature_c"] == {
        "cpu-thermal": [45.0, 61.5], "coretemp Package id 0": [50.0, 50.0]
    }  # fmt: skip


def test_clocks_have_a_start_and_an_end(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    clock = f"{CPU}/cpu{cpu}/cpufreq/scaling_cur_freq"
    gpu = "sys/class/devfreq/17000000.gpu/cur_freq"
    tree(tmp_path, {clock: 3_000_000, gpu: 918_000_000})
    with sensors.Watch(tmp_path) as watch:
        tree(tmp_path, {clock: 2_100_000})
    assert watch.readings(1)["clocks_mhz"] == {"cpu": [3000, 2100], "gpu": [918, 918]}


def test_a_virtual_machine_tells_its_clock_in_cpuinfo(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/cpuinfo": "processor : 0\ncpu MHz\t\t: 2596.132"})
    assert thermal.clocks_mhz(tmp_path) == {"cpu": 2596.132}


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (f"{CPU}/cpu1/thermal_throttle/core_throttle_count", "the CPU was too warm (core)"),
        ("sys/class/hwmon/hwmon2/oc3_event_cnt", "over-current (oc3)"),
    ],
)
def test_a_throttle_counter_that_grows_is_told(tmp_path: Path, file: str, told: str) -> None:
    tree(tmp_path, {file: 7})
    with sensors.Watch(tmp_path) as watch:
        pass
    assert watch.readings(1)["throttled"] == []
    with sensors.Watch(tmp_path) as watch:
        tree(tmp_path, {file: 8})
    assert watch.readings(1)["throttled"] == [told]


def test_a_cooling_device_that_slows_is_told_and_a_fan_is_not(tmp_path: Path) -> None:
    for index, (kind, state) in enumerate(
        [("pwm-fan", 2), ("cpufreq-cpu0", 3), ("17000000.gpu", 0), ("intel_powerclamp", -1)]
    ):
        folder = f"sys/class/thermal/cooling_device{index}"
        tree(tmp_path, {f"{folder}/type": kind, f"{folder}/cur_state": state})
    assert thermal.slowed(tmp_path) == ["the kernel slows cpufreq-cpu0 down"]


def test_a_slow_clock_is_throttling_only_where_it_is_hot(tmp_path: Path) -> None:
    folder = f"{CPU}/cpu{min(os.sched_getaffinity(0))}/cpufreq"
    tree(
        tmp_path,
        {
            f"{folder}/scaling_cur_freq": 1_200_000, f"{folder}/scaling_max_freq": 2_200_000,
            f"{ZONE}/type": "tj-thermal", f"{ZONE}/temp": 60_000,
            f"{ZONE}/trip_point_0_type": "passive", f"{ZONE}/trip_point_0_temp": 99_000,
        },
    )  # fmt: skip
    assert thermal.slowed(tmp_path) == []
    tree(tmp_path, {f"{ZONE}/temp": 99_500})
    assert thermal.slowed(tmp_path) == ["the CPU ran below its clock while tj-thermal was hot"]
    tree(tmp_path, {f"{folder}/scaling_cur_freq": 2_200_000})
    assert thermal.slowed(tmp_path) == []


def test_throttling_is_a_warning_with_what_to_do() -> None:
    hot = process([1.0]) | {"sensors": {"throttled": ["over-current (oc3)"]}}
    throttled, cool = (
        typed_entry(made_entry() | {"name": "a", "processes": [one]})
        for one in (hot, process([1.0]))
    )
    (told,) = noise.configuration_warnings(throttled)
    assert told.startswith("a: throttled (over-current (oc3)): cool it")
    assert noise.configuration_warnings(cool) == []


class Nvml:
    """A library with GPUs, of which a process computes on one; `missing` calls fail."""

    def __init__(self, gpus: int = 1, pid: int | None = None, missing: str = "") -> None:
        self.gpus, self.pid, self.missing = gpus, os.getpid() if pid is None else pid, missing
        self.millijoules, self.reasons = 5000, 0

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = self.gpus
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        handle._obj.value = index + 1
        return 0

    def __getattr__(self, name: str) -> Any:
        if name == self.missing or not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)
        values = {
            "nvmlDeviceGetTotalEnergyConsumption": self.millijoules,
            "nvmlDeviceGetTemperature": 64,
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetCurrentClocksThrottleReasons": self.reasons,
        }

        def call(handle: ctypes.c_void_p, *arguments: Any) -> int:
            if name == "nvmlDeviceGetComputeRunningProcesses_v3":
                count, found = arguments
                count._obj.value = 1 if handle.value == self.gpus else 0
                found[0].pid, found[0].used_bytes = self.pid, 300_000_000
            else:
                arguments[-1]._obj.value = values[name]
            return 0

        return call


def test_a_gpu_tells_energy_heat_clock_memory_and_what_slows_it(tmp_path: Path) -> None:
    library = Nvml(gpus=2)
    with sensors.Watch(tmp_path, library) as watch:
        library.millijoules, library.reasons = 8000, 0x44
    told = watch.readings(6)
    assert told["energy_j_per_image"] == pytest.approx(0.5)
    assert told["temperature_c"] == {"GPU": [64, 64]}
    assert told["clocks_mhz"] == {"gpu": [1980, 1980]}
    assert told["throttled"] == ["GPU: power limit", "GPU: too warm (hardware)"]
    assert told["gpu_memory_bytes"] == 300_000_000


def test_a_gpu_whose_processes_have_other_pids_tells_no_memory(tmp_path: Path) -> None:
    with sensors.Watch(tmp_path, Nvml(pid=1)) as watch:
        pass
    assert watch.readings(1)["gpu_memory_bytes"] is None
    assert watch.readings(1)["energy_j"] == {"GPU": 0.0}


def test_of_several_gpus_none_is_guessed(tmp_path: Path) -> None:
    found, reason = nvml.opened(Nvml(gpus=2, pid=1))
    assert found is None
    assert reason == "NVML shows 2 GPUs, and 0 of them as used by this process"
    with sensors.Watch(tmp_path, Nvml(gpus=2, pid=1)) as watch:
        pass
    assert watch.readings(1)["absent"] == {"GPU": reason}


def test_a_library_that_supports_nothing_tells_nothing(tmp_path: Path) -> None:
    """JetPack 7's: it starts, and has no such numbers."""
    library = Nvml(missing="nvmlDeviceGetTotalEnergyConsumption")
    with sensors.Watch(tmp_path, library) as watch:
        pass
    assert watch.readings(1)["energy_j_per_image"] is None
