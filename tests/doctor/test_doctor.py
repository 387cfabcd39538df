"""The doctor tells what is here, and never crashes, whatever is broken or missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_edge.bundle import Bundle
from vit_edge.bundle import bundle as bundles
from vit_edge.doctor import __main__ as doctor
from vit_edge.doctor import api, nvidia, packages, runtimes
from vit_edge.doctor.bundles import Examined, examine, list_placements
from vit_edge.doctor.findings import Finding, Probe, find_out
from vit_edge.doctor.probes import PROBES
from vit_edge.doctor.remedies import remedies
from vit_edge.machine import memory
from vit_edge.machine.cuda import Gpu, Gpus

requires = ("onnxruntime",)

READING = [probe for probe in PROBES if not probe.isolated]
GIB = 1 << 30

JETSON = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,p3767\0nvidia,tegra234\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n",
    "var/lib/nvpmodel/status": "pmode:0001 fmode:quiet\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/module/nvidia/version": "540.4.0\n",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
    "usr/lib/aarch64-linux-gnu/libnvinfer.so.10": "",
    "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0": "",
    "var/lib/dpkg/status": (
        "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.2+b77\n\n"
        "Package: libnvinfer10\nStatus: install ok installed\nVersion: 10.3.0.30-1+cuda12.5\n\n"
        "Package: tensorrt\nStatus: deinstall ok config-files\nVersion: 8.6.2\n"
    ),
}


def planted(name: str, *, isolated: bool) -> Probe:
    return Probe("planted", name, f"tests.support.planted_probes:{name}", isolated)


def root_with(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def seen(root: Path) -> dict[str, Finding]:
    return {probe.name: find_out(probe, root) for probe in READING}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raises", "the planted reason"),
        ("vanishes", "without an answer"),
        ("leaves", "exit code 1; the planted exit"),
        ("aborts", "killed by SIGABRT; the planted last words"),
        ("crashes", "killed by SIGSEGV"),
        ("hangs", "it took longer than 0.5 s"),
        ("recurses", "RecursionError"),
        ("answers_nonsense", "returned int"),
        ("cannot_be_pickled", "exit code 1"),
        ("is_not_there", "has no attribute"),
    ],
)
def test_an_isolated_probe_that_goes_wrong_is_a_line(name: str, reason: str) -> None:
    found = find_out(
        planted(name, isolated=True), Path("/"), timeout_s=0.5 if name == "hangs" else 30
    )
    assert found.mark == "trouble"
    assert found.text.startswith("could not be found out: ")
    assert reason in found.text
    assert "\n" not in found.text


@pytest.mark.parametrize("name", ["raises", "leaves", "recurses", "answers_nonsense", "gone"])
def test_a_probe_of_our_own_process_that_goes_wrong_is_a_line(name: str) -> None:
    found = find_out(planted(name, isolated=False), Path("/"))
    assert found.text.startswith("could not be found out: ")
    assert find_out(planted("fine", isolated=False), Path("/")).text == "fine"


def test_one_broken_probe_leaves_the_others_in_the_report(tmp_path: Path) -> None:
    probes = [planted(name, isolated=True) for name in ("fine", "aborts")]
    text = api.diagnose([tmp_path], probes=probes).as_text()
    assert "ok  fine    fine" in text
    assert "!!  aborts  could not be found out" in text


def test_a_report_cannot_steer_the_terminal(tmp_path: Path) -> None:
    report = api.diagnose([tmp_path], probes=[planted("steering", isolated=False)])
    text = report.as_text()
    assert not {"\x1b", "\a", "\ud800"} & set(text)
    assert "red " in text


def test_a_jetson_is_recognised_by_its_files(tmp_path: Path) -> None:
    found = seen(root_with(tmp_path, JETSON))
    assert found["board"].facts == {
        "model": "NVIDIA Jetson Orin Nano Developer Kit",
        "jetson": True,
    }
    assert found["JetPack"].facts == {"l4t": "36.4.3", "jetpack": "6.2"}
    assert found["power mode"].text == "25W (1) of 15W (0), 25W (1)"
    assert "schedutil: clocks follow the load" in found["clocks"].text
    assert found["driver"].text == "540.4.0"
    assert found["libraries"].text.startswith("toolkit 12.6.11, libnvinfer 10.3.0")
    assert found["TensorRT (apt)"].facts == {"packages": {"libnvinfer10": "10.3.0.30-1+cuda12.5"}}


def test_a_jetson_without_the_package_jetpack_is_told_by_its_release(tmp_path: Path) -> None:
    files = {k: v for k, v in JETSON.items() if k != "var/lib/dpkg/status"}
    assert (
        "Jetson Linux 36.4.3, which is JetPack 6"
        in seen(root_with(tmp_path, files))["JetPack"].text
    )


def test_a_pc_is_no_jetson(tmp_path: Path) -> None:
    found = seen(tmp_path)
    assert {found[name].mark for name in ("board", "JetPack", "power mode", "driver")} == {"absent"}


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build",
    ],
)
def test_the_driver_is_read_off_the_kernel(tmp_path: Path, line: str) -> None:
    found = seen(root_with(tmp_path, {"proc/driver/nvidia/version": line + "\n"}))
    assert found["driver"].text == "535.104.05"


def test_a_gpu_without_a_driver_is_trouble(tmp_path: Path) -> None:
    device = "sys/bus/pci/devices/0000:01:00.0"
    root = root_with(tmp_path, {f"{device}/vendor": "0x10de\n", f"{device}/class": "0x030000\n"})
    assert seen(root)["driver"].mark == "trouble"


def test_a_driver_that_a_container_does_not_see_is_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit_edge.machine.cuda.gpus", lambda: Gpus((), None, "no libcuda"))
    assert nvidia.gpus(tmp_path).mark == "absent"
    found = nvidia.gpus(root_with(tmp_path, {"sys/module/nvidia/version": "580.1\n"}))
    assert found.mark == "trouble"
    assert "--gpus all" in found.text


def test_gpus_are_listed_with_what_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    orin = Gpu(0, "Orin", (8, 7), 8, 8 * GIB, integrated=True)
    monkeypatch.setattr("vit_edge.machine.cuda.gpus", lambda: Gpus((orin,), "12.6", ""))
    found = nvidia.gpus(Path("/"))
    assert found.text == (
        "Orin (SM87, 8 multiprocessors, 8.6 GB shared with the CPU); the driver serves CUDA 12.6"
    )
    json.dumps(found.facts)


FILES = sorted(
    {*JETSON, "proc/cpuinfo", "proc/meminfo", "proc/self/cgroup", "etc/os-release"}
    | {"proc/driver/nvidia/version", "sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"}
)


@settings(max_examples=25)
@given(contents=st.lists(st.binary(max_size=60), min_size=len(FILES), max_size=len(FILES)))
def test_garbage_in_the_systems_files_breaks_no_probe(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]
) -> None:
    root = root_with(tmp_path_factory.mktemp("root"), dict(zip(FILES, contents, strict=True)))
    for name, finding in seen(root).items():
        assert "error" not in finding.facts, f"{name}: {finding.text}"


@pytest.mark.parametrize("where", ["cut", "directories", "nul", "latin1"])
def test_files_that_cannot_be_read_break_no_probe(tmp_path: Path, where: str) -> None:
    for name in FILES:
        content = JETSON.get(name, "a: 1\n").encode()
        if where == "directories":
            (tmp_path / name).mkdir(parents=True)
        else:
            changed = {
                "cut": content[: len(content) // 2],
                "nul": content + b"\0",
                "latin1": b"\xe4\xff",
            }
            root_with(tmp_path, {name: changed[where]})
    for name, finding in seen(tmp_path).items():
        assert "error" not in finding.facts, f"{name}: {finding.text}"


def test_the_cgroups_limit_bounds_what_is_available(tmp_path: Path) -> None:
    meminfo = {"proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 6291456 kB\nSwapTotal: 0 kB\n"}
    version2 = {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{GIB}\n",
        "sys/fs/cgroup/memory.current": f"{GIB // 2}\n",
        "sys/fs/cgroup/memory.stat": f"inactive_file {GIB // 4}\n",
    }
    version1 = {
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB // 2}\n",
        "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {GIB // 4}\n",
    }
    for name, files in (("2", version2), ("1", version1)):
        found = memory.memory(root_with(tmp_path / name, meminfo | files))
        assert found == (8 * GIB, 3 * GIB // 4, GIB, 0), name
    unlimited = version1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}
    found = memory.memory(root_with(tmp_path / "none", meminfo | unlimited))
    assert found == (8 * GIB, 6 * GIB, None, 0)


def test_a_provider_that_is_listed_but_does_not_load_is_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Session:
        def __init__(self, model: bytes, providers: Sequence[str]) -> None:
            if providers == ["TensorrtExecutionProvider"]:
                raise RuntimeError("libnvinfer.so.10: cannot open shared object file")
            if providers == ["CUDAExecutionProvider"]:
                os.write(2, b"[E] Failed to load library x.so with error: libcudart.so.13: no\n")

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]  # as onnxruntime-gpu does without a GPU

    listed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    double: Any = types.ModuleType("onnxruntime")
    double.__spec__ = types.SimpleNamespace()
    double.__version__ = "1.31.1"
    double.get_available_providers = lambda: [*listed, "AzureExecutionProvider"]
    double.InferenceSession = Session
    monkeypatch.setitem(sys.modules, "onnxruntime", double)
    found = runtimes.onnx_runtime(Path("/"))
    assert found.mark == "trouble"
    assert found.facts["providers"] == ["CPUExecutionProvider"]
    assert set(found.facts["refused"]) == set(listed[:2])
    assert "libnvinfer.so.10" in found.facts["refused"]["TensorrtExecutionProvider"]
    assert "libcudart.so.13: no" in found.facts["refused"]["CUDAExecutionProvider"]


def test_the_smallest_model_really_runs() -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        runtimes._smallest_model(), providers=["CPUExecutionProvider"]
    )
    (answer,) = session.run(None, {"x": np.array([-1], np.float32)})
    assert answer.tolist() == [0]


def test_a_bundle_is_asked_for_an_answer(bundle: Bundle) -> None:
    told: list[str] = []
    found = examine(bundle.path, ["ort"], told.append)
    answer = found.answers["ort"]
    assert answer.mark == "ok", answer.text
    assert answer.facts["difference"] < 1e-3
    assert answer.facts["peak_rss_bytes"] > 10 << 20
    assert answer.facts["facts"]["provider"] == "CPUExecutionProvider"
    assert answer.facts["facts"]["engine"].startswith("none")
    assert told == [f"{bundle.path}: asking ort"]


def test_a_bundle_is_tried_on_all_that_a_backend_can_run_it_on(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = [{"micro_batch": 1}, {"provider": "cuda", "arena": False}, {"provider": "cuda"}]
    double = types.SimpleNamespace(configurations=lambda _: tried)
    monkeypatch.setattr("vit_edge.backends.module", lambda _: double)
    assert list_placements(str(bundle.path), "ort") == [{}, {"provider": "cuda"}]


def test_a_bundle_that_answers_wrong_is_trouble(bundle: Bundle) -> None:
    with np.load(bundle.golden_path) as stored:
        golden = {name: stored[name] for name in stored.files}
    for name in golden:
        if name.startswith("logits/"):
            golden[name] = -golden[name]
    np.savez(bundle.golden_path, **golden)
    bundles.write_manifest(bundle.path, bundle.manifest)
    found = examine(bundle.path, ["ort"], lambda _: None).answers["ort"]
    assert found.mark == "trouble"
    assert "WRONG" in found.text


def test_a_damaged_model_is_told_with_its_reason(bundle: Bundle) -> None:
    content = bytearray(bundle.model_path.read_bytes())
    content[len(content) // 2] ^= 1
    bundle.model_path.write_bytes(content)
    found = examine(bundle.path, ["ort"], lambda _: None).answers["ort"]
    assert found.mark == "absent"
    assert "1 file(s) changed since they were written" in found.text


def test_a_backend_that_takes_too_long_is_a_line(bundle: Bundle) -> None:
    found = examine(bundle.path, ["ort"], lambda _: None, timeout_s=0.05).answers["ort"]
    assert found.mark == "trouble"
    assert "longer than 0.05 s" in found.text


def small_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PROBES", [])
    monkeypatch.setattr("vit_edge.backends.names", list)


def test_what_is_named_and_is_no_bundle_gives_exit_code_3_after_the_report(
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_report(monkeypatch)
    assert doctor.main([str(tmp_path / "nowhere"), str(bundle.path)]) == 3
    printed = capsys.readouterr().out
    assert "nowhere: no such directory" in printed
    assert "testing, float32" in printed or "testing, fp32" in printed


def test_a_directory_of_bundles_is_taken_apart_and_a_broken_one_is_a_line(
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_report(monkeypatch)
    folder = tmp_path / "bundles"
    shutil.copytree(bundle.path, folder / "fine")
    shutil.copytree(bundle.path, folder / "broken")
    (folder / "broken" / "manifest.json").write_text("{")
    (folder / "no-bundle").mkdir()
    monkeypatch.chdir(tmp_path)
    assert doctor.main(["--json"]) == 0  # nothing was named
    found = json.loads(capsys.readouterr().out)["bundles"]
    assert [one["bundle"] for one in found] == ["bundles/broken", "bundles/fine"]
    assert "manifest.json" in found[0]["problem"]
    assert found[1]["problem"] is None
    assert doctor.main(["bundles"]) == 3
    assert "!!  " in capsys.readouterr().out


def test_it_reports_where_nothing_is_as_it_should_be(repository: Path, tmp_path: Path) -> None:
    """No PATH, no HOME, an ASCII locale, closed standard input, a working directory of its own."""
    environment = {
        "PATH": "",
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "PYTHONPATH": str(repository),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "vit_edge.doctor", "--json"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120,
        preexec_fn=lambda: os.close(0),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["findings"]
    assert list(found) == [probe.name for probe in PROBES]
    unknown = [name for name, finding in found.items() if "could not be" in finding["text"]]
    assert unknown == []
    assert found["ONNX Runtime"]["facts"]["providers"] == ["CPUExecutionProvider"]


def test_a_numpy_that_does_not_import_is_a_line_with_its_remedy(
    repository: Path, bundle: Bundle, tmp_path: Path
) -> None:
    root_with(tmp_path, {"numpy/__init__.py": "raise ImportError('built for another CPU')"})
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{repository}"}
    done = subprocess.run(
        [sys.executable, "-m", "vit_edge.doctor", str(bundle.path), "--json"],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "built for another CPU" in told["findings"]["foundation"]["text"]
    assert "built for another CPU" in told["bundles"][0]["backends"]["ort"]["text"]
    assert "numpy" in told["remedies"][0]["command"]


def test_a_half_removed_package_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone-1.0.dist-info").mkdir()
    root_with(tmp_path, {"cut-2.0.dist-info/METADATA": b"\xff\xfeNa", "un_real-3.dist-info/x": ""})
    monkeypatch.syspath_prepend(str(tmp_path))
    found = packages.pip_packages()
    assert "pytest" in found
    assert "gone" not in found


def test_it_looks_without_importing_numpy_or_a_runtime_itself(repository: Path) -> None:
    code = (
        "import sys; from vit_edge.doctor.api import diagnose; from pathlib import Path\n"
        "from vit_edge.doctor.probes import PROBES\n"
        "diagnose([Path('/')], probes=[p for p in PROBES if not p.isolated]).as_text()\n"
        "print(sorted({'numpy', 'PIL', 'onnxruntime', 'openvino', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def advice(**facts: Finding) -> str:
    named = {name.replace("_", " "): finding for name, finding in facts.items()}
    return "\n".join(remedy.command for remedy in remedies(named, []))


ABSENT = Finding("absent", "not installed")
H200 = Finding("ok", "", {"gpus": [{"compute_capability": (9, 0)}]})
RTX4090 = Finding("ok", "", {"gpus": [{"compute_capability": (8, 9)}]})
ON_CPU = Finding(
    "ok", "", {"packages": {"onnxruntime": "1"}, "providers": ["CPUExecutionProvider"]}
)


def test_a_cpu_without_runtimes_is_told_of_both() -> None:
    told = advice(ONNX_Runtime=ABSENT, OpenVINO=ABSENT, TensorRT=ABSENT)
    assert told == 'pip install "vit-edge[cpu]"\npip install "vit-edge[openvino]"'


def test_a_gpu_asks_for_runtimes_that_use_it() -> None:
    assert "onnxruntime-gpu[cuda,cudnn]" in advice(GPU=H200, ONNX_Runtime=ON_CPU)
    assert "libnvinfer" in advice(GPU=H200, TensorRT=ABSENT)
    rtx = Finding("absent", "not installed")
    named = {"GPU": RTX4090, "TensorRT": ABSENT, "TensorRT-RTX": rtx}
    assert "pip install tensorrt-rtx-cu13" in [r.command for r in remedies(named, [])]
    named["GPU"] = H200
    assert "pip install tensorrt-rtx-cu13" not in [r.command for r in remedies(named, [])]


def test_a_jetson_gets_tensorrt_by_apt_and_an_environment_that_sees_it() -> None:
    told = advice(
        board=Finding("ok", "", {"jetson": True}),
        Python=Finding("ok", "", {"venv": True}),
        TensorRT=ABSENT,
        ONNX_Runtime=ABSENT,
        OpenVINO=ABSENT,
    )
    assert told.splitlines() == [
        'pip install "vit-edge[cpu]"',
        "sudo apt install python3-libnvinfer",
        "python3 -m venv --system-site-packages .venv",
    ]


def test_two_onnx_runtimes_over_each_other_are_taken_apart() -> None:
    both = Finding("trouble", "", {"packages": {"onnxruntime": "1", "onnxruntime-gpu": "1"}})
    assert advice(ONNX_Runtime=both).startswith("pip uninstall -y onnxruntime onnxruntime-gpu && ")


def test_what_could_not_be_found_out_is_no_reason_to_install() -> None:
    unknown = Finding("trouble", "could not be found out", {"error": "x"})
    assert advice(ONNX_Runtime=unknown, driver=unknown, foundation=unknown) == ""


def test_an_untuned_bundle_that_runs_is_worth_tuning() -> None:
    runs = {"ort": Finding("ok", "runs")}
    untuned = Examined(Path("b/fine"), answers=runs)
    tuned = Examined(Path("b/tuned"), tuned_for="batch 1: ort", answers=runs)
    dead = Examined(Path("b/dead"), answers={"ort": Finding("absent", "")})
    (told,) = remedies({}, [untuned, tuned, dead])
    assert told.command == "vit-edge build b/fine --tune"
