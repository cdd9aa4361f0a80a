"""Jobs as they go over the wire: what to do, how far it is, what did not become a recording."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from common.domain import JobState, Priority, RunState, SourceState, Stage
from common.names import CleanName
from common.params import JobParams
from services.gateway.schemas import Out, Time


def _is_there(value: object) -> bool:
    return value is not None


MAX_RETENTION_S = 100 * 365 * 24 * 3600.0

Moment = AwareDatetime
"""A time as clients say it: ISO 8601 with an offset from UTC."""

Retention = Annotated[float, Field(ge=0.0, le=MAX_RETENTION_S, allow_inf_nan=False)]


class JobRequest(BaseModel):
    """What to do with the recordings that follow. Stages bring along those they need.

    What is not done at ``deadline_at`` is cancelled. ``retention_s`` after its end the job is
    deleted with all it holds. A ``dry_run`` reads its sources to their end, says what it would take
    in and what would fail, and keeps nothing.
    """

    model_config = ConfigDict(extra="forbid")

    name: CleanName = "unnamed"
    priority: Priority = Priority.BULK
    stages: set[Stage] = Field(default_factory=lambda: set(Stage), min_length=1)
    params: JobParams = JobParams()
    deadline_at: Moment | None = None
    retention_s: Retention | None = None
    dry_run: bool = False

    def content(self) -> dict[str, Any]:
        """Return it as JSON that is the same however it was written."""
        content = self.model_dump(mode="json")
        return {**content, "stages": sorted(content["stages"])}


class JobChange(BaseModel):
    """What to change about a job. What is left out stays; null takes a limit of time away."""

    model_config = ConfigDict(extra="forbid")

    name: CleanName = Field(default_factory=str)
    priority: Priority = Field(default_factory=lambda: Priority.BULK)
    deadline_at: Moment | None = None
    retention_s: Retention | None = None


class Funnel(BaseModel):
    """How many recordings are where in one stage."""

    waiting: int = 0  # for the stages it needs, or for a worker
    running: int = 0
    succeeded: int = 0
    failed: int = 0  # or quarantined, because it killed its worker
    skipped: int = 0  # a stage it needs did not succeed
    cancelled: int = 0


class JobError(BaseModel):
    """What went wrong how often, with the first recording or entry that it happened to.

    ``stage`` is ``ingest`` for entries of sources that did not become recordings.
    """

    stage: str
    code: str
    count: int
    recording_id: str | None
    name: str
    detail: str | None


class Estimate(BaseModel):
    """What the sources of a dry run hold, as far as they are read.

    ``audio_s`` leaves out files whose length only decoding would tell; ``unknown_length`` counts
    them. ``eta_s`` is None where nothing was measured lately.
    """

    files: int = 0
    size_bytes: int = 0
    audio_s: float = 0.0
    unknown_length: int = 0
    would_fail: dict[str, int] = {}
    eta_s: float | None = None


class JobOut(Out):
    """A job and how far it is.

    Audio is weighted by stages: a recording of 60 s with two of its four stages done counts as
    30 s done. ``rate`` is seconds of audio per second, lately; ``eta_s`` follows from it, and
    ``on_track`` says whether that is before the deadline. ``rejected`` counts entries of sources
    that did not become recordings.
    """

    id: str
    name: str
    state: JobState
    paused: bool
    dry_run: bool
    priority: Priority
    stages: list[Stage]
    params: dict[str, Any]
    created_at: Time
    closed_at: Time | None
    finished_at: Time | None
    deadline_at: Time | None
    retention_s: float | None
    recordings: int
    rejected: int
    size_bytes: int
    sources: dict[SourceState, int]
    counts: dict[Stage, dict[RunState, int]]
    funnel: dict[Stage, Funnel]
    errors: list[JobError]
    estimate: Estimate | None
    audio_s_total: float
    audio_s_done: float
    audio_s_left: float
    rate: float | None
    eta_s: float | None
    on_track: bool | None
    counted_at: Time | None


class JobPage(BaseModel):
    """Jobs, newest first. ``next_cursor`` asks for the page after this one."""

    jobs: list[JobOut]
    next_cursor: str | None


class RetryOut(BaseModel):
    """How many stage runs went back to work, and what of sources is read again."""

    job: JobOut
    retried: int
    entries: int
    sources: int


class RejectionOut(Out):
    """An entry of a source that did not become a recording. ``retryable``: retry reads it again."""

    id: str
    source_id: str
    entry: int
    name: str
    custom_id: str | None
    error_code: str
    error_detail: str
    retryable: Annotated[bool, BeforeValidator(_is_there), Field(validation_alias="again")]
    created_at: Time


class RejectionPage(BaseModel):
    """Rejected entries in the order they were met. ``next_cursor`` asks for the next page."""

    rejections: list[RejectionOut]
    next_cursor: str | None
