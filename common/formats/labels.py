"""Events in the forms of audio programs: Audacity, Raven, RTTM, JAMS.

Sources: Audacity manual, "Importing and Exporting Labels"; Raven Pro 1.6 User's Manual, chapter 6,
selection tables; NIST, "The 2009 Rich Transcription Evaluation Plan", appendix A; Humphrey et al.,
"JAMS: A JSON Annotated Music Specification", ISMIR 2014, and its schema 0.3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from common.results import Events

RAVEN_COLUMNS = (
    "Selection",
    "View",
    "Channel",
    "Begin Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "Begin File",
    "File Offset (s)",
    "Label",
    "Confidence",
    "Recording",
)
RAVEN_HEADER = "\t".join(RAVEN_COLUMNS) + "\n"
JAMS_VERSION = "0.3.5"
NOT_A_WORD = re.compile(r'[\s\0-\x1f\x7f"%;]')


@dataclass(frozen=True)
class Origin:
    """The recording that events were found in.

    ``sample_rate`` in hertz, None before anything was decoded.
    """

    id: str
    name: str
    sample_rate: int | None = None
    custom_id: str | None = None
    labels: Mapping[str, str] | None = None


def audacity(found: Events) -> str:
    """Return events as a label track: a line each of onset and offset in seconds and the label."""
    return "".join(
        f"{event.onset_s:.6f}\t{event.offset_s:.6f}\t{one_line(event.label)}\n"
        for event in found.events
    )


def raven(found: Events, origin: Origin, first: int = 1, before_s: float = 0.0) -> str:
    """Return events as lines of a selection table, without its header ``RAVEN_HEADER``.

    Selections span the whole spectrum: events have no bounds in frequency.

    Args:
        first: The number of the first selection.
        before_s: Seconds of audio in the files before this one, for a table of many files that are
            opened as one: Begin Time counts through all of them, File Offset from its own file.
    """
    view, channel, low_hz = "Spectrogram 1", 1, 0.0
    high_hz = (origin.sample_rate or 0) / 2
    name, recording = one_line(origin.name), one_line(origin.id)
    return "".join(
        f"{number}\t{view}\t{channel}\t{before_s + event.onset_s:.6f}"
        f"\t{before_s + event.offset_s:.6f}\t{low_hz:.1f}\t{high_hz:.1f}\t{name}"
        f"\t{event.onset_s:.6f}\t{one_line(event.label)}\t{event.confidence:.4f}\t{recording}\n"
        for number, event in enumerate(found.events, start=first)
    )


def rttm(found: Events, file_id: str) -> str:
    """Return events as SPEAKER lines of ten fields, the label in place of the speaker.

    Args:
        file_id: Names the recording; see ``word``, which makes one field of it.
    """
    file = word(file_id)
    return "".join(
        f"SPEAKER {file} 1 {event.onset_s:.6f} {event.offset_s - event.onset_s:.6f}"
        f" <NA> <NA> {word(event.label)} {event.confidence:.4f} <NA>\n"
        for event in found.events
    )


def jams(found: Events, origin: Origin) -> str:
    """Return events and tags as one JAMS document: two annotations of the namespace tag_open."""
    annotations = [
        _annotation(
            found,
            "events: when each sound is heard",
            [(e.onset_s, e.offset_s - e.onset_s, e.label, e.confidence) for e in found.events],
        ),
        _annotation(
            found,
            "tags: sounds that are somewhere in the recording",
            [(0.0, found.duration_s, tag.label, tag.confidence) for tag in found.tags],
        ),
    ]
    document = {
        "annotations": annotations,
        "file_metadata": {
            "title": origin.name,
            "artist": "",
            "release": "",
            "duration": found.duration_s,
            "identifiers": {"soundmill": origin.id, "custom_id": origin.custom_id},
            "jams_version": JAMS_VERSION,
        },
        "sandbox": {"labels": dict(origin.labels or {})},
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def word(text: str) -> str:
    """Return text as one field of a line: space, quotes, ``;`` and ``%`` percent-encoded."""
    return NOT_A_WORD.sub(lambda found: quote(found[0], safe=""), text) or "<NA>"


def one_line(text: str) -> str:
    """Return text with every run of space, tabs and line ends as one space."""
    return " ".join(text.split())


def _annotation(
    found: Events, rules: str, data: list[tuple[float, float, str, float]]
) -> dict[str, object]:
    return {
        "namespace": "tag_open",
        "time": 0.0,
        "duration": found.duration_s,
        "annotation_metadata": {
            "annotation_tools": "Soundmill",
            "annotation_rules": rules,
            "data_source": "program",
        },
        "data": [
            {"time": time, "duration": duration, "value": value, "confidence": confidence}
            for time, duration, value, confidence in data
        ],
        "sandbox": {},
    }
