"""Search by words: which recordings of a job hold what a text names."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel

from common.domain import Event
from common.wording import Wording
from services.gateway import cursors
from services.gateway.exports import FIRST, Export, Unreadable, heard_or_unreadable
from services.gateway.searches import DamageLog
from services.gateway.texts import GuessOut, asked_for, guesses_out

SCAN = 5_000  # recordings that one request looks at


class EventOut(BaseModel):
    """A labelled sound. Times in seconds from the start of the recording."""

    label: str
    onset_s: float
    offset_s: float
    confidence: float


class Hit(BaseModel):
    """A recording with events that were asked for."""

    recording_id: str
    position: int
    custom_id: str | None
    name: str
    duration_s: float | None
    events: list[EventOut]


class SearchPage(BaseModel):
    """What a text was taken to mean, and where that is heard, in the order of the job.

    ``guesses`` are the labels with their confidence, ``unknown`` words and things that are no label
    here, ``excluded`` labels that the text names as what is not meant. ``unreadable`` counts the
    recordings whose events are damaged or gone: they are left out. A page may hold few hits or none
    and still have a ``next_cursor``: a request looks at so many recordings and no more.
    """

    labels: list[str]
    guesses: list[GuessOut]
    excluded: list[str]
    unknown: list[str]
    hits: list[Hit]
    unreadable: int
    next_cursor: str | None


def search(
    export: Export,
    wording: Wording,
    text: str,
    cursor: str | None,
    limit: int,
    damage: DamageLog,
    check: Callable[[], None] = lambda: None,
) -> SearchPage:
    """Return the next recordings with events that ``text`` names.

    Args:
        damage: Told of events that cannot be read; the search goes on.
        check: Called between recordings; what it raises ends the search.

    Raises:
        Problem: the text is empty or names nothing, or the cursor was not made here.
        StoreUnavailable: stored events cannot be fetched.
        NotFound: the job was deleted meanwhile.
    """
    meant = asked_for(wording, text)
    after = FIRST if cursor is None else cursors.decode_position(cursor)
    hits: list[Hit] = []
    unreadable = 0
    next_cursor = None
    for seen, one in enumerate(heard_or_unreadable(export, after=after)):
        check()
        if seen == SCAN or len(hits) == limit:
            next_cursor = cursors.encode(str(one.recording.position - 1))
            break
        if isinstance(one, Unreadable):
            unreadable += 1
            damage.tell(one.object_key, str(one.error))
            continue
        events = one.found.events if one.found else ()
        wanted = [event for event in events if event.label in meant.labels]
        if wanted:
            recording = one.recording
            hits.append(
                Hit(
                    recording_id=recording.id,
                    position=recording.position,
                    custom_id=recording.custom_id,
                    name=recording.name,
                    duration_s=recording.duration_s,
                    events=[event_out(event) for event in wanted],
                )
            )
    return SearchPage(
        labels=list(meant.labels),
        guesses=guesses_out(meant.guesses),
        excluded=list(meant.excluded),
        unknown=[*meant.others, *meant.unknown],
        hits=hits,
        unreadable=unreadable,
        next_cursor=next_cursor,
    )


def event_out(event: Event) -> EventOut:
    """Return an event as it is sent."""
    return EventOut(
        label=event.label,
        onset_s=event.onset_s,
        offset_s=event.offset_s,
        confidence=event.confidence,
    )
