"""Clients of a running Triton against a stream in this process, with the same bundle and files.

    vit-edge triton BUNDLE --out models && tritonserver --model-repository models
    python benchmarks/serving.py --bundle BUNDLE --photos DIR --url http://localhost:8000/v2/models/NAME

Each client sends one photo a request and waits for its label; the server makes the batches.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import statistics
import struct
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import photos
import script
import timing

from vit_edge import Predictor
from vit_edge.errors import BackendError
from vit_edge.kserve.client import LENGTH_HEADER, Address, address_from_url, quoted

STREAM = "stream in one process"


def main(argv: list[str] | None = None) -> int:
    parser = script.parser(__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR")
    parser.add_argument("--url", required=True, help="of the model, with its name")
    parser.add_argument("--clients", type=int, default=8, help="default: 8")
    parser.add_argument("--count", type=int, default=256, help="photos a round; default: 256")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    return script.run(parser, run, argv)


def run(arguments: argparse.Namespace) -> int:
    address = address_from_url(arguments.url)
    files = [file.read_bytes() for file in photos.photo_files(arguments.photos)]
    images = list(itertools.islice(itertools.cycle(files), arguments.count))
    with Predictor(arguments.bundle) as predictor:
        print(f"{script.machine()}\n{dict(predictor.facts)}")
        expected = [prediction.label for prediction in predictor.stream(images)]
        candidates: dict[str, Callable[[], object]] = {
            STREAM: lambda: list(predictor.stream(images))
        }
        for clients in sorted({1, arguments.clients}):
            labels = ask_all(address, images, clients)
            if labels != expected:
                raise BackendError(f"{arguments.url}: other labels than the bundle's")
            candidates[f"Triton, {clients} clients"] = (
                lambda clients=clients: ask_all(address, images, clients)  # type: ignore[misc]
            )
        taken = timing.timings(candidates, arguments.rounds, warmup=1)
    print(f"\n{len(images)} photos a round, {arguments.rounds} rounds")
    print(timing.report(taken, STREAM))
    middle = {name: statistics.median(values) for name, values in taken.items()}
    for name, took in middle.items():
        print(
            f"{name}: {len(images) / took:.0f} images/s, {middle[STREAM] / took:.2f} x the stream"
        )
    return 0


def ask_all(address: Address, images: Sequence[bytes], clients: int) -> list[str]:
    """The labels of images, which clients share among them."""
    labels = [""] * len(images)

    def ask_some(first: int) -> None:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=60)
        with contextlib.closing(connection):
            for index in range(first, len(images), clients):
                labels[index] = ask(connection, address, images[index])

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(ask_some, range(clients)))
    return labels


def ask(connection: http.client.HTTPConnection, address: Address, image: bytes) -> str:
    """The label of one image."""
    tensor = {
        "name": "image", "datatype": "BYTES", "shape": [1, 1],
        "parameters": {"binary_data_size": len(image) + 4},
    }  # fmt: skip
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "label"}]}).encode()
    body = head + struct.pack("<I", len(image)) + image
    path = quoted(["v2", "models", address.model or "", "infer"])
    connection.request("POST", path, body, {LENGTH_HEADER: str(len(head))})
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise BackendError(f"HTTP {response.status}: {content[:200]!r}")
    label: str = json.loads(content)["outputs"][0]["data"][0]
    return label


if __name__ == "__main__":
    sys.exit(main())
