"""HTTP of KServe's protocol, version 2, with nothing but the standard library.

Specification: github.com/kserve/open-inference-protocol, and for tensors as bytes behind the JSON
Triton's extension_binary_data.md.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vit_edge.errors import BackendError, UsageError

LENGTH_HEADER = "Inference-Header-Content-Length"  # where the JSON ends and bytes begin
BINARY = "binary_tensor_data"  # the name of that extension
CONFIGURATION = "model_configuration"  # Triton's, which tells the largest batch
_PATH = re.compile(r"/?(?:v2(?:/models/([^/]+)(?:/versions/([^/]+))?)?(?:/infer)?)?/?")
_LARGEST_ANSWER = 2**30
_SHOWN = 300  # characters of a refusal that is no JSON


@dataclass(frozen=True)
class Address:
    """Where a server is, and which model was asked for."""

    scheme: str
    host: str
    port: int
    model: str | None
    version: str | None

    @property
    def text(self) -> str:
        """The server's part, as it is typed."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def address_from_url(url: str) -> Address:
    """Read http://HOST:PORT[/v2/models/NAME[/versions/N]].

    Raises:
        UsageError: It is none.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urllib.parse.SplitResult("", "", "", "", ""), 0
    if port is None:
        port = {"http": 80, "https": 443}.get(parts.scheme, 0)
    path = _PATH.fullmatch(parts.path)
    extra = parts.query or parts.fragment or parts.username or parts.password
    if parts.scheme not in ("http", "https") or not parts.hostname or not port or extra or not path:
        raise UsageError(f"{url!r}: expected http://HOST:PORT, or http://HOST:PORT/v2/models/NAME")
    model, version = (one and urllib.parse.unquote(one) for one in path.groups())
    return Address(parts.scheme, parts.hostname, port, model, version)


@dataclass(frozen=True)
class Reply:
    """A status below 400, and what came with it."""

    content: bytes
    headers: Mapping[str, str]

    def json(self, where: str) -> Any:
        """The JSON of a reply without bytes behind it.

        Raises:
            BackendError: It is none.
        """
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            raise BackendError(
                f"{where}: no JSON came back, but {self.content[:60]!r}: no server of KServe's "
                "protocol, version 2"
            ) from None


class RefusedError(BackendError):
    """The server answered with an error."""

    def __init__(self, message: str, status: int = 0) -> None:
        """Keep the status, so that a caller can tell what is not there from what is wrong."""
        super().__init__(message)
        self.status = status


def ask(
    address: Address,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    timeout_s: float = 30.0,
) -> Reply:
    """Send one request, on a connection of its own.

    Raises:
        RefusedError: The server's status is an error; with its own message.
        BackendError: It does not answer, or sends us elsewhere.
    """
    where = f"{address.text}{path}"
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.host, address.port, timeout=timeout_s)
    try:
        with contextlib.closing(connection):
            connection.request(method, path, body or None, dict(headers or {}))
            response = connection.getresponse()
            content = response.read(_LARGEST_ANSWER + 1)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        reason = str(error) or type(error).__name__
        raise BackendError(
            f"{where}: no answer: {reason}. Does the server run, and is this its port for HTTP "
            "(gRPC has another one)?"
        ) from error
    if len(content) > _LARGEST_ANSWER:
        raise BackendError(f"{where}: the answer has more than {_LARGEST_ANSWER:,} bytes")
    if response.status >= 400:
        message = f"{where}: HTTP {response.status}: {_message(content) or response.reason}"
        raise RefusedError(message, response.status)
    if response.status >= 300:
        raise BackendError(
            f"{where}: HTTP {response.status}: the server is at {response.headers.get('Location')}"
        )
    return Reply(content, {name.lower(): value for name, value in response.getheaders()})


def _message(content: bytes) -> str:
    """What a server says is wrong: Triton and MLServer in "error", FastAPI in "detail"."""
    text = content.decode(errors="replace").strip()
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict):
            text = str(found.get("error") or found.get("detail") or text)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def split_reply(reply: Reply, where: str) -> tuple[dict[str, Any], bytes]:
    """Part the JSON of an inference's reply from the bytes behind it.

    Raises:
        BackendError: It is no such reply.
    """
    length = reply.headers.get(LENGTH_HEADER.lower())
    end = int(length) if length and length.isascii() and length.isdigit() else len(reply.content)
    head = Reply(reply.content[:end], {}).json(where)
    if not isinstance(head, dict) or not isinstance(head.get("outputs"), list):
        raise BackendError(f"{where}: the answer has no outputs")
    return head, reply.content[end:]


def quoted(parts: Sequence[str]) -> str:
    """A path of these parts."""
    return "/" + "/".join(urllib.parse.quote(part, safe="") for part in parts)
