"""What the work of a job took, as typed records. Durations in seconds; None: not measured yet."""

from __future__ import annotations

from datetime import datetime

from client.api.records import Record
from common.domain import JobState, Outcome, Stage


class AttemptCount(Record):
    """How many attempts ended so. ``reason`` is the error code, None where there is none."""

    outcome: Outcome
    reason: str | None = None
    count: int


class RealTimeFactor(Record):
    """Processing time over the duration of the audio: of all together, and over attempts."""

    total: float | None = None
    p50: float | None = None
    p95: float | None = None


class Spread(Record):
    """How a measured value spreads over attempts."""

    mean: float | None = None
    p50: float | None = None
    p95: float | None = None
    max: float | None = None


class PhaseTime(Record):
    """Where time went. ``share`` is the part of all that the computing attempts took."""

    sum_s: float
    mean_s: float
    share: float | None = None


class Batch(Record):
    """How many chunks were computed together."""

    mean: float | None = None
    max: int | None = None


class DeviceShare(Record):
    """What one kind of device computed."""

    device: str
    attempts: int
    audio_s: float
    busy_s: float
    real_time_factor: float | None = None


class ModelShare(Record):
    """What one model computed."""

    digest: str
    attempts: int
    audio_s: float


class StageMetrics(Record):
    """What one stage took; ``recordings_done`` and ``audio_done_s`` count reused results."""

    attempts: list[AttemptCount]
    recordings_done: int
    audio_done_s: float
    audio_s: float
    busy_s: float
    real_time_factor: RealTimeFactor
    queue_wait_s: Spread
    phases: dict[str, PhaseTime]
    batch_size: Batch
    peak_memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    devices: list[DeviceShare]
    models: list[ModelShare]


class JobMetrics(Record):
    """What the work of a job took. The rates are over ``working_s``, weighted by stages."""

    job_id: str
    state: JobState
    measured_at: datetime
    created_at: datetime
    first_result_at: datetime | None = None
    finished_at: datetime | None = None
    to_first_result_s: float | None = None
    to_end_s: float | None = None
    working_s: float | None = None
    audio_hours_per_hour: float | None = None
    recordings_per_s: float | None = None
    stages: dict[Stage, StageMetrics]
