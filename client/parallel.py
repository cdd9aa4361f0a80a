"""Does several things at once, in a bounded number of threads, and hands on what ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

TURN_S = 0.1
AHEAD = 2  # per thread: begun or waiting

T = TypeVar("T")


def in_parallel(
    work: Iterable[Callable[[], T]], threads: int, tick: Callable[[], None], stop: Event
) -> Iterator[T]:
    """Yield what the functions return, as they end; call ``tick`` while waiting for them.

    ``work`` is read only as far as there is room. When a function raises, or the caller is
    interrupted, ``stop`` is set for those that still run, and they are waited for.
    """
    with ThreadPoolExecutor(threads, "send") as pool:
        running: set[Future[T]] = set()
        try:
            for function in work:
                running.add(pool.submit(function))
                while len(running) >= AHEAD * threads:
                    tick()
                    ended, running = wait(running, TURN_S, FIRST_COMPLETED)
                    yield from (future.result() for future in ended)
            while running:
                tick()
                ended, running = wait(running, TURN_S, FIRST_COMPLETED)
                yield from (future.result() for future in ended)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
