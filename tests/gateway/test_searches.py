"""Searches take turns: what many at once are told, and whose place becomes free."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from anyio import from_thread

from common.domain import Scope
from services.gateway import search, searches, similar
from services.gateway.routes import search as by_words
from services.gateway.search import SearchPage
from services.gateway.similar_schemas import SimilarPage
from tests.gateway.conftest import Gateway, problem
from tests.gateway.filled import fill, heard
from tests.gateway.with_vectors import A, B, filled

pytestmark = pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True
)
PATIENCE_S = 30.0
REGION = "onset_s=0.0&offset_s=0.8"


class Kind(StrEnum):
    """What is searched by."""

    EXAMPLE = "example"
    WORDS = "words"

    def path_to(self, gateway: Gateway) -> str:
        """Return what to ask for to search: any recording or job will do."""
        job_id = gateway.new_job()
        if self is Kind.WORDS:
            return f"/v1/jobs/{job_id}/search?text=dog"
        return f"/v1/recordings/{gateway.upload(job_id)}/similar?{REGION}"


WORK = {Kind.EXAMPLE: (similar, "find_similar"), Kind.WORDS: (by_words, "search")}
EMPTY: dict[Kind, SimilarPage | SearchPage] = {
    Kind.EXAMPLE: SimilarPage(
        hits=[], looked_at=0, without_vectors=0, other_weights=0, unreadable=0, next_cursor=None
    ),
    Kind.WORDS: SearchPage(
        labels=[], guesses=[], excluded=[], unknown=[], hits=[], unreadable=0, next_cursor=None
    ),
}


class Held:
    """Stands in for the work of a search: it begins, and ends when it is let go."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.most = self._now = 0
        self._lock = threading.Lock()

    def __call__(self, *_: Any) -> SimilarPage | SearchPage:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self.begun.release()
        assert self.go.wait(PATIENCE_S)
        with self._lock:
            self._now -= 1
        return EMPTY[self.kind]


@pytest.fixture(params=list(Kind))
def held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """No search of a kind ends before the test lets it."""
    work = Held(request.param)
    monkeypatch.setattr(*WORK[work.kind], work)
    yield work
    work.go.set()


def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that is about to be so."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "it never was so"
        time.sleep(0.01)


