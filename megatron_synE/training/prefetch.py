"""The batches of the next steps, read by a thread while this step computes.

Nothing of it has to be saved: what is read depends on sample numbers alone, so a batch that was read for nothing is
read again when its step comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Reads ahead.

    Args:
        read: sample numbers int64[global batch] → what a step needs of them. Runs in one thread, in order.
        depth: steps to read ahead; 0 reads each in `take`.
    """

    def __init__(self, read: Callable[[np.ndarray], T], depth: int) -> None:
        self._read, self._depth = read, depth
        self._ahead: deque[tuple[np.ndarray, Future[T]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch") if depth else None

    def take(self, upcoming: Iterator[np.ndarray], may_read: Callable[[int], bool] = lambda first: True) -> T:
        """The first of the upcoming batches; begins to read those after it.

        Args:
            upcoming: the sample numbers of the next steps.
            may_read: whether what a later batch holds is settled, by its first sample; asked in order.

        Raises:
            whatever `read` raised for this batch.
        """
        wanted = next(upcoming)
        if self._thread is None:
            return self._read(wanted)
        if not self._ahead or not np.array_equal(self._ahead[0][0], wanted):
            self.forget()
            self._ahead.append((wanted, self._thread.submit(self._read, wanted)))
        batch = self._ahead.popleft()[1]
        for number in range(self._depth):
            samples = next(upcoming, None)
            if samples is None or not may_read(int(samples[0])):
                break
            if number == len(self._ahead):
                self._ahead.append((samples, self._thread.submit(self._read, samples)))
        return batch.result()

    def forget(self) -> None:
        """Drop what was read ahead, and wait for the read under way: afterwards nothing else touches the data."""
        for _, future in self._ahead:
            future.cancel()
        for _, future in self._ahead:
            if not future.cancelled():
                future.exception()
        self._ahead.clear()

    def close(self) -> None:
        """End the thread."""
        self.forget()
        if self._thread is not None:
            self._thread.shutdown()
