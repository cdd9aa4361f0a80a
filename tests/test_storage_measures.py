"""What is counted about the object store: each operation once, without the time of others."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import NotFound, ObjectTooLarge, StoreUnavailable
from common.metrics import REGISTRY
from common.settings import Settings
from common.storage import ObjectStore, measure, open_store


def taken() -> dict[str, tuple[float, float]]:
    """Return how often each operation was measured and how long it took in all, so far."""
    found = {}
    for operation in measure.OPERATIONS:
        labels = {"operation": operation}
        count = REGISTRY.get_sample_value("soundmill_store_seconds_count", labels) or 0.0
        seconds = REGISTRY.get_sample_value("soundmill_store_seconds_sum", labels) or 0.0
        found[operation] = (count, seconds)
    return found


def errors(operation: str, reason: str) -> float | None:
    labels = {"operation": operation, "reason": reason}
    return REGISTRY.get_sample_value("soundmill_store_errors_total", labels)


def counted(action: Callable[[], object]) -> dict[str, int]:
    """Return which operations ``action`` was counted as, and how often."""
    before = taken()
    action()
    after = taken()
    return {
        name: int(after[name][0] - before[name][0])
        for name in before
        if after[name][0] != before[name][0]
    }


def test_every_operation_counts_once(store: ObjectStore, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")

    def read_whole() -> None:
        with store.open("a/b") as blocks:
            assert b"".join(blocks) == b"content"

    assert counted(store.prepare) == {"prepare": 1}
    assert counted(store.check) == {"check": 1}
    assert counted(lambda: store.put_stream("a/b", io.BytesIO(b"content"), "x/y")) == {"put": 1}
    assert counted(lambda: store.put_file("a/c", file, "x/y")) == {"put": 1}
    assert counted(read_whole) == {"read": 1}
    assert counted(lambda: store.fetch("a/b", tmp_path / "copy")) == {"fetch": 1}
    assert counted(lambda: store.stat("a/b")) == {"stat": 1}
    assert counted(lambda: [found.key for found in store.list("a/")]) == {"list": 1}
    assert counted(lambda: store.delete("a/b")) == {"delete": 1}


def test_uploads_in_parts(store: ObjectStore) -> None:
    store.prepare()
    found: list[str] = []

    def start() -> None:
        found.append(store.start_multipart("a/b", "x/y", 5 << 20))

    assert counted(start) == {"start_multipart": 1}
    part = io.BytesIO(b"1234")
    assert counted(lambda: store.put_part("a/b", found[0], 1, part, 4)) == {"put_part": 1}
    assert counted(lambda: list(store.list_multiparts(0.0))) == {"list_multiparts": 1}
    parts = store.list_parts("a/b", found[0])
    complete = counted(lambda: store.complete_multipart("a/b", found[0], parts))
    assert complete == {"complete_multipart": 1}
    assert counted(lambda: store.abort_multipart("a/b", found[0])) == {"abort_multipart": 1}


def test_a_stream_counts_when_it_ends(store: ObjectStore) -> None:
    store.put_stream("a", io.BytesIO(b"x" * 1000), "x/y")
    before = taken()["read"][0]
    with store.open("a") as blocks:
        assert next(blocks)
        assert taken()["read"][0] == before
    assert taken()["read"][0] == before + 1


class Clock:
    """Stands for the clock: it moves only when somebody is slow."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowSender:
    """Sends a little and takes a minute for it, in which it may use the store itself."""

    def __init__(self, clock: Clock, store: ObjectStore) -> None:
        self.clock = clock
        self.store = store
        self.reads = 0

    def read(self, size: int, /) -> bytes:
        self.clock.now += 60.0
        self.reads += 1
        self.store.stat("before")
        return b"x" if self.reads <= 3 else b""


def test_what_others_take_is_not_the_stores(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_stream("before", io.BytesIO(b"x" * 1000), "x/y")
    clock = Clock()
    monkeypatch.setattr(measure.time, "perf_counter", clock)
    before = taken()
    sender = SlowSender(clock, store)
    store.put_stream("slow", sender, "x/y")
    with store.open("before") as blocks:
        for _ in blocks:
            clock.now += 60.0
    after = taken()
    assert after["put"][0] == before["put"][0] + 1
    assert after["put"][1] == pytest.approx(before["put"][1])
    assert after["read"][1] == pytest.approx(before["read"][1])
    assert after["stat"][0] == before["stat"][0] + sender.reads  # its own


def test_outages_are_counted_and_what_a_caller_did_wrong_is_not(tmp_path: Path) -> None:
    store = open_store(Settings(home=tmp_path, store_url=f"file://{tmp_path}/none"))
    assert errors("check", "store_unavailable") is not None  # visible before the first
    before = errors("check", "store_unavailable") or 0.0
    with pytest.raises(StoreUnavailable):
        store.check()
    assert errors("check", "store_unavailable") == before + 1
    store.prepare()
    with pytest.raises(NotFound):
        store.stat("nothing")
    with pytest.raises(ObjectTooLarge):
        store.put_stream("a", io.BytesIO(b"12345"), "x/y", 3)
    assert errors("stat", "not_found") is None
    assert errors("put", "too_large") is None