@contextmanager
def asked(gateway: Gateway, path: str) -> Iterator[None]:
    """A client that has asked and goes away, at the end of the block, before it was answered."""
    host, port = httpx.URL(gateway.url).host, httpx.URL(gateway.url).port
    with socket.create_connection((host, port or 0)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        yield


def left(gateway: Gateway) -> bool:
    """Return whether the gateway has seen that somebody went away, and is done with that."""
    return any(entry.get("status") == 499 for entry in gateway.log if entry["event"] == "request")


def test_more_than_may_wait_are_told_to_come_again(
    gateway: Gateway, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "MOST_AT_ONCE", 5)
    path = held.kind.path_to(gateway)
    with ThreadPoolExecutor(12) as pool:
        try:
            asking = [pool.submit(gateway.client.get, path) for _ in range(12)]
            answers = as_completed(asking, timeout=PATIENCE_S)
            refused = [next(answers).result() for _ in range(7)]
        finally:
            held.go.set()
        served = [answer.result() for answer in answers]
    for answer in refused:
        assert "8 searches" in problem(answer, 429, "too_many_searches")["detail"]
        assert int(answer.headers["retry-after"]) > 0
    assert [answer.status_code for answer in served] == [200] * 5
    assert held.most <= searches.AT_WORK
    assert gateway.client.get(path).status_code == 200


def test_one_key_leaves_room_for_others(
    gateway_with_keys: Gateway, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = gateway_with_keys
    monkeypatch.setattr(searches, "MOST_PER_OWNER", 1)
    mine, theirs = (gateway.new_key([Scope.SUBMIT, Scope.READ]) for _ in range(2))
    paths = []
    for key in (mine, theirs):
        gateway.client.headers.update(key)
        paths.append(held.kind.path_to(gateway))
    with ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(gateway.client.get, paths[0], headers=mine)
            assert held.begun.acquire(timeout=PATIENCE_S)
            answer = gateway.client.get(paths[0], headers=mine)
            problem(answer, 429, "too_many_searches")
            other = pool.submit(gateway.client.get, paths[1], headers=theirs)
            assert held.begun.acquire(timeout=PATIENCE_S)
        finally:
            held.go.set()
    assert (first.result().status_code, other.result().status_code) == (200, 200)


def test_kinds_leave_room_for_each_other(
    gateway: Gateway, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "MOST_AT_ONCE", 1)
    path = held.kind.path_to(gateway)
    (other,) = (kind.path_to(gateway) for kind in Kind if kind is not held.kind)
    with ThreadPoolExecutor(1) as pool:
        try:
            first = pool.submit(gateway.client.get, path)
            assert held.begun.acquire(timeout=PATIENCE_S)
            problem(gateway.client.get(path), 429, "too_many_searches")
            assert gateway.client.get(other).status_code != 429
        finally:
            held.go.set()
    assert first.result().status_code == 200


def test_who_goes_away_while_waiting_leaves_the_place(
    gateway: Gateway, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "MOST_AT_ONCE", 3)
    path = held.kind.path_to(gateway)

    def waits() -> bool:
        """Return whether there was a place for one more, who then went away."""
        try:
            problem(gateway.client.get(path, timeout=0.5), 429, "too_many_searches")
        except httpx.ReadTimeout:
            return True
        return False

    with ThreadPoolExecutor(2) as pool:
        try:
            for _ in range(2):
                pool.submit(gateway.client.get, path)
                assert held.begun.acquire(timeout=PATIENCE_S)
            with asked(gateway, path):
                until(lambda: not waits())
            until(waits)
        finally:
            held.go.set()
    until(lambda: gateway.client.get(path).status_code == 200)


def test_who_goes_away_ends_the_work(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example, *_ = filled(gateway, tmp_path, [A, A, B], [A, A], [A, A], [A, A])
    held = UntilGone()
    real = similar.matches

    def matches(*args: Any) -> Any:
        held()
        return real(*args)

    path = f"/v1/recordings/{example}/similar?{REGION}"
    _ask_and_go_away(gateway, path, held, monkeypatch, similar, matches)
    assert list(gateway.settings.scratch_dir.glob("*/*")) == []


def test_who_goes_away_ends_the_work_of_a_search_by_words(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = UntilGone()
    real = search.heard_or_unreadable

    def heard_or_unreadable(*args: Any, **options: Any) -> Iterator[Any]:
        for one in real(*args, **options):
            held()
            yield one

    path = f"/v1/jobs/{fill(gateway.sessions, [heard('dog')] * 4).job_id}/search?text=dog"
    _ask_and_go_away(gateway, path, held, monkeypatch, search, heard_or_unreadable)


class UntilGone:
    """Holds the first recording until the client has gone, which ends nothing by itself."""

    def __init__(self) -> None:
        self.begun, self.n_looked_at = threading.Event(), 0

    def __call__(self) -> None:
        self.n_looked_at += 1
        self.begun.set()
        until(gone)


def _ask_and_go_away(
    gateway: Gateway,
    path: str,
    held: UntilGone,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    stand_in: Callable[..., Any],
) -> None:
    """Ask with ``stand_in`` in its namesake's place, go away, and see that the work ends there."""
    whole = gateway.get(path)
    with monkeypatch.context() as patch:
        patch.setattr(module, stand_in.__name__, stand_in)
        with asked(gateway, path):
            assert held.begun.wait(PATIENCE_S)
        until(lambda: left(gateway))
    assert held.n_looked_at == 1
    assert gateway.get(path) == whole


def gone() -> bool:
    """Return whether the client of the search that runs in this thread has gone."""
    try:
        from_thread.check_cancelled()
    except asyncio.CancelledError:
        return True
    return False
