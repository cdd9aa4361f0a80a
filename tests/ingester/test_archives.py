"""Archives become recordings: every entry once, in order, with its bytes."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from hashlib import sha256

import pytest
import zstandard

from common.domain import JobEventKind, SourceKind, SourceState
from tests.ingester.conftest import STACKS, Bench, wav


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


PACKED: dict[str, tuple[str, Callable[[dict[str, bytes]], bytes]]] = {
    "stored": ("zip", lambda files: zipped(files, zipfile.ZIP_STORED)),
    "deflated": ("zip", zipped),
    "bzip2": ("zip", lambda files: zipped(files, zipfile.ZIP_BZIP2)),
    "tar": ("tar", tarred),
    "gnu tar": ("tar", lambda files: tarred(files, tarfile.GNU_FORMAT)),
    "tar.gz": ("tar.gz", lambda files: gzip.compress(tarred(files))),
    "tar.zst": ("tar.zst", lambda files: zstandard.compress(tarred(files))),
}


@STACKS
@pytest.mark.parametrize("packing", PACKED)
def test_every_entry_becomes_a_recording(bench: Bench, packing: str) -> None:
    long_name = "/".join(["a folder with a long name"] * 8) + "/ü.flac"
    large = wav(600_000, seed=7)  # is not read ahead
    files = {"one.wav": wav(seed=1), "two/large.wav": large, long_name: wav(seed=3)}
    form, pack = PACKED[packing]
    others = {"notes.txt": b"no audio", "two/.hidden.wav": b"x", "__MACOSX/one.wav": b"x"}
    job_id = bench.job()
    source_id = bench.stored(job_id, SourceKind.ARCHIVE, pack(files | others), format=form)
    bench.read()

    source = bench.row(source_id)
    assert (source.state, source.error_detail) == (SourceState.DONE.value, None)
    recordings = bench.recordings(source_id)
    assert [r.name for r in recordings] == list(files)
    assert [r.entry for r in recordings] == [0, 1, 2]
    assert [r.sha256 for r in recordings] == [sha256(data).hexdigest() for data in files.values()]
    objects = bench.objects()
    assert [objects[r.object_key] for r in recordings] == list(files.values())
    assert (source.entries, source.recordings, source.rejected, source.total) == (3, 3, 0, 3)
    bench.nothing_left_behind()
    (event,) = bench.events(job_id)
    assert event.kind == JobEventKind.SOURCE_DONE.value
    assert event.data["left_out"] == {"not audio by name": 1, "hidden": 2}


@STACKS
@pytest.mark.parametrize("right", [True, False])
def test_a_declared_hash_is_checked(bench: Bench, right: bool) -> None:
    data = zipped({"one.wav": wav()})
    declared = sha256(data).hexdigest() if right else "0" * 64
    source_id = bench.zip(data, sha256=declared)
    bench.read()
    assert bench.row(source_id).error_code == (None if right else "hash_mismatch")
    assert len(bench.recordings(source_id)) == right
    bench.nothing_left_behind()


@STACKS
def test_many_entries_in_order(bench: Bench) -> None:
    files = {f"{n:04}.wav": wav(seed=n) for n in range(700)}
    source_id = bench.zip(zipped(files))
    bench.read()
    recordings = bench.recordings(source_id)
    assert [r.name for r in recordings] == list(files)
    assert [r.position for r in recordings] == list(range(700))
    assert sorted(r.id for r in recordings) == [r.id for r in recordings]
    assert bench.job_of(source_id).recordings == 700
