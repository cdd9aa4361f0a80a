"""Query by example: where in a job, or in all that a key holds, something sounds like a stretch.

Recording after recording, so that memory does not grow with how many there are; a request looks at
so many and no more. NumPy comes with this module, which is imported when the first search comes.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from common.domain import TERMINAL_STATES, ArtifactKind, RunState, Stage
from common.errors import ArtifactInvalid, NotFound, ObjectTooLarge
from common.results import Events
from common.scratch import scratch_folder
from common.storage import ObjectStore
from common.tables import Artifact, Job, Recording, StageRun
from common.vectors import VectorReader, most_bytes
from services.gateway import cursors
from services.gateway.access import Caller
from services.gateway.alike import Match, Pattern, matches, pattern_of
from services.gateway.exports import FIRST, Export, ahead, heard_in, walk
from services.gateway.problems import Problem, invalid
from services.gateway.searches import DamageLog
from services.gateway.similar_schemas import Alike, SimilarPage

SCAN = 1_000  # recordings and jobs that one request looks at
SCAN_VECTORS = 2_000_000  # the same in vectors: about nine days of audio
PAGE = 100  # jobs or recordings that are read from the database at once
MAX_EXAMPLE_S = 60.0
UNKNOWN_DURATION_S = 24 * 3600.0
SPARE_S = 60.0  # by which vectors may go beyond what the database has as the duration
PLACE = re.compile(r"([0-9a-f]{32}):(-1|\d{1,9})")


@dataclass(frozen=True)
class Archive:
    """What is searched: one job of a caller, or all of them where ``job_id`` is None."""

    caller: Caller
    readers: sessionmaker[Session]
    store: ObjectStore
    scratch: Path
    job_id: str | None
    damage: DamageLog


@dataclass(frozen=True)
class Example:
    """The stretch of a recording to which others are compared. Times in seconds."""

    recording_id: str
    onset_s: float
    offset_s: float


@dataclass(frozen=True)
class _Query:
    """What the example sounds like, to the classifier of these weights.

    ``span``: its vectors [start, stop) in its own recording.
    """

    recording_id: str
    pattern: Pattern
    span: tuple[int, int]
    digest: str
    vector_s: float


@dataclass(frozen=True)
class _Stored:
    """Where the vectors of a recording are, and of which size, as the database has it."""

    key: str
    size_bytes: int


@dataclass(frozen=True)
class _Step:
    """A recording on the way through an archive, or the beginning of a job, which has none.

    ``vectors``: None where the recording has none.
    """

    job_id: str
    position: int = FIRST
    recording: Recording | None = None
    vectors: _Stored | None = None


@dataclass(frozen=True)
class _Hit:
    """A match and the recording in which it is."""

    recording: Recording
    match: Match


@dataclass
class _Tally:
    """What a request has looked at, and the best hits so far: of equal ones the earlier."""

    limit: int
    looked_at: int = 0
    without_vectors: int = 0
    other_weights: int = 0
    unreadable: int = 0
    vectors: int = 0
    _heap: list[tuple[float, int, _Hit]] = field(default_factory=list)
    _added: int = 0

    def add(self, hit: _Hit) -> bool:
        """Take a hit; return whether it is among the best."""
        self._added += 1
        entry = (hit.match.similarity, -self._added, hit)
        if len(self._heap) < self.limit:
            heapq.heappush(self._heap, entry)
            return True
        return heapq.heappushpop(self._heap, entry) is not entry

    def best(self) -> list[_Hit]:
        return [hit for *_, hit in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def find_similar(
    archive: Archive,
    example: Example,
    cursor: str | None,
    limit: int,
    check: Callable[[], None] = lambda: None,
) -> SimilarPage:
    """Return the stretches most alike among the next recordings of an archive.

    Args:
        check: Called between recordings; what it raises ends the search.

    Raises:
        NotFound: no such recording or job of the caller.
        Problem: the region or the cursor is wrong, or the recording has no vectors.
        ArtifactInvalid: the example's vectors are missing or damaged.
        StoreUnavailable: vectors cannot be fetched.
        DiskFull: there is no room to fetch them to.
    """
    with scratch_folder(archive.scratch) as scratch:
        query = _query(archive, example, scratch / "example.npz")
        tally = _Tally(limit)
        next_cursor = _search(archive, query, cursor, tally, scratch, check)
    hits = tally.best()
    recording_ids = sorted({hit.recording.id for hit in hits})
    heard = heard_in(archive.readers, archive.store, recording_ids, archive.damage.tell)
    return SimilarPage(
        hits=[_alike(hit, query.vector_s, heard.get(hit.recording.id)) for hit in hits],
        looked_at=tally.looked_at,
        without_vectors=tally.without_vectors,
        other_weights=tally.other_weights,
        unreadable=tally.unreadable,
        next_cursor=next_cursor,
    )


def _query(archive: Archive, example: Example, path: Path) -> _Query:
    if not 0.0 < example.offset_s - example.onset_s <= MAX_EXAMPLE_S:
        raise invalid(
            "region_invalid", f"A region ends after it begins, at most {MAX_EXAMPLE_S:g} s later."
        )
    with archive.readers() as session:
        recording = archive.caller.recording(session, example.recording_id)
        stored = _stored_vectors(session, [recording]).get(recording.id)
        if stored is None:
            raise _vectors_missing(session, recording)
    _fetch(archive.store, recording, stored, path)
    with VectorReader(path) as reader:
        _check_length(recording, reader)
        duration_s = reader.n_vectors * reader.vector_s
        if recording.duration_s is not None:
            duration_s = min(duration_s, recording.duration_s)
        if example.onset_s >= duration_s:
            raise invalid("region_invalid", f"The recording ends at {duration_s:.2f} s.")
        span = reader.span(example.onset_s, example.offset_s)
        pattern = pattern_of(reader.vectors(*span))
        if pattern is None:
            raise invalid("region_invalid", "There is nothing to hear in the region.")
        return _Query(recording.id, pattern, span, reader.digest, reader.vector_s)


def _vectors_missing(session: Session, recording: Recording) -> Problem:
    state = session.scalar(
        select(StageRun.state).where(
            StageRun.recording_id == recording.id, StageRun.stage == Stage.CLASSIFY.value
        )
    )
    if state is not None and RunState(state) not in TERMINAL_STATES:
        detail = f"Recording {recording.id} is not classified yet."
    else:
        detail = (
            f"Recording {recording.id} has no vectors. Submit it again with the parameters "
            '{"classify": {"embeddings": true}}.'
        )
    return Problem(HTTPStatus.CONFLICT, "vectors_missing", detail)


def _search(
    archive: Archive,
    query: _Query,
    cursor: str | None,
    tally: _Tally,
    scratch: Path,
    check: Callable[[], None],
) -> str | None:
    """Look at the next recordings of an archive; return the cursor of those after, if any.

    One whose vectors are damaged is counted and told of, and the search goes on.
    """

    def path_of(step: _Step) -> Path:
        return scratch / f"{step.job_id}-{step.position}.npz"

    def fetch(step: _Step) -> ArtifactInvalid | None:
        try:
            if step.recording is not None and step.vectors is not None:
                _fetch(archive.store, step.recording, step.vectors, path_of(step))
        except ArtifactInvalid as error:
            return error
        return None

    place = _place(cursor)
    steps = _steps(archive, place)
    last: _Step | None = None
    fetched = ahead(steps, fetch, lambda step: step.vectors is not None)
    for number, (step, fault) in enumerate(fetched):
        check()
        if last is not None and (number >= SCAN or tally.vectors >= SCAN_VECTORS):
            return cursors.encode(f"{last.job_id}:{last.position}")
        last = step
        if step.recording is None:
            continue
        if step.vectors is None:
            tally.without_vectors += 1
            continue
        path = path_of(step)
        try:
            if fault is not None:
                raise fault
            _compare(step.recording, path, query, tally)
        except ArtifactInvalid as error:
            tally.unreadable += 1
            archive.damage.tell(step.vectors.key, str(error))
        finally:
            path.unlink(missing_ok=True)
    return None


def _fetch(store: ObjectStore, recording: Recording, stored: _Stored, path: Path) -> None:
    """Fetch the vectors of a recording. Raises ArtifactInvalid: gone, or of an impossible size."""
    if stored.size_bytes > most_bytes(_duration_s(recording)):
        raise ArtifactInvalid(f"{stored.key} has {stored.size_bytes} bytes, more than can be")
    try:
        store.fetch(stored.key, path, stored.size_bytes)
    except NotFound as error:
        raise ArtifactInvalid(f"{stored.key} is missing in the store") from error
    except ObjectTooLarge as error:
        raise ArtifactInvalid(f"{stored.key} is larger than what was stored") from error


def _check_length(recording: Recording, reader: VectorReader) -> None:
    """Raise ArtifactInvalid where a file has more vectors than its recording has room for."""
    if reader.n_vectors * reader.vector_s > _duration_s(recording):
        raise ArtifactInvalid(f"{reader.n_vectors} vectors are more than the recording can have")


def _duration_s(recording: Recording) -> float:
    """Return how long vectors may go on in a recording, in seconds."""
    known_s = UNKNOWN_DURATION_S if recording.duration_s is None else recording.duration_s
    return known_s + SPARE_S


def _compare(recording: Recording, path: Path, query: _Query, tally: _Tally) -> None:
    """Add what is alike in one recording. Raises ArtifactInvalid."""
    with VectorReader(path) as reader:
        grid = (reader.digest, reader.width, reader.vector_s)
        if grid != (query.digest, len(query.pattern.vector), query.vector_s):
            tally.other_weights += 1
            return
        _check_length(recording, reader)
        own = query.span if recording.id == query.recording_id else None
        for match in matches(reader, query.pattern, own):
            if not tally.add(_Hit(recording, match)):
                break  # those that follow are less alike
        tally.vectors += reader.n_vectors
    tally.looked_at += 1


def _steps(archive: Archive, after: _Step | None) -> Iterator[_Step]:
    """Yield every job and recording of an archive after a place, in order."""
    if archive.job_id is not None:
        with archive.readers() as session:
            archive.caller.job(session, archive.job_id)
        first = after.position if after and after.job_id == archive.job_id else FIRST
        yield from _steps_of_job(archive, archive.job_id, first)
        return
    for job_id in _job_ids(archive, after):
        begun = after is not None and after.job_id == job_id
        if not begun:
            yield _Step(job_id)
        try:
            yield from _steps_of_job(archive, job_id, after.position if after and begun else FIRST)
        except NotFound:
            continue  # it was deleted meanwhile


def _job_ids(archive: Archive, after: _Step | None) -> Iterator[str]:
    """Yield the ids of the caller's jobs, oldest first, from the one of a place on."""
    from_id = after.job_id if after else ""
    query = select(Job.id).where(archive.caller.owns(Job.owner), Job.deleted_at.is_(None))
    while True:
        with archive.readers() as session:
            found = session.scalars(
                query.where(Job.id >= from_id).order_by(Job.id).limit(PAGE + 1)
            ).all()
        yield from found[:PAGE]
        if len(found) <= PAGE:
            return
        from_id = found[PAGE]


