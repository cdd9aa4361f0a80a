"""What was found in a recording: the stored document, and what the database keeps of it.

How events are written for people and other programs is in ``common.formats``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from common.domain import Event
from common.errors import ArtifactInvalid

EVENTS_VERSION = 1
KEPT_EVENTS = 64
"""So that the result of a StageRun stays below 4 KiB."""


@dataclass(frozen=True)
class Tag:
    """A sound that is somewhere in the recording. Confidence in [0, 1]."""

    label: str
    confidence: float


@dataclass(frozen=True)
class Events:
    """What the classifier found in one recording."""

    duration_s: float
    events: tuple[Event, ...]
    tags: tuple[Tag, ...]


def parse_events(document: bytes | str) -> Events:
    """Return the events of an ``events.json`` artifact.

    Raises:
        ArtifactInvalid: not that kind of document, or of a version this code does not know.
    """
    try:
        raw = json.loads(document)
        if raw["version"] != EVENTS_VERSION:
            raise ArtifactInvalid(f"events of version {raw['version']} are not known")
        return Events(
            duration_s=float(raw["duration_s"]),
            events=tuple(
                Event(
                    label=str(event["label"]),
                    onset_s=float(event["onset_s"]),
                    offset_s=float(event["offset_s"]),
                    confidence=float(event["confidence"]),
                )
                for event in raw["events"]
            ),
            tags=tuple(Tag(str(tag["label"]), float(tag["confidence"])) for tag in raw["tags"]),
        )
    except (ArithmeticError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ArtifactInvalid("not a document of events") from error


def events_json(found: Events) -> str:
    """Return events and tags as JSON, in the form that ``parse_events`` reads."""
    document = {"version": EVENTS_VERSION, **asdict(found)}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def summary(found: Events) -> dict[str, Any]:
    """Return what the classifier's StageRun keeps in the database: small, whatever was found.

    ``found`` holds the events themselves, so that tables of a million recordings need not fetch a
    million objects; it is missing where there are more than ``KEPT_EVENTS`` (see decision 0010).
    """
    best = max(found.tags, key=lambda tag: tag.confidence, default=None)
    kept: dict[str, Any] = {
        "events": len(found.events),
        "top": best and best.label,
        "top_confidence": best and best.confidence,
    }
    if len(found.events) <= KEPT_EVENTS:
        kept["found"] = {
            "duration_s": found.duration_s,
            "events": [[e.label, e.onset_s, e.offset_s, e.confidence] for e in found.events],
            "tags": [[tag.label, tag.confidence] for tag in found.tags],
        }
    return kept


def parse_summary(result: Mapping[str, Any]) -> Events | None:
    """Return the events that ``summary`` kept, None where the artifact must be read instead."""
    found = result.get("found")
    if found is None:
        return None
    return Events(
        duration_s=found["duration_s"],
        events=tuple(Event(*event) for event in found["events"]),
        tags=tuple(Tag(*tag) for tag in found["tags"]),
    )
