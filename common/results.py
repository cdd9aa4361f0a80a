"""Results as people and other programs want them: events as CSV, labels and JSON; the manifest.

Pure functions from documents to text, used by the gateway and by the client. Audacity reads the
labels with File, Import, Labels: one line each of onset, offset in seconds and text, tab between.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from common.domain import Event
from common.errors import ArtifactInvalid

EVENTS_VERSION = 1
MANIFEST_VERSION = 1
CSV_COLUMNS = ("label", "onset_s", "offset_s", "confidence")


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
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactInvalid("not a document of events") from error


def events_json(found: Events) -> str:
    """Return events and tags as JSON, in the form that ``parse_events`` reads."""
    return _json({"version": EVENTS_VERSION, **asdict(found)})


def events_csv(found: Events) -> str:
    """Return events as CSV with a header; times in seconds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for event in found.events:
        writer.writerow(
            (
                _one_line(event.label),
                *(f"{x:.3f}" for x in (event.onset_s, event.offset_s, event.confidence)),
            )
        )
    return text.getvalue()


def audacity_labels(found: Events) -> str:
    """Return events as a label track of Audacity."""
    return "".join(
        f"{event.onset_s:.6f}\t{event.offset_s:.6f}\t{_one_line(event.label)}\n"
        for event in found.events
    )


def manifest(recording: Mapping[str, Any]) -> str:
    """Return where results come from, as JSON: input, models, parameters, versions.

    Args:
        recording: A recording as ``GET /v1/recordings/{id}`` returns it, decoded.
    """
    facts = ("id", "job_id", "name", "sha256", "size_bytes", "duration_s", "sample_rate")
    return _json(
        {
            "version": MANIFEST_VERSION,
            "soundmill": version("soundmill"),
            "recording": {name: recording[name] for name in (*facts, "channels")},
            "stages": [_manifest_stage(run, recording) for run in recording["runs"]],
        }
    )


def _manifest_stage(run: Mapping[str, Any], recording: Mapping[str, Any]) -> dict[str, Any]:
    ended = ("succeeded", "reused")
    last = next((a for a in reversed(run["attempts"]) if a["outcome"] in ended), None)
    error = None
    if run["error_code"] is not None:
        error = {"code": run["error_code"], "detail": run["error_detail"]}
    return {
        "stage": run["stage"],
        "state": run["state"],
        "finished_at": run["finished_at"],
        "parameters": run["parameters"],
        "idempotency_key": run["idempotency_key"],
        "model_digest": last and last["model_digest"],
        "device": last and last["device"],
        "result": run["result"],
        "error": error,
        "artifacts": [
            {name: artifact[name] for name in ("kind", "media_type", "size_bytes", "sha256")}
            for artifact in recording["artifacts"]
            if artifact["stage"] == run["stage"]
        ],
    }


def _one_line(label: str) -> str:
    return " ".join(label.split())


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
