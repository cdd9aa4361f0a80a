"""What goes over the wire: JSON in, JSON out. Times are ISO 8601 in UTC, durations seconds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from common.domain import ArtifactKind, Outcome, RunState, Stage


def _from_seconds(value: object) -> object:
    return datetime.fromtimestamp(value, UTC) if isinstance(value, float) else value


def _or_empty(value: object) -> object:
    return {} if value is None else value


Time = Annotated[datetime, BeforeValidator(_from_seconds)]


class Out(BaseModel):
    """Base of what is sent: read from database rows, field by field."""

    model_config = ConfigDict(from_attributes=True)


class ArtifactOut(Out):
    """A stored output."""

    kind: ArtifactKind
    stage: Stage
    media_type: str
    size_bytes: int
    sha256: str
    href: str


class RunBrief(Out):
    """One stage on one recording, in a list."""

    stage: Stage
    state: RunState
    error_code: str | None
    error_detail: str | None


class RecordingFacts(Out):
    """What is known about a recording itself. The last three once it has been decoded.

    ``custom_id`` and ``labels`` are its owner's; ``entry`` is its place in its source; ``trace_id``
    is that of the request that brought it, and finds it in the logs of every service.
    """

    id: str
    job_id: str
    position: int
    name: str
    size_bytes: int
    sha256: str
    created_at: Time
    custom_id: str | None
    labels: Annotated[dict[str, str], BeforeValidator(_or_empty)]
    source_id: str | None
    entry: int | None
    trace_id: str | None
    duration_s: float | None
    sample_rate: int | None
    channels: int | None


class RecordingOut(RecordingFacts):
    """A recording in a list."""

    runs: list[RunBrief]
    artifacts: list[ArtifactOut]


class RecordingPage(BaseModel):
    """Recordings in the order of the job. ``next_cursor`` asks for the page after this one."""

    recordings: list[RecordingOut]
    next_cursor: str | None


class AttemptOut(Out):
    """One execution of a stage run and what it measured."""

    number: int
    worker: str
    outcome: Outcome
    error_code: str | None
    error_detail: str | None
    claimed_at: Time
    started_at: Time | None
    finished_at: Time | None
    queue_wait_s: float | None
    download_s: float | None
    decode_s: float | None
    infer_s: float | None
    encode_s: float | None
    upload_s: float | None
    audio_s: float | None
    batch_size: int | None
    device: str | None
    peak_memory_bytes: int | None
    device_memory_bytes: int | None
    model_digest: str | None


class RunOut(RunBrief):
    """One stage on one recording, in full."""

    id: str
    failures: int
    crashes: int
    finished_at: Time | None
    parameters: dict[str, Any]
    idempotency_key: str | None
    result: dict[str, Any] | None
    attempts: list[AttemptOut]


class RecordingDetail(RecordingFacts):
    """A recording with everything that was done to it."""

    runs: list[RunOut]
    artifacts: list[ArtifactOut]


class Health(BaseModel):
    """The process answers."""

    status: str = "ok"


class Ready(BaseModel):
    """Everything the gateway leans on answers. One sentence for each part."""

    status: str
    checks: dict[str, str]


class ProblemOut(BaseModel):
    """A problem after RFC 9457. ``code`` is stable; ``detail`` is one sentence for people."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[dict[str, str]] | None = None
    checks: dict[str, str] | None = None
