"""What the work of a job took, as it goes over the wire. Durations in seconds, sizes in bytes.

A value is null where nothing was measured yet. What each one means is in ``docs/results.md``.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from common.domain import JobState, Outcome, Stage
from services.gateway.schemas import Time


class AttemptsOut(BaseModel):
    """How many attempts ended so. ``reason`` is the error code, null where there is none."""

    outcome: Outcome
    reason: str | None
    count: int


class RealTimeFactorOut(BaseModel):
    """Processing time over the duration of the audio: of all together, and over attempts."""

    total: float | None
    p50: float | None
    p95: float | None


class SpreadOut(BaseModel):
    """How a measured value spreads over attempts."""

    mean: float | None
    p50: float | None
    p95: float | None
    max: float | None


class PhaseOut(BaseModel):
    """Where time went. ``share`` is the part of all that the computing attempts took."""

    sum_s: float
    mean_s: float
    share: float | None


class BatchOut(BaseModel):
    """How many chunks were computed together."""

    mean: float | None
    max: int | None


class DeviceOut(BaseModel):
    """What one kind of device computed."""

    device: str
    attempts: int
    audio_s: float
    busy_s: float
    real_time_factor: float | None


class ModelOut(BaseModel):
    """What one model computed: ``digest`` is that of its weights."""

    digest: str
    attempts: int
    audio_s: float


class StageMetricsOut(BaseModel):
    """What one stage took.

    ``recordings_done`` and ``audio_done_s`` count reused results, ``audio_s`` only what was
    computed. ``busy_s`` is the time within attempts, failed ones included.
    """

    attempts: list[AttemptsOut]
    recordings_done: int
    audio_done_s: float
    audio_s: float
    busy_s: float
    real_time_factor: RealTimeFactorOut
    queue_wait_s: SpreadOut
    phases: dict[str, PhaseOut]
    batch_size: BatchOut
    peak_memory_bytes: int | None
    device_memory_bytes: int | None
    devices: list[DeviceOut]
    models: list[ModelOut]


EXAMPLE: dict[str, Any] = {
    "job_id": "0199f3a6c2d47a1be84f0c5d9273aa10",
    "state": "completed",
    "measured_at": "2026-11-20T10:00:00Z",
    "created_at": "2026-11-20T08:00:00Z",
    "first_result_at": "2026-11-20T08:00:02Z",
    "finished_at": "2026-11-20T09:00:00Z",
    "to_first_result_s": 2.0,
    "to_end_s": 3600.0,
    "working_s": 3598.0,
    "audio_hours_per_hour": 40.0,
    "recordings_per_s": 0.5,
    "stages": {
        "segment": {
            "attempts": [
                {"outcome": "succeeded", "reason": None, "count": 1800},
                {"outcome": "transient", "reason": "store_unavailable", "count": 3},
            ],
            "recordings_done": 1800,
            "audio_done_s": 144_000.0,
            "audio_s": 144_000.0,
            "busy_s": 3500.0,
            "real_time_factor": {"total": 0.024, "p50": 0.023, "p95": 0.031},
            "queue_wait_s": {"mean": 11.0, "p50": 9.5, "p95": 30.0, "max": 41.0},
            "phases": {"infer": {"sum_s": 2900.0, "mean_s": 1.6, "share": 0.83}},
            "batch_size": {"mean": 7.6, "max": 8},
            "peak_memory_bytes": 700_000_000,
            "device_memory_bytes": None,
            "devices": [
                {
                    "device": "cpu",
                    "attempts": 1800,
                    "audio_s": 144_000.0,
                    "busy_s": 3490.0,
                    "real_time_factor": 0.024,
                }
            ],
            "models": [{"digest": "5f" * 32, "attempts": 1800, "audio_s": 144_000.0}],
        }
    },
}


class JobMetricsOut(BaseModel):
    """What the work of a job took, as far as attempts have ended.

    ``working_s`` is the time from the first attempt's beginning to the newest one's end; the two
    rates are over it, with audio and recordings weighted by stages, as in the job itself.
    """

    model_config = ConfigDict(json_schema_extra={"example": EXAMPLE})

    job_id: str
    state: JobState
    measured_at: Time
    created_at: Time
    first_result_at: Time | None
    finished_at: Time | None
    to_first_result_s: float | None
    to_end_s: float | None
    working_s: float | None
    audio_hours_per_hour: float | None
    recordings_per_s: float | None
    stages: dict[Stage, StageMetricsOut]
