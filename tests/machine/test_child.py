"""Child processes: what they cost, and what they died of."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vit_edge.errors import ImageDecodeError, ResourceError, UsageError
from vit_edge.machine import cgroups, child, processes
from vit_edge.machine.child import call_in_child, run_child

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

MIB = 1 << 20
TOUCH = "b = bytearray({mib} << 20); b[::4096] = b'x' * len(b[::4096]); "


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


@pytest.fixture
def no_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "memory_group", lambda _: None)


# What call_in_child calls in the tests below.
def double(value: int) -> int:
    return 2 * value


def refuse(name: str) -> None:
    raise ImageDecodeError(f"{name} is no image")


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def unpicklable() -> object:
    return lambda: None


def test_output_exit_code_and_time_come_back() -> None:
    result = run_child(
        python(
            "import sys, time; print('out'); print('err', file=sys.stderr);"
            "time.sleep(0.1); sys.exit(3)"
        )
    )
    assert (result.returncode, result.stdout, result.stderr) == (3, "out\n", "err\n")
    assert result.death is None
    assert 0.1 <= result.wall_s < 5


def test_a_megabyte_of_output_does_not_block() -> None:
    assert len(run_child(python("print('x' * 2 ** 20)"), timeout_s=20).stdout) == MIB + 1


def test_the_peak_is_the_childs_memory_and_not_ours() -> None:
    ours = bytearray(150 * MIB)
    ours[::4096] = b"x" * len(ours[::4096])
    small = run_child(python("import time; time.sleep(0.1)"))
    large = run_child(python(TOUCH.format(mib=100) + "import time; time.sleep(0.1)"))
    assert small.peak_rss_bytes < 60 * MIB
    assert 100 * MIB < large.peak_rss_bytes < 160 * MIB
    assert 100 * MIB < large.peak_anonymous_bytes <= large.peak_rss_bytes


def test_a_peak_that_is_over_before_the_end_is_still_the_peak() -> None:
    result = run_child(python(TOUCH.format(mib=100) + "del b; import time; time.sleep(0.2)"))
    assert result.peak_rss_bytes > 100 * MIB


def test_children_of_the_child_are_counted_and_shared_pages_only_once() -> None:
    fork = "import os, time\nif not os.fork(): time.sleep(0.4); os._exit(0)\n"
    shared = run_child(python(TOUCH.format(mib=100) + "\n" + fork + "time.sleep(0.4)"))
    separate = run_child(
        python(
            fork.replace("time.sleep(0.4); ", TOUCH.format(mib=100) + "time.sleep(0.4); ")
            + TOUCH.format(mib=100)
            + "time.sleep(0.4)"
        )
    )
    assert 100 * MIB < shared.peak_rss_bytes < 160 * MIB
    assert separate.peak_anonymous_bytes > 200 * MIB


def test_the_tree_is_found_without_the_kernels_list_of_children(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "_KERNEL_LISTS_CHILDREN", False)
    test_children_of_the_child_are_counted_and_shared_pages_only_once()


def test_a_child_that_ends_while_it_is_read_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pages were shared: what it had before would count them a second time."""
    listed = processes._kilobyte_lines

    def ends_in_between(path: Path) -> dict[str, int]:
        if path.parent.name == str(other.pid) and path.name == "smaps_rollup":
            other.kill()
            other.wait()
        return listed(path)

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        monkeypatch.setattr(processes, "process_tree", lambda pid: [pid, other.pid])
        monkeypatch.setattr(processes, "_kilobyte_lines", ends_in_between)
        total_bytes, _, _ = processes.tree_memory_bytes(os.getpid())
    ours = listed(Path("/proc/self/smaps_rollup"))["Pss"]
    assert total_bytes < ours + 2 * MIB


def test_a_child_beyond_its_limit_is_killed_and_the_limit_named() -> None:
    result = run_child(
        python(TOUCH.format(mib=300) + "import time; time.sleep(5)"), memory_limit_bytes=100 * MIB
    )
    assert result.returncode == -signal.SIGKILL
    assert result.limited_by in ("cgroup", "watching")
    with pytest.raises(ResourceError, match="the build did not finish: .* limit of 100 MiB"):
        result.check("the build")


@pytest.mark.usefixtures("no_cgroups")
def test_where_no_cgroup_can_be_made_the_child_is_watched_and_killed() -> None:
    result = run_child(
        python(TOUCH.format(mib=300) + "import time; time.sleep(5)"), memory_limit_bytes=100 * MIB
    )
    assert (result.limited_by, result.returncode) == ("watching", -signal.SIGKILL)
    assert "limit of 100 MiB" in str(result.death)
    assert result.wall_s < 4


