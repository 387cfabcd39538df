"""Images decoded in threads, ahead of a model that runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

Image = TypeVar("Image")
Decoded = TypeVar("Decoded")

_BATCHES = 3  # one that the model has, and two that are decoded or waiting


def decoded_batches(
    images: Iterable[Image], decode: Callable[[Image], Decoded], size: int, threads: int
) -> Iterator[list[Decoded]]:
    """Decode images in order, some batches ahead of the caller.

    What was read before an error of the source's own is given first.

    Args:
        images: Read as the batches are taken.
        decode: Called in a thread; what it raises is raised where its batch would be.
        size: Of a batch; the last one may be smaller.
        threads: How many decode.
    """
    from concurrent.futures import ThreadPoolExecutor  # a single image needs none

    source = iter(images)
    failure: Exception | None = None
    waiting: deque[Future[Decoded]] = deque()
    with ThreadPoolExecutor(threads, "vit_edge-decode") as pool:
        try:
            while True:
                while failure is None and len(waiting) < _BATCHES * size:
                    try:
                        waiting.append(pool.submit(decode, next(source)))
                    except Exception as error:  # the end, or an error of the source's own
                        failure = error
                if not waiting:
                    break
                yield [waiting.popleft().result() for _ in range(min(size, len(waiting)))]
        finally:
            for future in waiting:
                future.cancel()
    if failure is not None and not isinstance(failure, StopIteration):
        raise failure
