"""Collecting from a job keeps as much in memory for its last recording as for its first."""

from __future__ import annotations

import gc
import io
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.db import make_engine, make_readers, make_sessions
from common.domain import ArtifactKind
from common.migrate import migrate
from common.settings import Settings
from common.storage import open_store
from services.gateway import export_files, export_tables
from services.gateway.export_files import LabelsFormat
from services.gateway.export_tables import TableFormat, write
from services.gateway.exports import Export
from tests.gateway.filled import fill, heard

RECORDINGS = 20_000
FEW_BLOCKS = RECORDINGS // 4  # one object kept for each recording of a half is twice as many


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Export]:
    """A large job."""
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    engine = make_engine(settings)
    migrate(engine)
    store = open_store(settings)
    mask = store.put_stream("artifacts/mask.npz", io.BytesIO(b"mask" * 100), "application/zip")
    filled = fill(make_sessions(engine), [heard("dog", "siren")] * RECORDINGS, mask=mask)
    yield Export(make_readers(engine), store, filled.job_id)
    engine.dispose()


@pytest.mark.parametrize(
    "begin",
    [
        lambda export, _: write(export_tables.EVENTS, export, TableFormat.JSONL),
        lambda export, _: write(export_tables.EVENTS, export, TableFormat.PARQUET),
        lambda export, _: write(export_tables.RECORDINGS, export, TableFormat.CSV),
        lambda export, _: export_files.manifest_lines(export),
        lambda export, scratch: export_files.labels_zip(export, LabelsFormat.AUDACITY, scratch),
        lambda export, scratch: export_files.artifacts_zip(export, ArtifactKind, scratch),
    ],
    ids=["events.jsonl", "events.parquet", "recordings.csv", "manifest", "labels", "artifacts"],
)
def test_memory_stays_flat(
    export: Export, tmp_path: Path, begin: Callable[[Export, Path], Iterator[bytes]]
) -> None:
    """Counts the allocator's blocks: any object kept is at least one.

    What is only waiting for the collector of cycles is not kept: how long it waits depends on all
    that this process has ever made.
    """
    held = array("q")
    gc.collect()
    gc.freeze()  # what earlier tests left need not be looked through each time
    try:
        for _ in begin(export, tmp_path):
            gc.collect()
            held.append(sys.getallocatedblocks())
    finally:
        gc.unfreeze()
    half = len(held) // 2
    assert half > 1
    assert max(held[half:]) < max(held[:half]) + FEW_BLOCKS