def test_a_child_within_its_limit_is_left_alone() -> None:
    result = run_child(python(TOUCH.format(mib=50)), memory_limit_bytes=200 * MIB)
    assert (result.returncode, result.death) == (0, None)


def test_a_cgroup_is_gone_afterwards() -> None:
    group = cgroups.memory_group(64 * MIB)
    if group is None:
        pytest.skip("no memory cgroup can be made here")
    assert group.path.is_dir()
    group.close()
    assert not group.path.exists()
    run_child(python(""), memory_limit_bytes=64 * MIB)
    assert not list(group.path.parent.glob(f"vit_edge-{os.getpid()}-*"))


def test_a_timeout_kills_the_child_and_its_children() -> None:
    code = "import subprocess; p = subprocess.Popen(['sleep', '30']); print(p.pid, flush=True); "
    code += "p.wait()"
    result = run_child(python(code), timeout_s=0.5)
    assert result.death == "it took longer than 0.5 s"
    time.sleep(0.1)
    state = Path(f"/proc/{result.stdout.strip()}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_signal_is_named() -> None:
    result = run_child(python("import os; os.kill(os.getpid(), 11)"))
    assert (result.returncode, result.death) == (-11, "killed by SIGSEGV")


def test_a_command_that_is_not_there_is_a_resource_error() -> None:
    with pytest.raises(ResourceError, match="nonesuch could not be started"):
        run_child(["nonesuch"])


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="must be positive"):
        run_child(python(""), memory_limit_bytes=0)


def test_another_system_than_linux_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child.sys, "platform", "darwin")
    with pytest.raises(UsageError, match="this is darwin"):
        run_child(python(""))


def test_a_call_returns_what_the_function_returned() -> None:
    assert call_in_child("tests.machine.test_child:double", 21) == 42


def test_a_call_raises_what_the_function_raised() -> None:
    with pytest.raises(ImageDecodeError, match="x.jpg is no image"):
        call_in_child("tests.machine.test_child:refuse", "x.jpg")


@pytest.mark.parametrize(
    ("name", "reason"), [("die", "SIGSEGV"), ("unpicklable", "exit code 1[\\s\\S]*pickle")]
)
def test_a_call_without_an_answer_is_a_resource_error(name: str, reason: str) -> None:
    with pytest.raises(ResourceError, match=reason):
        call_in_child(f"tests.machine.test_child:{name}")


def test_the_kernels_kills_are_read_from_both_versions(tmp_path: Path) -> None:
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert cgroups.oom_kills(tmp_path) == 2
    (tmp_path / "memory.events").write_text("low 0\noom 1\noom_kill 3\noom_group_kill 0\n")
    assert cgroups.oom_kills(tmp_path) == 3


@pytest.fixture
def children_ignored() -> Iterator[None]:
    """What a parent that ignores SIGCHLD leaves to us."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, before)


def ignored_signals() -> int:
    """The bits of the signals that the kernel drops for this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("SigIgn:")[2].split()[0], 16)


@pytest.mark.usefixtures("children_ignored")
def test_a_child_is_waited_for_where_sigchld_is_ignored() -> None:
    before = ignored_signals()
    assert run_child(python("raise SystemExit(7)")).returncode == 7
    assert run_child(python("import os; os.kill(os.getpid(), 9)")).death == "killed by SIGKILL"
    with ThreadPoolExecutor(2) as pool:  # Python lets only the main thread set a handler
        assert list(pool.map(double_in_child, (3, 4))) == [6, 8]
    assert ignored_signals() == before


def double_in_child(value: int) -> int:
    answer: int = call_in_child(f"{__name__}:double", value)
    return answer


def speak() -> None:
    print("\u732b", file=sys.stderr)


def test_what_a_child_says_is_read_as_it_was_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    call_in_child(f"{__name__}:speak")
    assert capsys.readouterr().err == "\u732b\n"


def test_a_call_goes_on_where_stderr_was_closed_before_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert child.attempted_call(f"{__name__}:double", 2, echo=True).value == 4
    assert child.attempted_call(f"{__name__}:double", 2).value == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_answer_that_finds_no_room_is_said_to_be_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = tmp_path / "request"
    request.write_bytes(pickle.dumps((f"{__name__}:double", (2,))))
    with pytest.raises(SystemExit) as stopped:
        child._main(str(request), "/dev/full")
    assert stopped.value.code == os.EX_IOERR
    assert "No space left" in capsys.readouterr().err
    ended = run_child(python(f"raise SystemExit({os.EX_IOERR})"))
    monkeypatch.setattr(child, "run_child", lambda *_, **__: ended)
    with pytest.raises(ResourceError, match=r"could not be written below .*TMPDIR"):
        call_in_child(f"{__name__}:double", 2)
