"""Files of a whole job: label formats in one file or a ZIP, chosen artifacts, all manifests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from common.domain import ArtifactKind
from common.formats import labels, tables
from common.formats.labels import RAVEN_HEADER
from common.formats.zips import Packed, zipped
from common.results import Events
from common.storage import ObjectStore
from common.tables import Artifact, Job, Recording
from services.gateway.events import EventsFormat, origin_of, render
from services.gateway.exports import FIRST, Export, ahead, heard, stored_blocks, walk
from services.gateway.manifests import manifests
from services.gateway.names import archive_name

MANIFEST_PAGE = 100  # with every stage run, attempt and artifact
SMALL_BYTES = 1 << 20  # fetched ahead, whole


class LabelsFormat(StrEnum):
    """How the labels of each recording may be written into a ZIP."""

    AUDACITY = "audacity"
    JAMS = "jams"
    RAVEN = "raven"


EVENTS_FORMATS = {
    LabelsFormat.AUDACITY: EventsFormat.AUDACITY,
    LabelsFormat.JAMS: EventsFormat.JAMS,
    LabelsFormat.RAVEN: EventsFormat.RAVEN,
}


@dataclass(frozen=True)
class _Stored:
    recording: Recording
    artifact: Artifact


def rttm(export: Export) -> Iterator[bytes]:
    """Yield the events of all recordings as RTTM.

    A recording goes by its custom id, else by its name and position, ``name#12``: names need not
    differ, and two recordings under one name would become one.
    """

    def lines() -> Iterator[str]:
        for one in heard(export):
            if one.found is not None:
                recording = one.recording
                file_id = recording.custom_id or f"{recording.name}#{recording.position}"
                yield labels.rttm(one.found, file_id)

    return tables.in_blocks(lines())


def raven(export: Export) -> Iterator[bytes]:
    """Yield the events of all recordings as one selection table.

    Begin Time counts through the recordings in their order, as Raven does when they are opened
    together as one sound; File Offset counts from the beginning of each.
    """

    def lines() -> Iterator[str]:
        yield RAVEN_HEADER
        first, before_s = 1, 0.0
        for one in heard(export):
            if one.found is not None:
                yield labels.raven(one.found, origin_of(one.recording), first, before_s)
                first += len(one.found.events)
            before_s += one.recording.duration_s or 0.0

    return tables.in_blocks(lines())


def labels_zip(export: Export, form: LabelsFormat, scratch: Path) -> Iterator[bytes]:
    """Yield a ZIP with a file for each recording that was classified, also where it is empty."""
    files = (
        _label_file(one.recording, one.found, EVENTS_FORMATS[form])
        for one in heard(export)
        if one.found is not None
    )
    return zipped(files, scratch, deflate=True)


def artifacts_zip(
    export: Export,
    kinds: Iterable[ArtifactKind],
    scratch: Path,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[bytes]:
    """Yield a ZIP with the artifacts of some kinds.

    Args:
        start: The position of the first recording.
        stop: The position before which to end.
    """
    wanted = [kind.value for kind in kinds]

    def stored(session: Session, page: Sequence[Recording]) -> Iterator[_Stored]:
        recordings = {recording.id: recording for recording in page}
        found = session.scalars(
            select(Artifact).where(Artifact.recording_id.in_(recordings), Artifact.kind.in_(wanted))
        ).all()
        for artifact in sorted(
            found, key=lambda one: (recordings[one.recording_id].position, one.kind)
        ):
            yield _Stored(recordings[artifact.recording_id], artifact)

    def fetch(one: _Stored) -> bytes:
        return b"".join(stored_blocks(export.store, one.artifact.object_key))

    items = walk(export, stored, after=start + FIRST, stop=stop)
    fetched = ahead(items, fetch, lambda one: one.artifact.size_bytes <= SMALL_BYTES)
    return zipped(
        (_artifact_file(export.store, one, content) for one, content in fetched),
        scratch,
        deflate=False,
    )


def manifest_lines(export: Export) -> Iterator[bytes]:
    """Yield the manifest of every recording as a line of JSON."""

    def read(session: Session, page: Sequence[Recording]) -> Iterator[str]:
        job = session.get_one(Job, export.job_id)
        for manifest in manifests(session, job, page):
            yield json.dumps(manifest, ensure_ascii=False, separators=(",", ":")) + "\n"

    return tables.in_blocks(walk(export, read, size=MANIFEST_PAGE))


def _label_file(recording: Recording, found: Events, form: EventsFormat) -> Packed:
    content = b"".join(render(found, origin_of(recording), form))
    name = archive_name(recording.name, recording.position, form)
    return Packed(name, len(content), recording.created_at, [content] if content else [])


def _artifact_file(store: ObjectStore, one: _Stored, content: bytes | None) -> Packed:
    artifact = one.artifact
    suffix = artifact.object_key.rpartition(".")[2]
    return Packed(
        archive_name(one.recording.name, one.recording.position, f"{artifact.kind}.{suffix}"),
        artifact.size_bytes,
        artifact.created_at,
        stored_blocks(store, artifact.object_key) if content is None else [content],
    )
