"""Walks through a job for tables and archives: page by page, at the same memory for any number.

Each page is a short transaction of its own, so that an export that takes an hour keeps no database
from tidying up. What is exported is what is there when its page is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from common.domain import ArtifactKind, RunState, Stage
from common.errors import ArtifactInvalid, NotFound
from common.results import Events, parse_events, parse_summary
from common.storage import ObjectStore
from common.tables import Artifact, Job, Recording, StageRun

PAGE = 500
FETCH_AHEAD = 8  # objects at once
MAX_EVENTS_BYTES = 64 << 20  # of one recording
FIRST = -1  # the position after which a job begins

Item = TypeVar("Item")
Got = TypeVar("Got")


@dataclass(frozen=True)
class Export:
    """A job whose results somebody collects."""

    readers: sessionmaker[Session]
    store: ObjectStore
    job_id: str


@dataclass(frozen=True)
class Heard:
    """A recording and what the classifier found in it; None where it has not or could not."""

    recording: Recording
    found: Events | None


@dataclass(frozen=True)
class Unreadable:
    """A recording whose stored events are missing or damaged."""

    recording: Recording
    object_key: str
    error: ArtifactInvalid


@dataclass(frozen=True)
class _Kept:
    """A recording, the events that the database kept, or where they are stored."""

    recording: Recording
    found: Events | None
    object_key: str | None


def walk(
    export: Export,
    read: Callable[[Session, Sequence[Recording]], Iterable[Item]],
    *,
    after: int = FIRST,
    stop: int | None = None,
    size: int = PAGE,
) -> Iterator[Item]:
    """Yield what ``read`` makes of the recordings of a job, a page at a time, by position.

    Args:
        after: The position after which to begin.
        stop: The position before which to end.

    Raises:
        NotFound: the job was deleted meanwhile.
    """
    while True:
        query = select(Recording).where(
            Recording.job_id == export.job_id, Recording.position > after
        )
        if stop is not None:
            query = query.where(Recording.position < stop)
        with export.readers() as session:
            page = session.scalars(query.order_by(Recording.position).limit(size)).all()
            items = list(read(session, page)) if page else []
            check_there(session, export.job_id)
        yield from items
        if len(page) < size:
            return
        after = page[-1].position


def check_there(session: Session, job_id: str) -> None:
    """Raise NotFound if the job is being deleted: what was just read may not be all of it."""
    if session.scalar(select(Job.id).where(Job.id == job_id, Job.deleted_at.is_(None))) is None:
        raise NotFound(f"job {job_id} was deleted")


def heard(export: Export) -> Iterator[Heard]:
    """Yield every recording of a job with its events.

    Raises:
        ArtifactInvalid: stored events are missing or cannot be read.
        StoreUnavailable: stored events cannot be fetched.
        NotFound: the job was deleted meanwhile.
    """
    for one in heard_or_unreadable(export):
        if isinstance(one, Unreadable):
            raise one.error
        yield one


def heard_or_unreadable(export: Export, *, after: int = FIRST) -> Iterator[Heard | Unreadable]:
    """Yield every recording of a job with its events, or with why they cannot be read.

    Args:
        after: The position after which to begin.

    Raises:
        StoreUnavailable: stored events cannot be fetched.
        NotFound: the job was deleted meanwhile.
    """

    def fetch(kept: _Kept) -> Events | ArtifactInvalid:
        try:
            return _fetch_events(export.store, kept.object_key or "")
        except ArtifactInvalid as error:
            return error

    kept = walk(export, _kept_events, after=after)
    for one, fetched in ahead(kept, fetch, lambda one: one.object_key is not None):
        if isinstance(fetched, ArtifactInvalid):
            yield Unreadable(one.recording, one.object_key or "", fetched)
        else:
            yield Heard(one.recording, one.found if fetched is None else fetched)


def heard_in(
    readers: sessionmaker[Session],
    store: ObjectStore,
    recording_ids: Sequence[str],
    tell: Callable[[str, str], None],
) -> dict[str, Events]:
    """Return the events of some recordings by their ids; of one without events, nothing.

    Args:
        tell: Called with the key of stored events that cannot be read, and why: they are left out.

    Raises:
        StoreUnavailable: stored events cannot be fetched.
    """
    with readers() as session:
        query = select(Recording).where(Recording.id.in_(recording_ids))
        kept = list(_kept_events(session, session.scalars(query).all()))
    found: dict[str, Events] = {}
    for one in kept:
        try:
            events = _fetch_events(store, one.object_key) if one.object_key else one.found
        except ArtifactInvalid as error:
            tell(one.object_key or "", str(error))
            continue
        if events is not None:
            found[one.recording.id] = events
    return found


def ahead(
    items: Iterable[Item], fetch: Callable[[Item], Got], wanted: Callable[[Item], bool]
) -> Iterator[tuple[Item, Got | None]]:
    """Yield items in order, each with what was fetched for it while those before were used."""
    pool = ThreadPoolExecutor(FETCH_AHEAD, "fetch")
    waiting: deque[tuple[Item, Future[Got] | None]] = deque()

    def next_done() -> tuple[Item, Got | None]:
        item, future = waiting.popleft()
        return item, None if future is None else future.result()

    try:
        for item in items:
            waiting.append((item, pool.submit(fetch, item) if wanted(item) else None))
            if len(waiting) > FETCH_AHEAD:
                yield next_done()
        while waiting:
            yield next_done()
    finally:
        pool.shutdown(cancel_futures=True)


def _kept_events(session: Session, recordings: Sequence[Recording]) -> Iterator[_Kept]:
    runs = session.execute(
        select(StageRun.id, StageRun.recording_id, StageRun.result).where(
            StageRun.recording_id.in_([recording.id for recording in recordings]),
            StageRun.stage == Stage.CLASSIFY.value,
            StageRun.state == RunState.SUCCEEDED.value,
        )
    ).all()
    found = {run.recording_id: parse_summary(run.result or {}) for run in runs}
    elsewhere = [run.id for run in runs if found[run.recording_id] is None]
    keys: dict[str, str] = {}
    if elsewhere:
        query = select(Artifact.recording_id, Artifact.object_key).where(
            Artifact.stage_run_id.in_(elsewhere), Artifact.kind == ArtifactKind.EVENTS.value
        )
        keys = {row.recording_id: row.object_key for row in session.execute(query)}
    for recording in recordings:
        yield _Kept(recording, found.get(recording.id), keys.get(recording.id))


def stored_blocks(store: ObjectStore, key: str) -> Iterator[bytes]:
    """Yield an object that the database says is there. Raises ArtifactInvalid if it is not."""
    try:
        with store.open(key) as blocks:
            yield from blocks
    except NotFound as error:
        raise ArtifactInvalid(f"{key} is missing in the store") from error


def _fetch_events(store: ObjectStore, key: str) -> Events:
    document = b""
    for block in stored_blocks(store, key):
        document += block
        if len(document) > MAX_EVENTS_BYTES:
            raise ArtifactInvalid(f"{key} is longer than any list of events")
    try:
        return parse_events(document)
    except ArtifactInvalid as error:
        raise ArtifactInvalid(f"{key}: {error}") from error
