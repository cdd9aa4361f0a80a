"""What the gateway sends, as typed records. Fields that this client does not know are left out."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from common.domain import (
    ENDED_STATES,
    TERMINAL_STATES,
    ArtifactKind,
    DeliveryState,
    JobState,
    Priority,
    RunState,
    SourceKind,
    SourceState,
    Stage,
    UploadState,
)


class Record(BaseModel):
    """Base of the records."""

    model_config = ConfigDict(frozen=True)


class JobError(Record):
    """One kind of failure in a job. ``stage`` is ``ingest`` for entries that were rejected.

    ``recording_id``, ``name`` and ``detail`` are those of the first that failed so.
    """

    stage: str
    code: str
    count: int
    recording_id: str | None = None
    name: str | None = None
    detail: str | None = None


class Estimate(Record):
    """What a dry run has found so far. ``would_fail`` counts entries by error code."""

    files: int = 0
    size_bytes: int = 0
    audio_s: float = 0.0
    unknown_length: int = 0
    would_fail: dict[str, int] = {}
    eta_s: float | None = None


class Job(Record):
    """A job and how far it is. ``rate`` is seconds of audio per second, ``eta_s`` seconds."""

    id: str
    name: str
    state: JobState
    priority: Priority
    stages: list[Stage]
    created_at: datetime
    finished_at: datetime | None
    recordings: int
    counts: dict[Stage, dict[RunState, int]]
    audio_s_total: float
    audio_s_done: float
    rate: float | None
    eta_s: float | None
    params: dict[str, Any] = {}
    paused: bool = False
    deadline_at: datetime | None = None
    retention_s: float | None = None
    dry_run: bool = False
    estimate: Estimate | None = None
    size_bytes: int = 0
    rejected: int = 0
    errors: list[JobError] = []
    sources: dict[SourceState, int] = {}
    funnel: dict[Stage, dict[str, int]] = {}
    audio_s_left: float | None = None
    on_track: bool | None = None

    @property
    def is_finished(self) -> bool:
        return self.state in ENDED_STATES

    @property
    def unread_sources(self) -> int:
        """How many sources are still read."""
        return sum(self.sources.get(s, 0) for s in (SourceState.PENDING, SourceState.RUNNING))

    @property
    def has_failures(self) -> bool:
        """Whether a recording did not succeed in a stage, or something did not become one."""
        lost = any(self.not_succeeded(stage) for stage in self.stages)
        return lost or self.rejected > 0 or self.sources.get(SourceState.FAILED, 0) > 0

    def done(self, stage: Stage) -> int:
        """Return how many recordings a stage is through with, whatever became of them."""
        return sum(n for state, n in self.counts.get(stage, {}).items() if state in TERMINAL_STATES)

    def not_succeeded(self, stage: Stage) -> int:
        """Return how many recordings a stage ended without success on."""
        return self.done(stage) - self.counts.get(stage, {}).get(RunState.SUCCEEDED, 0)


class Retried(Record):
    """What a retry put back to work: stage runs, rejected entries, sources that had failed."""

    job: Job
    retried: int
    entries: int = 0
    sources: int = 0


class Run(Record):
    """One stage on one recording."""

    stage: Stage
    state: RunState
    error_code: str | None
    error_detail: str | None


class Artifact(Record):
    """A stored output."""

    kind: ArtifactKind
    media_type: str
    size_bytes: int


class Recording(Record):
    """An uploaded file, its stages and their outputs. Facts are None until it has been decoded."""

    id: str
    position: int
    name: str
    size_bytes: int
    sha256: str | None = None
    custom_id: str | None = None
    labels: dict[str, str] | None = None
    trace_id: str | None = None
    duration_s: float | None = None
    sample_rate: int | None = None
    channels: int | None = None
    runs: list[Run] = []
    artifacts: list[Artifact] = []

    @property
    def succeeded(self) -> bool:
        return all(run.state is RunState.SUCCEEDED for run in self.runs)


class Rejection(Record):
    """An entry of a source that did not become a recording, and why."""

    id: str
    source_id: str
    entry: int
    name: str
    custom_id: str | None = None
    error_code: str
    error_detail: str
    retryable: bool = False


class Source(Record):
    """Something that holds many recordings. ``total`` is None while it is not known."""

    id: str
    job_id: str
    kind: SourceKind
    name: str
    state: SourceState
    entries: int = 0
    total: int | None = None
    recordings: int = 0
    rejected: int = 0
    error_code: str | None = None
    error_detail: str | None = None


class ReceivedPart(Record):
    """A part that the gateway has."""

    number: int
    size_bytes: int


class Upload(Record):
    """A large file on its way in parts of ``part_bytes``; the last one may be shorter."""

    id: str
    size_bytes: int
    part_bytes: int
    parts: int
    state: UploadState = UploadState.OPEN
    expires_at: datetime | None = None
    received: list[ReceivedPart] = []


class PartAddress(Record):
    """Where a part goes: a path of the gateway, or a presigned address of the store itself."""

    number: int
    size_bytes: int
    url: str


class JobEvent(Record):
    """What happened to a job: a ``JobEventKind``, with the data that a webhook is sent.

    Or ``progress``, with the newest counters; it has no id and is not told again.
    """

    id: int | None
    kind: str
    data: dict[str, Any]


class Webhook(Record):
    """An address that is told what happens. ``secret`` is sent once, when it is made."""

    id: str
    url: str
    kinds: list[str] = []
    secret: str | None = None
    disabled_at: datetime | None = None


class HeardEvent(Record):
    """A labelled sound. Times in seconds from the start of the recording."""

    label: str
    onset_s: float
    offset_s: float
    confidence: float


class Hit(Record):
    """A recording in which something was heard that was asked for."""

    recording_id: str
    position: int
    name: str
    custom_id: str | None = None
    duration_s: float | None = None
    events: list[HeardEvent] = []


class Guess(Record):
    """A label that a text may mean, and how sure that is, from 0 to 1."""

    label: str
    confidence: float


class Understood(Record):
    """How a text is understood: see ``services.gateway.texts`` and docs/search.md."""

    labels: list[str]
    guesses: list[Guess] = []
    unsure: list[Guess] = []
    excluded: list[str] = []
    others: list[str] = []
    unknown: list[str] = []
    intent: str | None = None
    judged: bool = False
    abstained: str | None = None
    detail: str | None = None
    known: list[str] = []


class Found(Record):
    """What a search found: the labels a text was taken for, words that said nothing, hits.

    ``unreadable``: recordings that were left out, since their events are damaged.
    """

    labels: list[str]
    guesses: list[Guess] = []
    excluded: list[str] = []
    unknown: list[str] = []
    hits: list[Hit]
    unreadable: int = 0
    next_cursor: str | None = None


class Alike(Record):
    """A stretch that sounds like an example. Times in seconds; similarity from -1 to 1."""

    job_id: str
    recording_id: str
    position: int
    name: str
    onset_s: float
    offset_s: float
    similarity: float
    custom_id: str | None = None
    label: str | None = None


class Similar(Record):
    """The stretches most alike among the recordings that one request looked at, best first."""

    hits: list[Alike]
    looked_at: int = 0
    without_vectors: int = 0
    other_weights: int = 0
    unreadable: int = 0
    next_cursor: str | None = None


class Tested(Record):
    """How a webhook answered to a test. ``status_code`` is None when it did not answer."""

    delivered: bool
    status_code: int | None
    error: str | None


class Delivery(Record):
    """One event on its way to a webhook. ``id`` is the ``webhook-id`` of the message."""

    id: str
    kind: str
    job_id: str
    state: DeliveryState
    attempts: int = 0
    status_code: int | None = None
    error: str | None = None
