"""The events of one recording in every format."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from common import results
from common.formats import labels, tables
from common.formats.labels import RAVEN_HEADER, Origin
from common.formats.tables import Column, Kind, Row
from common.results import Events
from common.tables import Recording


class EventsFormat(StrEnum):
    """How the events of one recording may be written."""

    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    AUDACITY = "txt"
    RAVEN = "raven.txt"
    RTTM = "rttm"
    JAMS = "jams"


MEDIA_TYPES = {
    EventsFormat.JSON: "application/json",
    EventsFormat.JSONL: "application/x-ndjson",
    EventsFormat.CSV: "text/csv; charset=utf-8",
    EventsFormat.PARQUET: "application/vnd.apache.parquet",
    EventsFormat.AUDACITY: "text/plain; charset=utf-8",
    EventsFormat.RAVEN: "text/tab-separated-values; charset=utf-8",
    EventsFormat.RTTM: "text/plain; charset=utf-8",
    EventsFormat.JAMS: "application/vnd.jams+json",
}
EVENT_COLUMNS = (
    Column("label", Kind.TEXT),
    Column("onset_s", Kind.NUMBER),
    Column("offset_s", Kind.NUMBER),
    Column("confidence", Kind.NUMBER),
)


def render(found: Events, origin: Origin, form: EventsFormat) -> Iterator[bytes]:
    """Yield the events of one recording in a format."""
    match form:
        case EventsFormat.JSONL:
            return tables.jsonl(EVENT_COLUMNS, event_rows(found))
        case EventsFormat.CSV:
            return tables.csv_lines(EVENT_COLUMNS, event_rows(found))
        case EventsFormat.PARQUET:
            from common.formats.parquet import parquet

            return parquet(EVENT_COLUMNS, event_rows(found))
        case EventsFormat.JSON:
            text = results.events_json(found)
        case EventsFormat.AUDACITY:
            text = labels.audacity(found)
        case EventsFormat.RAVEN:
            text = RAVEN_HEADER + labels.raven(found, origin)
        case EventsFormat.RTTM:
            text = labels.rttm(found, origin.custom_id or origin.name)
        case EventsFormat.JAMS:
            text = labels.jams(found, origin)
    return tables.in_blocks([text])


def origin_of(recording: Recording) -> Origin:
    """Return what the formats tell about a recording."""
    return Origin(
        id=recording.id,
        name=recording.name,
        sample_rate=recording.sample_rate,
        custom_id=recording.custom_id,
        labels=recording.labels,
    )


def event_rows(found: Events) -> Iterator[Row]:
    """Yield a row of ``EVENT_COLUMNS`` for each event."""
    for event in found.events:
        yield event.label, event.onset_s, event.offset_s, event.confidence
