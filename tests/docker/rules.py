"""What every Dockerfile of ours keeps to, besides hadolint's rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.docker.dockerfile import Stage, stages

# Three numbers, or NVIDIA's year and month: a tag that is not moved to another version.
PINNED = re.compile(r":(r?\d+\.\d+\.\d+[\w.-]*|\d{2}\.\d{2}-py3)(@sha256:[0-9a-f]{64})?$")
LABELS = {f"org.opencontainers.image.{name}" for name in ("title", "description", "licenses")}


def problems(dockerfile: Path, context: Path) -> list[str]:
    """Everything in a Dockerfile that is against the rules."""
    found = stages(dockerfile)
    image = found[-1]
    listed = [*_pins(found), *_sources(found, context), *_image(image)]
    if len(found) < 2:
        listed.append("one stage: what builds is in the image")
    return listed


def _pins(found: list[Stage]) -> Iterator[str]:
    for stage in found:
        if not PINNED.search(stage.base):
            yield f"FROM {stage.base}: no full version"
        for run in stage.all("RUN"):
            for call in re.findall(r"pip (?:install|wheel)[^&]*", run.text):
                if "--constraint" not in call and "--no-index" not in call:
                    yield f"unpinned: {call}"
            if re.search(r"torch|\[export|\[dev", run.text):
                yield f"torch is for the workshop: {run.text}"


def _sources(found: list[Stage], context: Path) -> Iterator[str]:
    ignored = (context / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    names = {stage.name for stage in found}
    for stage in found:
        if stage.all("ADD"):
            yield "ADD: use COPY"
        for copy in stage.all("COPY"):
            if "from" in copy.flags:
                if copy.flags["from"] not in names:
                    yield f"COPY --from={copy.flags['from']}: no such stage"
                continue
            for source in copy.words[:-1]:
                if not (context / source).exists():
                    yield f"COPY {source}: not there"
                if source.partition("/")[0] not in allowed:
                    yield f"COPY {source}: .dockerignore keeps it out"


def _image(image: Stage) -> Iterator[str]:
    users = image.all("USER")
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1].text):
        yield "the last USER is not a number other than root's"
    elif any(one.name in ("RUN", "COPY") for one in image.instructions[_after(image, "USER") :]):
        yield "the user is changed before the image is complete"
    health = image.all("HEALTHCHECK")
    copied = {copy.words[-1] for copy in image.all("COPY")}
    if not health or not any(path in health[-1].text for path in copied):
        yield "no HEALTHCHECK of a file in the image"
    entries = image.all("ENTRYPOINT")
    if not entries or entries[-1].words != ["vit-edge"]:
        yield "ENTRYPOINT is not vit-edge"
    missing = LABELS - {name for label in image.all("LABEL") for name in label.pairs}
    if missing:
        yield f"no label {', '.join(sorted(missing))}"


def _after(image: Stage, name: str) -> int:
    return max(at for at, one in enumerate(image.instructions) if one.name == name)
