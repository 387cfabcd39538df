"""NVIDIA's tritonserver with its Python backend, from the wheel nvidia-pytriton.

The wheel is installed without what it depends on (`pip install --no-deps nvidia-pytriton`) in an
environment with numpy < 2. Its stub for the Python backend takes the environment of the `python3`
that is first on PATH.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STARTING_S = 180.0


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """One request of JSON: the status, and what came back."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, json.loads(response.read())


def folder() -> Path | None:
    """Where the wheel has put the server; None where it is not, or not for this Python.

    The stub is linked with Python's shared library, which some builds of Python lack.
    """
    library = str(sysconfig.get_config_var("INSTSONAME"))
    if not (Path(str(sysconfig.get_config_var("LIBDIR"))) / library).is_file():
        return None
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return None
    place = Path(spec.submodule_search_locations[0]) / "tritonserver"
    return place if ".so" in library and _stub(place).is_file() else None


def _stub(place: Path) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return place / "python_backend_stubs" / version / "triton_python_backend_stub"


@contextlib.contextmanager
def serving(scratch: Path, *repositories: Path) -> Iterator[Server]:
    """Serve model repositories; models that do not load do not end the server."""
    place = folder()
    assert place is not None
    backend = scratch / "backends" / "python"
    backend.mkdir(parents=True)
    for file in (*(place / "backends" / "python").glob("*.*"), _stub(place)):
        (backend / file.name).symlink_to(file)
    libraries = place.parents[1] / "nvidia_pytriton.libs"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{libraries}:{sysconfig.get_config_var('LIBDIR')}",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(place / "bin" / "tritonserver"), f"--backend-directory={backend.parent}",
        f"--http-port={port}", "--http-address=127.0.0.1", "--allow-grpc=false",
        "--allow-metrics=false", "--exit-on-error=false", "--strict-readiness=false",
        *(f"--model-repository={repository}" for repository in repositories),
    ]  # fmt: skip
    log = scratch / "server.log"
    with log.open("wb") as written:
        process = subprocess.Popen(command, env=environment, stdout=written, stderr=written)
    try:
        server = Server(port, log)
        _wait(server, process)
        yield server
    finally:
        process.terminate()
        process.wait(60)


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _STARTING_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            if server.ask("GET", "/v2")[0] == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"tritonserver does not answer:\n{server.log.read_text()[-4000:]}")
