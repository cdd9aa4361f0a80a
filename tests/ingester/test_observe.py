"""What the ingester counts agrees with what it recorded."""

from __future__ import annotations

import zipfile
from collections import Counter
from io import BytesIO

import pytest
from sqlalchemy.orm import Session

from common.domain import SourceKind, SourceState
from common.errors import StoreUnavailable
from common.metrics import REGISTRY
from services.ingester import observe, reading
from tests.ingester.conftest import STACKS, Bench, end_job, wav


def counted() -> Counter[tuple[str, ...]]:
    """Return the values of the ingester's counters so far, by name and labels."""
    found: Counter[tuple[str, ...]] = Counter()
    for metric in REGISTRY.collect():
        name = metric.name.removeprefix("soundmill_")
        if name in ("sources_read", "source_entries", "ingest_bytes"):
            for sample in metric.samples:
                labels = sample.labels
                names = [labels.get(n) for n in ("kind", "outcome", "reason")]
                found[name, *(n for n in names if n is not None)] = int(sample.value)
    return found


def archive(**files: bytes) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as writer:
        for name, data in files.items():
            writer.writestr(f"{name}.wav", data)
    return buffer.getvalue()


@STACKS
def test_entries_and_sources(bench: Bench) -> None:
    before = counted()
    source_id = bench.zip(archive(a=wav(seed=1), b=wav(seed=2), empty=b"", none=b""))
    bench.read()
    recordings = bench.recordings(source_id)
    assert len(recordings) == 2
    assert counted() - before == {
        ("sources_read", "archive", "done"): 1,
        ("source_entries", "archive", "recorded", ""): 2,
        ("source_entries", "archive", "rejected", "empty_entry"): 2,
        ("ingest_bytes", "archive"): sum(recording.size_bytes for recording in recordings),
    }


@STACKS
def test_a_dry_run_stores_no_bytes(bench: Bench) -> None:
    before = counted()
    job_id = bench.job(dry_run=True)
    bench.stored(job_id, SourceKind.ARCHIVE, archive(a=wav(seed=1), empty=b""), format="zip")
    bench.read()
    assert counted() - before == {
        ("sources_read", "archive", "done"): 1,
        ("source_entries", "archive", "recorded", ""): 1,
        ("source_entries", "archive", "rejected", "empty_entry"): 1,
    }


@STACKS
def test_what_is_no_archive_failed(bench: Bench) -> None:
    before = counted()
    source_id = bench.zip(b"PK\x03\x04 but no more")
    bench.read()
    assert bench.row(source_id).state == SourceState.FAILED.value
    assert counted() - before == {("sources_read", "archive", "failed"): 1}


@STACKS
def test_a_job_that_ended_cancelled_its_source(bench: Bench) -> None:
    before = counted()
    source_id = bench.zip(archive(a=wav(seed=1)))
    end_job(bench, bench.job_of(source_id).id)
    bench.read()
    assert counted() - before == {("sources_read", "archive", "cancelled"): 1}


@STACKS
def test_what_was_not_committed_does_not_count(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = reading.record

    def record_and_fail(session: Session, *arguments: object) -> None:
        record(session, *arguments)  # type: ignore[arg-type]
        raise StoreUnavailable("in the last moment")

    source_id = bench.zip(archive(a=wav(seed=1)))
    before = counted()
    with monkeypatch.context() as patched:
        patched.setattr(reading, "record", record_and_fail)
        bench.ingester.turn()
        for thread in bench.ingester._readings:
            thread.join()
    assert counted() - before == {("sources_read", "archive", "postponed"): 1}
    bench.read()
    assert len(bench.recordings(source_id)) == 1
    assert (counted() - before)["source_entries", "archive", "recorded", ""] == 1


def test_every_counter_begins_at_zero() -> None:
    observe.start_counting()
    found = counted()
    for kind in SourceKind:
        assert ("source_entries", kind.value, "recorded", "") in found
        assert ("ingest_bytes", kind.value) in found
        for outcome in observe.OUTCOMES:
            assert ("sources_read", kind.value, outcome) in found
