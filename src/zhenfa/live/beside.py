"""One thread that works beside the card's own: sums of gradients go on there while backward passes still run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Beside:
    """Does what it is given in the order given. Its thread ends with :meth:`close`, or with the process."""

    def __init__(self) -> None:
        self._given: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def give(self, work: Callable[[], Any]) -> Future[Any]:
        """Have some work done when what was given before is; return where its result or its exception will be."""
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._given,), daemon=True, name="sums")
            self._thread.start()
        told: Future[Any] = Future()
        self._given.put((work, told))
        return told

    def close(self, seconds: float = 0.0) -> None:
        """End the thread after what was given; wait for that so many seconds."""
        self._given.put(None)
        if self._thread is not None:
            self._thread.join(seconds)


def _work(given: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]) -> None:
    import torch

    torch.set_num_threads(1)  # said anew in every thread; the card's own needs the rest
    broken: BaseException | None = None
    while (one := given.get()) is not None:
        work, told = one
        try:
            if broken is not None:
                raise broken  # what comes after would meet cards that are somewhere else
            told.set_result(work())
        except BaseException as problem:
            broken = problem
            told.set_exception(problem)
        del work, told, one  # groups that were left behind are closed with the last who knows them
    broken = None
