"""Keeps a fork away from what threads of the same process are in the middle of.

A child is born with the locks of its parent as they are, and without its threads: a lock that one
of them held (of SQLite, prometheus_client, an import) is never given back in the child, which hangs
at its first use of it. So the threads that a forking process has beside it say when they are at
work, and a fork waits until they are done.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common import logs

log = logs.get_logger(__name__)

LONGEST_S = 15.0  # that a fork waits: work that takes longer hangs, on a server and not in a lock


class _Gate:
    """Who is at work beside the forks of this process."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Know of nobody: at the start, and in a child, which has one thread."""
        self._changed = threading.Condition()
        self._at_work = 0
        self._forking = False

    def enter(self, *, behind: bool) -> None:
        """Count one more at work; ``behind`` forks that wait, so that many cannot hold one up."""
        with self._changed:
            if behind:
                self._changed.wait_for(lambda: not self._forking)
            self._at_work += 1

    def leave(self) -> None:
        with self._changed:
            self._at_work -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Return when nobody is at work; nobody begins any more, but joins those who are."""
        self._changed.acquire()
        self._forking = True
        if not self._changed.wait_for(lambda: self._at_work == 0, LONGEST_S):
            log.warning("forked beside threads at work", at_work=self._at_work)

    def open(self) -> None:
        self._forking = False
        self._changed.notify_all()
        self._changed.release()


_gate = _Gate()
os.register_at_fork(before=_gate.close, after_in_parent=_gate.open, after_in_child=_gate.begin)


@contextmanager
def kept_away() -> Iterator[None]:
    """Let no fork happen during the block. Waits where one is about to."""
    _gate.enter(behind=True)
    try:
        yield
    finally:
        _gate.leave()


def start_thread(name: str, work: Callable[[], object]) -> None:
    """Run something in a daemon thread and let no fork happen before it has ended.

    Called by who keeps forks away, or who forks: it never waits for one.
    """

    def run() -> None:
        try:
            work()
        finally:
            _gate.leave()

    _gate.enter(behind=False)
    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError:  # no thread could be started
        _gate.leave()
        raise
