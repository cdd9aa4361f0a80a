"""Children that a process with threads forks: none is born with a lock that nobody will release."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from common import forking
from common.checks import checker
from common.checks.base import Found
from common.metrics import Exposition
from common.monitor import Monitor
from common.settings import Settings

fork_begins = threading.Event()
os.register_at_fork(before=fork_begins.set)  # the last one registered is called first


def forked(work: Callable[[], object], within_s: float = 5.0) -> bool:
    """Fork a child that does something; return whether it came to a good end in time."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, within_s)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


class Held:
    """A lock that a thread holds until a fork begins, or until something else happens."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.is_held = threading.Event()
        fork_begins.clear()

    def hold(self, until: threading.Event = fork_begins) -> None:
        with self.lock:
            self.is_held.set()
            until.wait()

    def take(self) -> None:
        with self.lock:
            pass


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Do something in a thread during the block."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_the_children_of_a_process_with_threads_hang_without_this() -> None:
    held, child_ended = Held(), threading.Event()
    with beside(lambda: held.hold(until=child_ended)):
        held.is_held.wait()
        try:
            assert not forked(held.take, within_s=0.5)
        finally:
            child_ended.set()


def test_a_fork_waits_for_those_at_work() -> None:
    held = Held()

    def work() -> None:
        with forking.kept_away():
            held.hold()

    with beside(work):
        held.is_held.wait()
        assert forked(held.take)


def test_a_fork_waits_for_threads_that_outlive_who_started_them() -> None:
    held = Held()
    with forking.kept_away():
        forking.start_thread("slow", held.hold)
        held.is_held.wait()
    assert forked(held.take)


def test_a_fork_does_not_wait_for_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "LONGEST_S", 0.1)
    may_end = threading.Event()
    forking.start_thread("hung", may_end.wait)

    def work() -> None:
        with forking.kept_away():  # the child begins with nobody at work
            assert forked(may_end.is_set)

    try:
        assert forked(work)
    finally:
        may_end.set()


def test_those_who_come_later_wait_behind_a_fork() -> None:
    """So who asks for metrics all the time does not hold it up."""
    ended = threading.Event()
    begun = threading.Barrier(9)
    inside: list[int] = []

    def ask(number: int) -> None:
        begun.wait()
        while not ended.is_set():
            with forking.kept_away():
                inside.append(number)
                ended.wait(0.05)  # eight that take so long are never all away at once
                inside.remove(number)

    def nobody_is_inside() -> None:
        assert not inside

    askers = [threading.Thread(target=ask, args=(n,), daemon=True) for n in range(8)]
    for asker in askers:
        asker.start()
    begun.wait()
    try:
        assert forked(nobody_is_inside)
    finally:
        ended.set()
        for asker in askers:
            asker.join()


def test_a_page_of_the_monitor_keeps_forks_away() -> None:
    held = Held()

    def expose() -> Exposition:
        held.hold()
        return Exposition(b"", "text/plain")

    with Monitor(Settings(metrics_port=0), expose) as monitor:
        url = f"http://127.0.0.1:{monitor.port}/metrics"
        with beside(lambda: httpx.get(url, trust_env=False, timeout=20)):
            held.is_held.wait()
            assert forked(held.take)


def test_a_look_that_outlasts_its_report_keeps_forks_away(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()

    def look() -> Found:
        held.hold()
        return Found(())

    monkeypatch.setattr(checker, "DiskLook", lambda settings: look)
    slow = checker.Checker(Settings(), ["disk"], timeout_s=0.01)
    assert not slow.report().is_well
    assert forked(held.take)