def _steps_of_job(archive: Archive, job_id: str, after: int) -> Iterator[_Step]:
    def read(session: Session, recordings: Sequence[Recording]) -> Iterator[_Step]:
        stored = _stored_vectors(session, recordings)
        for recording in recordings:
            yield _Step(job_id, recording.position, recording, stored.get(recording.id))

    export = Export(archive.readers, archive.store, job_id)
    yield from walk(export, read, after=after, size=PAGE)


def _stored_vectors(session: Session, recordings: Sequence[Recording]) -> dict[str, _Stored]:
    """Return where vectors are by the ids of recordings that have them."""
    query = select(Artifact.recording_id, Artifact.object_key, Artifact.size_bytes).where(
        Artifact.recording_id.in_([recording.id for recording in recordings]),
        Artifact.kind == ArtifactKind.VECTORS.value,
    )
    return {
        row.recording_id: _Stored(row.object_key, row.size_bytes) for row in session.execute(query)
    }


def _place(cursor: str | None) -> _Step | None:
    if cursor is None:
        return None
    found = PLACE.fullmatch(cursors.decode(cursor))
    if found is None:
        raise cursors.bad()
    return _Step(found[1], int(found[2]))


def _alike(hit: _Hit, vector_s: float, heard: Events | None) -> Alike:
    recording, match = hit.recording, hit.match
    offset_s = match.stop * vector_s
    if recording.duration_s is not None:
        offset_s = min(offset_s, recording.duration_s)
    onset_s = match.start * vector_s
    return Alike(
        job_id=recording.job_id,
        recording_id=recording.id,
        position=recording.position,
        custom_id=recording.custom_id,
        name=recording.name,
        onset_s=round(onset_s, 3),
        offset_s=round(offset_s, 3),
        similarity=round(match.similarity, 4),
        label=_label(heard, onset_s, offset_s),
    )


def _label(heard: Events | None, onset_s: float, offset_s: float) -> str | None:
    """Return the label of the event that overlaps most with a stretch, of equal ones the surest."""
    overlaps = [
        (min(event.offset_s, offset_s) - max(event.onset_s, onset_s), event.confidence, event.label)
        for event in (heard.events if heard else ())
    ]
    overlap_s, _, label = max(overlaps, default=(0.0, 0.0, ""))
    return label if overlap_s > 0.0 else None
