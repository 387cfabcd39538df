"""Follow a Dockerfile without a Docker engine: the same instructions, in directories, by chroot.

The base image is a fresh Debian made by debootstrap, with Debian's own Python in place of the
python image's. What the build takes from the machine it runs on is the network: name resolution,
certificates, and pip's settings. Needs root, debootstrap and unshare.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.docker.dockerfile import Instruction, Stage, expanded, stages

PACKAGES = "ca-certificates,python3,python3-venv"
NETWORK = ("etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt")
SETTINGS = (
    "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT", "PIP_DEFAULT_TIMEOUT",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # of the python images


@dataclass
class Image:
    """A root directory, and what containers of it start with."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    user: str = "0:0"
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)

    def run(
        self, argv: Sequence[str], *, check: bool = True, mounts: Sequence[tuple[Path, str]] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as this image's user; mounts and /proc are gone with its namespace."""
        inside = [*self.env_words(), *argv]
        steps = [f"mount -t proc proc {shlex.quote(str(self.root / 'proc'))}"]
        for source, target in mounts:
            point = self.root / target.lstrip("/")
            point.mkdir(parents=True, exist_ok=True)
            steps.append(f"mount --bind {shlex.quote(str(source))} {shlex.quote(str(point))}")
        enter = f"cd {shlex.quote(self.workdir)} && exec {shlex.join(inside)}"
        steps.append(
            f"exec chroot --userspec={self.user} {shlex.quote(str(self.root))} "
            f"/bin/sh -c {shlex.quote(enter)}"
        )
        done = subprocess.run(
            ["unshare", "--mount", "/bin/sh", "-ec", "\n".join(steps)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{shlex.join(argv)}\n{done.stdout}\n{done.stderr}")
        return done

    def env_words(self) -> list[str]:
        """`env -i` with the image's variables, and HOME as a container has it."""
        home = "/root" if self.user.startswith("0") else "/home/vit-edge"
        pairs = [f"{name}={value}" for name, value in self.env.items()]
        return ["/usr/bin/env", "-i", f"HOME={home}", *pairs]


def debian(root: Path) -> None:
    """Make a fresh Debian 12 with Python 3.11, from debootstrap's default mirror."""
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    for name in NETWORK:
        if Path("/", name).is_file():
            shutil.copyfile(Path("/", name), root / name)


def build(dockerfile: Path, context: Path, base: Path, folder: Path) -> Image:
    """Follow the Dockerfile.

    Args:
        dockerfile: The file.
        context: Where COPY takes files from.
        base: A root directory, in place of every FROM.
        folder: Where the stages' root directories go.

    Returns:
        The last stage.
    """
    built: dict[str, Image] = {}
    for number, stage in enumerate(stages(dockerfile)):
        root = folder / str(number)
        subprocess.run(["cp", "-a", str(base), str(root)], check=True)
        built[stage.name] = _followed(stage, Image(root), context, built)
    return built[stage.name]


def _followed(stage: Stage, image: Image, context: Path, built: dict[str, Image]) -> Image:
    arguments: dict[str, str] = {}
    for one in stage.instructions:
        if one.name == "RUN":
            _run(one, image, arguments, built)
        elif one.name == "COPY":
            source = built[one.flags["from"]].root if "from" in one.flags else context
            _copy(one, image, source)
        elif one.name == "ENV":
            values = arguments | image.env
            image.env |= {name: expanded(text, values) for name, text in one.pairs.items()}
        elif one.name == "ARG":
            arguments |= one.pairs
        elif one.name == "WORKDIR":
            image.workdir = one.text
            (image.root / one.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif one.name == "USER":
            image.user = one.text
        elif one.name == "HEALTHCHECK":
            image.healthcheck = Instruction("CMD", {}, one.text.removeprefix("CMD").strip()).words
        elif one.name == "ENTRYPOINT":
            image.entrypoint = one.words
        elif one.name == "CMD":
            image.command = one.words
        elif one.name != "LABEL":
            raise NotImplementedError(f"{one.name}: teach tests/docker/image.py to follow it")
    return image


def _run(
    one: Instruction, image: Image, arguments: dict[str, str], built: dict[str, Image]
) -> None:
    settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    builder = Image(image.root, image.env | arguments | settings, image.user, image.workdir)
    mounts = []
    if "mount" in one.flags:
        mount = dict(part.split("=", 1) for part in one.flags["mount"].split(","))
        source = built[mount["from"]].root / mount["source"].lstrip("/")
        mounts.append((source, mount["target"]))
    builder.run(["/bin/sh", "-c", one.text], mounts=mounts)


def _copy(one: Instruction, image: Image, source: Path) -> None:
    *names, target = one.words
    to = image.root / os.path.join(image.workdir, target).lstrip("/")  # noqa: PTH118
    for name in names:
        path = source / name.lstrip("/")
        into = to / path.name if target.endswith("/") or target == "." else to
        into.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, to, dirs_exist_ok=True)  # a directory's content is copied
        else:
            shutil.copy(path, into)
