"""Classify what a camera sees, frame by frame, and say how old each answer is.

    pip install "vit-edge[cpu]" opencv-python-headless
    python examples/camera.py bundles/cifar10                 # the first camera
    python examples/camera.py bundles/cifar10 --source clip.avi --frames 100

A camera wants latency, not throughput: one frame at a time, and always the newest. Frames that
arrive while the model runs are dropped, never queued.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from vit_edge import Predictor


class Frame(NamedTuple):
    """One picture and when it was read."""

    rgb: NDArray[np.uint8]  # [H, W, 3]
    read_at: float  # seconds of time.perf_counter


def rgb_from_bgr(bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """OpenCV's channels are blue, green, red; the predictor's are red, green, blue.

    A frame handed over as it comes would be classified, and often wrongly: nothing can notice.
    """
    return bgr[:, :, ::-1]


def newest_frames(capture: cv2.VideoCapture, *, live: bool) -> Iterator[Frame]:
    """Give the newest frame each time one is asked for.

    Args:
        capture: An open camera or file.
        live: Read on while the caller works, and drop what it had no time for. A file is read
            frame by frame instead.
    """
    if not live:
        while (frame := _read(capture)) is not None:
            yield frame
        return
    newest: list[Frame | None] = []
    arrived = threading.Condition()

    def read_on() -> None:
        frame: Frame | None = None
        while not stop.is_set():
            frame = _read(capture)
            with arrived:
                newest[:] = [frame]
                arrived.notify()
            if frame is None:
                return

    stop = threading.Event()
    reader = threading.Thread(target=read_on, daemon=True)
    reader.start()
    try:
        while True:
            with arrived:
                arrived.wait_for(lambda: newest)
                frame = newest.pop()
            if frame is None:
                return
            yield frame
    finally:
        stop.set()
        reader.join()


def _read(capture: cv2.VideoCapture) -> Frame | None:
    there, bgr = capture.read()
    return Frame(rgb_from_bgr(np.asarray(bgr, np.uint8)), time.perf_counter()) if there else None


def main() -> None:
    """Print a line a frame: the class, its score, milliseconds from the picture to the answer."""
    parser = argparse.ArgumentParser(description="Classify a camera's frames.")
    parser.add_argument("bundle", help="a bundle's directory")
    parser.add_argument("--source", default="0", help="a camera's number, or a video; default: 0")
    parser.add_argument("--frames", type=int, help="stop after so many; default: never")
    arguments = parser.parse_args()
    live = arguments.source.isdecimal()
    capture = cv2.VideoCapture(int(arguments.source) if live else arguments.source)
    if not capture.isOpened():
        parser.error(f"--source {arguments.source}: OpenCV cannot open it")
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # where the driver allows it: no old frames
    taken_ms: list[float] = []
    with Predictor(arguments.bundle) as predictor:
        predictor.predict(np.zeros((32, 32, 3), np.uint8))  # the first answer is the slowest
        try:
            for frame in newest_frames(capture, live=live):
                prediction = predictor.predict(frame.rgb, top_k=1)
                taken_ms.append(1e3 * (time.perf_counter() - frame.read_at))
                print(f"{prediction.label:20} {prediction.score:6.1%} {taken_ms[-1]:7.1f} ms")
                if len(taken_ms) == arguments.frames:
                    break
        except KeyboardInterrupt:
            pass
    capture.release()
    if taken_ms:
        print(f"{len(taken_ms)} frames, median {statistics.median(taken_ms):.1f} ms to an answer")


if __name__ == "__main__":
    main()
