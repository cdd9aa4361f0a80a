"""Results in the formats that other programs read."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.domain import Event
from common.errors import ArtifactInvalid
from common.results import (
    Events,
    Tag,
    audacity_labels,
    events_csv,
    events_json,
    parse_events,
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
def test_csv_can_be_read_by_others(found: Events) -> None:
    rows = list(csv.DictReader(io.StringIO(events_csv(found), newline="")))
    assert [row["label"].split() for row in rows] == [e.label.split() for e in found.events]
    for row, event in zip(rows, found.events, strict=True):
        assert float(row["onset_s"]) == pytest.approx(event.onset_s, abs=0.0005)
        assert float(row["offset_s"]) == pytest.approx(event.offset_s, abs=0.0005)
        assert float(row["confidence"]) == pytest.approx(event.confidence, abs=0.0005)


@given(FOUND)
def test_a_label_is_one_line_of_three_columns(found: Events) -> None:
    lines = audacity_labels(found).split("\n")
    assert lines.pop() == ""
    assert len(lines) == len(found.events)
    for line, event in zip(lines, found.events, strict=True):
        onset, offset, label = line.split("\t")
        assert float(onset) == pytest.approx(event.onset_s, abs=1e-6)
        assert float(offset) == pytest.approx(event.offset_s, abs=1e-6)
        assert label.split() == event.label.split()


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
