"""Results in the formats that other programs read, read back by others than their writers."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jams
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import parquet as pq

from common.domain import Event
from common.formats import labels, tables
from common.formats.parquet import GROUP_ROWS, parquet
from common.formats.tables import Column, Kind, guarded
from common.results import Events, Tag

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
COLUMNS = [
    Column("name", Kind.TEXT),
    Column("number", Kind.INTEGER),
    Column("seconds", Kind.NUMBER),
    Column("made_at", Kind.TIME),
    Column("labels", Kind.MAP),
]
ROWS = st.lists(
    st.tuples(
        TEXT.filter(bool),
        st.integers(-(2**53), 2**53),
        st.floats(0, 1e6),
        st.integers(0, 4_000_000_000).map(float),
        st.dictionaries(TEXT, TEXT, max_size=3),
    ),
    max_size=5,
)
UNKNOWN = ("only a name", None, None, None, None)
LABEL = st.sampled_from(["dog", "car_horn", "two words"])


@st.composite
def found_in_recordings(draw: st.DrawFn) -> Events:
    duration_s = draw(st.floats(1, 86_400))
    events = []
    for _ in range(draw(st.integers(0, 4))):
        onset_s = round(draw(st.floats(0, duration_s - 0.01)), 3)
        length_s = round(draw(st.floats(0.001, 10)), 3)
        event = Event(draw(LABEL), onset_s, onset_s + length_s, draw(st.floats(0, 1)))
        events.append(event)
    return Events(duration_s, tuple(events), (Tag("dog", draw(st.floats(0, 1))),))


@given(ROWS)
def test_json_lines_are_read_by_pandas(rows: list[Any]) -> None:
    data = b"".join(tables.jsonl(COLUMNS, [*rows, UNKNOWN]))
    frame = pd.read_json(io.BytesIO(data), lines=True, dtype=False)
    assert list(frame.columns) == [column.name for column in COLUMNS]
    assert frame["name"].tolist() == [row[0] for row in (*rows, UNKNOWN)]
    for line, row in zip(data.decode().split("\n"), rows, strict=False):
        read = json.loads(line)
        assert (read["name"], read["number"], read["seconds"]) == row[:3]
        assert datetime.fromisoformat(read["made_at"]).timestamp() == row[3]
        assert read["labels"] == row[4]


@given(ROWS)
@example(
    [
        ("'", 1, 0.5, 0.0, {}),
        ("=1+1", 1, 0.5, 0.0, {}),
        ("-12", 1, 0.5, 0.0, {}),
        ('a\n"b",c', 1, 0.5, 0.0, {}),
    ]
)
def test_csv_is_read_by_pandas(rows: list[Any]) -> None:
    data = b"".join(tables.csv_lines(COLUMNS, [*rows, UNKNOWN]))
    frame = pd.read_csv(
        io.BytesIO(data),
        dtype={"name": str, "number": "Int64"},
        keep_default_na=False,
        na_values={"number": "", "seconds": "", "made_at": "", "labels": ""},
        lineterminator="\n",
    )
    assert len(frame) == len(rows) + 1
    for read, row in zip(frame.itertuples(index=False), rows, strict=False):
        assert read.name.removeprefix("'") == row[0]
        assert guarded(row[0]) == read.name
        assert (read.number, read.seconds) == row[1:3]
        assert datetime.fromisoformat(read.made_at).timestamp() == row[3]
        assert json.loads(read.labels) == row[4]
    assert frame.iloc[-1][["number", "seconds", "made_at", "labels"]].isna().all()


@given(ROWS)
@example([("half a microsecond", 1, 0.5, 1_795_207_372.1570135, {})])
def test_parquet_is_read_by_pyarrow(rows: list[Any]) -> None:
    table = pq.read_table(io.BytesIO(b"".join(parquet(COLUMNS, [*rows, UNKNOWN]))))
    assert table.schema.types == [
        pa.string(),
        pa.int64(),
        pa.float64(),
        pa.timestamp("us", tz="UTC"),
        pa.map_(pa.string(), pa.string()),
    ]
    *read, unknown = table.to_pylist()
    assert tuple(unknown.values()) == UNKNOWN
    for line, row in zip(read, rows, strict=True):
        assert tuple(line.values())[:3] == row[:3]
        assert line["made_at"] == datetime.fromtimestamp(row[3], UTC)
        assert dict(line["labels"]) == row[4]


def test_parquet_comes_in_row_groups() -> None:
    columns = [Column("n", Kind.INTEGER)]
    blocks = list(parquet(columns, ([n] for n in range(2 * GROUP_ROWS + 1))))
    assert len(blocks) == 4  # three groups and the end
    file = pq.ParquetFile(io.BytesIO(b"".join(blocks)))
    assert file.num_row_groups == 3
    assert file.read()["n"].to_pylist() == list(range(2 * GROUP_ROWS + 1))


def test_a_table_without_rows() -> None:
    assert list(tables.jsonl(COLUMNS, [])) == []
    assert b"".join(tables.csv_lines(COLUMNS, [])) == b"name,number,seconds,made_at,labels\n"
    assert pq.read_table(io.BytesIO(b"".join(parquet(COLUMNS, [])))).num_rows == 0


def test_half_a_surrogate_pair_does_not_end_a_table() -> None:
    columns, row = [Column("name", Kind.TEXT)], ["a\ud800b"]
    assert json.loads(b"".join(tables.jsonl(columns, [row]))) == {"name": "a?b"}
    assert b"".join(tables.csv_lines(columns, [row])) == b"name\na?b\n"
    read = pq.read_table(io.BytesIO(b"".join(parquet(columns, [row]))))
    assert read["name"].to_pylist() == ["a?b"]


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "'quoted"])
def test_no_cell_is_a_formula(text: str) -> None:
    assert guarded(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-12", "+1.5", "-3,5", "plain", "a=b", "", "1-2"])
def test_harmless_cells_stay_as_they_are(text: str) -> None:
    assert guarded(text) == text


@given(found_in_recordings())
def test_audacity_labels_are_three_columns(found: Events) -> None:
    lines = labels.audacity(found).split("\n")
    assert lines.pop() == ""
    assert len(lines) == len(found.events)
    for line, event in zip(lines, found.events, strict=True):
        onset, offset, label = line.split("\t")
        assert float(onset) == pytest.approx(event.onset_s, abs=1e-6)
        assert float(offset) == pytest.approx(event.offset_s, abs=1e-6)
        assert label == event.label


@given(found_in_recordings(), TEXT.filter(bool))
def test_raven_follows_its_column_rules(found: Events, name: str) -> None:
    origin = labels.Origin("id1", name, sample_rate=48_000)
    text = labels.RAVEN_HEADER + labels.raven(found, origin, first=7, before_s=100.0)
    header, *lines = text.removesuffix("\n").split("\n")
    columns = header.split("\t")
    # what Raven needs to open a table of selections
    assert columns[:7] == [
        "Selection",
        "View",
        "Channel",
        "Begin Time (s)",
        "End Time (s)",
        "Low Freq (Hz)",
        "High Freq (Hz)",
    ]
    assert len(lines) == len(found.events)
    for number, (line, event) in enumerate(zip(lines, found.events, strict=True), start=7):
        row = dict(zip(columns, line.split("\t"), strict=True))
        assert row["Selection"] == str(number)
        assert row["View"] == "Spectrogram 1"
        assert int(row["Channel"]) == 1
        begin, end = float(row["Begin Time (s)"]), float(row["End Time (s)"])
        assert begin == pytest.approx(100 + event.onset_s, abs=1e-6)
        assert end == pytest.approx(100 + event.offset_s, abs=1e-6)
        assert float(row["File Offset (s)"]) == pytest.approx(event.onset_s, abs=1e-6)
        assert 0 == float(row["Low Freq (Hz)"]) < float(row["High Freq (Hz)"]) == 24_000
        assert row["Label"] == event.label
        assert row["Begin File"].split() == name.split()


@given(found_in_recordings(), TEXT.filter(bool))
@example(Events(1.0, (Event("dog", 0.0, 1.0, 1.0),), ()), 'tapes 1/a;b "c"\x85%20.wav')
def test_rttm_is_read_as_pyannote_reads_it(found: Events, name: str) -> None:
    text = labels.rttm(found, name)
    if not found.events:
        assert text == ""
        return
    names = [
        "type",
        "uri",
        "channel",
        "start",
        "duration",
        "NA3",
        "NA4",
        "speaker",
        "confidence",
        "NA6",
    ]
    frame = pd.read_csv(
        io.StringIO(text, newline="\n"),
        names=names,
        dtype={"uri": str, "start": float, "duration": float, "speaker": str},
        sep=r"\s+",
        keep_default_na=False,
    )
    assert len(frame) == len(found.events)
    for row, event in zip(frame.itertuples(index=False), found.events, strict=True):
        assert row.type == "SPEAKER"
        assert unquote(row.uri) == name
        assert row.start == pytest.approx(event.onset_s, abs=1e-6)
        assert row.duration == pytest.approx(event.offset_s - event.onset_s, abs=2e-6)
        assert unquote(row.speaker) == event.label


@pytest.mark.filterwarnings("ignore:Passing a schema to Validator:DeprecationWarning")
def test_jams_is_valid(tmp_path: Path) -> None:
    found = Events(
        12.5,
        (Event("dog", 0.25, 1.0, 0.875), Event("siren", 1.5, 3.4567, 0.5)),
        (Tag("dog", 0.9), Tag("siren", 0.1)),
    )
    path = tmp_path / "a.jams"
    origin = labels.Origin("id1", "tapes/Café.wav", 48_000, "tape-7", {"site": "A"})
    path.write_text(labels.jams(found, origin))
    read = jams.load(str(path), validate=True, strict=True)
    assert read.file_metadata.duration == 12.5
    assert read.file_metadata.title == "tapes/Café.wav"
    assert read.file_metadata.identifiers.custom_id == "tape-7"
    assert read.sandbox.labels == {"site": "A"}
    events, tags = read.search(namespace="tag_open")
    intervals, values = events.to_interval_values()
    assert intervals.tolist() == [[0.25, 1.0], [1.5, 3.4567]]
    assert values == ["dog", "siren"]
    assert [tag.value for tag in tags.data] == ["dog", "siren"]
    assert [tag.duration for tag in tags.data] == [12.5, 12.5]
