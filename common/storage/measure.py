"""How long operations of a store take and which fail: decorators for the methods of both stores.

What one operation calls of its own store belongs to it. What the other side of a stream takes (a
slow sender, a slow reader) is left out, so that the times tell about the store alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from types import TracebackType
from typing import ParamSpec, TypeVar

from common.errors import DiskFull, Outage, StoreUnavailable
from common.metrics import STORE_ERRORS, STORE_SECONDS

OPERATIONS = (
    "prepare",
    "check",
    "put",
    "read",
    "fetch",
    "stat",
    "delete",
    "list",
    "start_multipart",
    "put_part",
    "list_parts",
    "complete_multipart",
    "abort_multipart",
    "list_multiparts",
)
REASONS = (StoreUnavailable.code, DiskFull.code)

P = ParamSpec("P")
T = TypeVar("T")


class _Now(threading.local):
    """The operation that this thread is busy with."""

    watch: Watch | None = None


class Watch:
    """The time of one operation, in one or more stretches: ``with watch``."""

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self._belongs_to_another = _now.watch is not None
        self._outer: Watch | None = None
        self._started = 0.0
        self.took_s = 0.0

    def __enter__(self) -> None:
        if not self._belongs_to_another:
            self._outer, _now.watch = _now.watch, self
            self._started = time.perf_counter()

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if not self._belongs_to_another:
            _now.watch = self._outer
            self.took_s += time.perf_counter() - self._started
            if isinstance(error, Outage):
                STORE_ERRORS.labels(self._operation, error.code).inc()

    def done(self) -> None:
        """Record the sum of all stretches."""
        if not self._belongs_to_another:
            STORE_SECONDS.labels(self._operation).observe(max(0.0, self.took_s))


_now = _Now()


def start_counting() -> None:
    """Make the counters of errors visible before the first error."""
    for operation in OPERATIONS:
        for reason in REASONS:
            STORE_ERRORS.labels(operation, reason)


@contextmanager
def waiting() -> Iterator[None]:
    """Stop the watch while somebody else's bytes are waited for, who may use a store themselves."""
    watch, _now.watch = _now.watch, None
    started = time.perf_counter()
    try:
        yield
    finally:
        _now.watch = watch
        if watch is not None:
            watch.took_s -= time.perf_counter() - started


def measured(operation: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Measure a method that is over when it returns."""

    def decorate(method: Callable[P, T]) -> Callable[P, T]:
        @wraps(method)
        def run(*args: P.args, **options: P.kwargs) -> T:
            watch = Watch(operation)
            try:
                with watch:
                    return method(*args, **options)
            finally:
                watch.done()

        return run

    return decorate


def measured_list(operation: str) -> Callable[[Callable[P, Iterator[T]]], Callable[P, Iterator[T]]]:
    """Measure a method that yields, to its end."""

    def decorate(method: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
        @wraps(method)
        def run(*args: P.args, **options: P.kwargs) -> Iterator[T]:
            watch = Watch(operation)
            try:
                yield from _watched(watch, method(*args, **options))
            finally:
                watch.done()

        return run

    return decorate


def measured_stream(
    operation: str,
) -> Callable[
    [Callable[P, AbstractContextManager[Iterator[T]]]],
    Callable[P, AbstractContextManager[Iterator[T]]],
]:
    """Measure a method that opens something to be read, to its end."""

    def decorate(
        method: Callable[P, AbstractContextManager[Iterator[T]]],
    ) -> Callable[P, AbstractContextManager[Iterator[T]]]:
        @wraps(method)
        @contextmanager
        def run(*args: P.args, **options: P.kwargs) -> Iterator[Iterator[T]]:
            watch = Watch(operation)
            try:
                with ExitStack() as stack:
                    with watch:
                        blocks = stack.enter_context(method(*args, **options))
                    yield _watched(watch, blocks)
            finally:
                watch.done()

        return run

    return decorate


def _watched(watch: Watch, items: Iterator[T]) -> Iterator[T]:
    end = object()
    while True:
        with watch:
            item = next(items, end)
        if item is end:
            return
        yield item  # type: ignore[misc]  # it is not the end
