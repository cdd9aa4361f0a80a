"""Events as they are stored."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain import Event
from common.errors import ArtifactInvalid
from common.labels import LABELS
from common.results import (
    KEPT_EVENTS,
    Events,
    Tag,
    events_json,
    parse_events,
    parse_summary,
    summary,
)

UNIT = st.floats(0, 1)
TIMES = st.floats(0, 86_400)
FOUND = st.builds(
    Events,
    duration_s=TIMES,
    events=st.lists(st.builds(Event, st.text(), TIMES, TIMES, UNIT), max_size=5).map(tuple),
    tags=st.lists(st.builds(Tag, st.text(), UNIT), max_size=5).map(tuple),
)


@given(FOUND)
def test_json_comes_back_as_it_was(found: Events) -> None:
    assert parse_events(events_json(found)) == found
    assert parse_events(events_json(found).encode("utf-8", "surrogatepass")) == found


@given(FOUND)
def test_what_the_database_keeps_comes_back(found: Events) -> None:
    kept = json.loads(json.dumps(summary(found)))
    assert parse_summary(kept) == found
    assert kept["events"] == len(found.events)
    assert parse_summary({"events": 3, "top": "dog"}) is None


def test_what_the_database_keeps_is_small() -> None:
    def found(n_events: int) -> Events:
        event = Event("children_playing", 12345.678, 12346.789, 0.1234)
        tags = tuple(Tag(label, 0.1234) for label in LABELS)
        return Events(86_400.0, (event,) * n_events, tags)

    assert len(json.dumps(summary(found(KEPT_EVENTS)))) < 4096
    assert parse_summary(summary(found(KEPT_EVENTS))) == found(KEPT_EVENTS)
    many = summary(found(KEPT_EVENTS + 1))
    assert many["events"] == KEPT_EVENTS + 1
    assert parse_summary(many) is None


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        b'{"version": 2, "duration_s": 1, "events": [], "tags": []}',
        b'{"version": 1, "duration_s": "x", "events": [], "tags": []}',
        b'{"version": 1, "duration_s": 1, "events": [{"label": "dog"}], "tags": []}',
        b'{"version": 1, "duration_s": 1, "events": 7, "tags": []}',
        b'{"version": 1, "duration_s": 1, "events": []}',
    ],
)
def test_what_is_no_document_of_events(document: bytes) -> None:
    with pytest.raises(ArtifactInvalid):
        parse_events(document)


def test_json_is_plain() -> None:
    found = Events(2.0, (Event("dog", 0.5, 1.0, 0.75),), (Tag("dog", 0.75),))
    assert json.loads(events_json(found)) == {
        "version": 1,
        "duration_s": 2.0,
        "events": [{"label": "dog", "onset_s": 0.5, "offset_s": 1.0, "confidence": 0.75}],
        "tags": [{"label": "dog", "confidence": 0.75}],
    }
