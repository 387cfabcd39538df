"""A model on a server, as a backend: pixels out, answers back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_edge.backends import check_pixels
from vit_edge.bundle import Bundle
from vit_edge.errors import BackendError
from vit_edge.kserve.client import (
    BINARY,
    CONFIGURATION,
    LENGTH_HEADER,
    Address,
    RefusedError,
    address_from_url,
    ask,
    quoted,
    split_reply,
)
from vit_edge.kserve.encode import file_from_resized, resized_from_input
from vit_edge.kserve.tensors import TYPES, input_of_files, input_of_pixels, outputs_from_reply

_INFER_TIMEOUT_S = 600.0


class Endpoint:
    """One model of a running server. It takes the model's own tensor, or encoded files."""

    def __init__(self, bundle: Bundle, url: str) -> None:
        """Ask the server what it is, and whether it serves this bundle's model.

        Args:
            bundle: What the model was made of.
            url: http://HOST:PORT, or with /v2/models/NAME behind it.

        Raises:
            UsageError: The URL is none.
            BackendError: No answer, no such model, or one with other tensors.
        """
        self._bundle = bundle
        self._address = address_from_url(url)
        about = _table(self._address, "/v2")
        extensions = _listed(about, "extensions")
        self._binary = BINARY in extensions
        self._model = self._address.model or _model_of(self._address, bundle)
        version = self._address.version
        parts = ["v2", "models", self._model, *(["versions", version] if version else [])]
        self._path = quoted(parts)
        metadata = _table(self._address, self._path)
        given, self.encoded = self._input(metadata)
        self._name, self._rank = given["name"], len(given["shape"])
        self._check_outputs(metadata)
        self.max_batch = bundle.manifest.max_batch
        if type(fixed := given["shape"][0]) is int and fixed > 0 and not self.encoded:
            self.max_batch = min(self.max_batch, fixed)
        if CONFIGURATION in extensions:  # 0: the model has no limit that Triton knows of
            most = _table(self._address, f"{self._path}/config").get("max_batch_size")
            if type(most) is int and most > 0:
                self.max_batch = min(self.max_batch, most)
        self.facts: Mapping[str, str] = {
            "backend": "kserve",
            "runtime": f"{about.get('name', 'a server')} {about.get('version', '')}".strip(),
            "device": self._address.text,
            "provider": str(metadata.get("platform") or "unknown"),
            "precision": bundle.manifest.precision,
            "threads": "of the server",
            "engine": f"model {self._model}, version {version or _newest(metadata)}",
            "input": "encoded files" if self.encoded else "the model's tensor",
            "transfer": "bytes" if self._binary else "JSON",
        }

    @property
    def url(self) -> str:
        """The model's address."""
        return f"{self._address.text}{self._path}"

    def run(self, pixels: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
        """See vit_edge.backends.Backend; a server of files gets PNGs of exactly these pixels."""
        manifest = self._bundle.manifest
        check_pixels(pixels, manifest)
        if not self.encoded:
            return self._infer(*input_of_pixels(self._name, pixels, binary=self._binary))
        resized = resized_from_input(pixels, manifest)
        return self.run_files([file_from_resized(one, manifest.preprocessing) for one in resized])

    def run_files(self, files: Sequence[bytes]) -> dict[str, NDArray[np.float32]]:
        """Answer encoded files; of a server that takes them.

        Raises:
            BackendError: As the server says, or its answer is none.
        """
        return self._infer(*input_of_files(self._name, files, self._rank, binary=self._binary))

    def close(self) -> None:
        """Nothing is kept open."""

    def _infer(self, tensor: dict[str, Any], data: bytes) -> dict[str, NDArray[np.float32]]:
        shapes = {output.name: output.shape[1:] for output in self._bundle.manifest.outputs}
        asked: list[dict[str, Any]] = [{"name": name} for name in shapes]
        if self._binary:
            asked = [{**one, "parameters": {"binary_data": True}} for one in asked]
        head = json.dumps({"inputs": [tensor], "outputs": asked}).encode()
        headers = {"Content-Type": "application/json"}
        if self._binary:
            headers = {
                "Content-Type": "application/octet-stream",
                LENGTH_HEADER: str(len(head)),
            }
        path = f"{self._path}/infer"
        reply = ask(self._address, "POST", path, head + data, headers, timeout_s=_INFER_TIMEOUT_S)
        answers = outputs_from_reply(*split_reply(reply, self.url), list(shapes), self.url)
        count = tensor["shape"][0]
        wrong = [
            f"{name} is {list(values.shape)}, not {[count, *shapes[name]]}"
            for name, values in answers.items()
            if values.shape != (count, *shapes[name])
        ]
        if wrong:
            raise BackendError(f"{self.url}: {'; '.join(wrong)}")
        return answers

    def _input(self, metadata: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
        """The model's only input, and whether it takes encoded files.

        Raises:
            BackendError: There are more, or it is neither files nor the bundle's tensor.
        """
        tensor = self._bundle.manifest.input
        inputs = _tensors(metadata, "inputs")
        if len(inputs) != 1:
            names = ", ".join(map(str, inputs)) or "none (declare it in the server's settings)"
            raise BackendError(f"{self.url}: expected one input, the server names {names}")
        ((name, (datatype, shape)),) = inputs.items()
        if datatype == "BYTES" and shape and shape[1:] in ([], [1]):
            return {"name": name, "shape": shape}, True
        if datatype != TYPES[tensor.dtype] or shape[1:] != list(tensor.shape[1:]):
            wanted = f"{TYPES[tensor.dtype]} {[-1, *tensor.shape[1:]]}"
            raise BackendError(
                f"{self.url}: input {name} is {datatype} {shape}, the bundle's is {wanted}: "
                "another model, or one exported otherwise"
            )
        return {"name": name, "shape": shape}, False

    def _check_outputs(self, metadata: Mapping[str, Any]) -> None:
        """Refuse a model that does not give what the golden answers are compared with.

        Raises:
            BackendError: Outputs are missing, or have other shapes.
        """
        there = _tensors(metadata, "outputs")
        problems = []
        for output in self._bundle.manifest.outputs:
            shape = there.get(output.name, ("", []))[1]
            if output.name not in there:
                problems.append(f"no output {output.name}, only {', '.join(there) or 'none'}")
            elif shape[1:] != list(output.shape[1:]):
                problems.append(f"{output.name} is {shape}, not {[-1, *output.shape[1:]]}")
        if problems:
            raise BackendError(
                f"{self.url}: another model than the bundle's: {'; '.join(problems)}"
            )


def _table(address: Address, path: str) -> dict[str, Any]:
    found = ask(address, "GET", path).json(f"{address.text}{path}")
    if not isinstance(found, dict):
        raise BackendError(f"{address.text}{path}: expected a JSON object, got {found!r:.60}")
    return found


def _listed(table: Mapping[str, Any], key: str) -> list[Any]:
    """A list in what a server says; an empty one where it says something else, or nothing."""
    value = table.get(key)
    return value if isinstance(value, list) else []


def _tensors(metadata: Mapping[str, Any], kind: str) -> dict[str, tuple[str, list[int]]]:
    """Name -> type and shape of what a server says of a model.

    Raises:
        BackendError: It is not what the protocol says.
    """
    try:
        return {
            str(one["name"]): (str(one["datatype"]), [int(size) for size in one["shape"]])
            for one in _listed(metadata, kind)
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BackendError(f"the server's {kind} cannot be read: {error!r}") from None


def _model_of(address: Address, bundle: Bundle) -> str:
    """The model that is asked where none is named: of the bundle's name, or the only one.

    Raises:
        BackendError: There is none, or the choice is the user's.
    """
    name = bundle.path.resolve().name
    try:
        _table(address, quoted(["v2", "models", name]))
        return name
    except RefusedError:
        pass
    try:
        index = ask(address, "POST", "/v2/repository/index", b"{}").json(address.text)
        names = sorted({str(model["name"]) for model in index})
    except (BackendError, KeyError, TypeError):
        names = []
    if len(names) == 1:
        return names[0]
    there = f"it has {', '.join(names)}" if names else "it names none of its own"
    raise BackendError(
        f"{address.text}: no model {name!r}; {there}. Name one: {address.text}/v2/models/NAME"
    )


def _newest(metadata: Mapping[str, Any]) -> str:
    versions = [str(version) for version in _listed(metadata, "versions")]
    return max(versions, key=lambda text: (len(text), text), default="unknown")
