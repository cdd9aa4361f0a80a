"""Calls that make, change and look at jobs."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from client.api.call import IDEMPOTENCY_KEY, Call, Pages, given, nothing
from client.api.metrics import JobMetrics
from client.api.records import Job, Retried
from common.domain import JobState, Priority, Stage


def create_job(
    name: str,
    *,
    priority: Priority = Priority.BULK,
    stages: Iterable[Stage] = tuple(Stage),
    params: dict[str, Any] | None = None,
    deadline_at: datetime | None = None,
    retention_s: float | None = None,
    dry_run: bool = False,
    idempotency_key: str | None = None,
) -> Call[Job]:
    """Open a job that takes recordings and sources.

    Args:
        name: For people.
        priority: ``interactive`` work goes before ``bulk``.
        stages: What to do; stages that these need come along.
        params: Parameters by stage, defaults where nothing is said.
        deadline_at: When to give up what has not been done by then.
        retention_s: How long after its end the job is kept; None: until it is deleted.
        dry_run: Only look at the sources and estimate the work.
        idempotency_key: The same text for the same job; new by default.
    """
    body = {
        "name": name,
        "priority": priority,
        "stages": list(stages),
        "params": params or {},
        **given(
            deadline_at=None if deadline_at is None else deadline_at.isoformat(),
            retention_s=retention_s,
            dry_run=dry_run or None,
        ),
    }
    headers = {IDEMPOTENCY_KEY: idempotency_key or uuid.uuid4().hex}
    return Call("POST", "/v1/jobs", Job.model_validate, json=body, headers=headers)


def job(job_id: str) -> Call[Job]:
    """Return a job and how far it is."""
    return Call("GET", f"/v1/jobs/{job_id}", Job.model_validate)


def job_metrics(job_id: str) -> Call[JobMetrics]:
    """Return what the work of a job took so far: attempts, waits, speeds, phases, memory."""
    return Call("GET", f"/v1/jobs/{job_id}/metrics", JobMetrics.model_validate)


def jobs(
    *,
    state: JobState | None = None,
    name: str | None = None,
    priority: Priority | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> Pages[Job]:
    """Yield jobs, newest first: all, or those that fit. ``name`` is a part of the name."""
    filters = given(
        state=state,
        name=name,
        priority=priority,
        created_after=None if created_after is None else created_after.isoformat(),
        created_before=None if created_before is None else created_before.isoformat(),
    )
    return Pages("/v1/jobs", "jobs", Job, filters)


def change_job(job_id: str, **changes: Any) -> Call[Job]:
    """Change a job's ``name``, ``priority``, ``deadline_at`` (ISO text) or ``retention_s``."""
    return Call("PATCH", f"/v1/jobs/{job_id}", Job.model_validate, json=changes)


def close_job(job_id: str) -> Call[Job]:
    """Say that no more recordings and sources will come."""
    return _change(job_id, "close")


def cancel_job(job_id: str) -> Call[Job]:
    """Give up what has not been done yet, running work included."""
    return _change(job_id, "cancel")


def pause_job(job_id: str) -> Call[Job]:
    """Begin nothing new of a job; what runs is finished."""
    return _change(job_id, "pause")


def resume_job(job_id: str) -> Call[Job]:
    """Go on with a paused job."""
    return _change(job_id, "resume")


def retry_job(job_id: str) -> Call[Retried]:
    """Put what failed back to work, and read again what could not be fetched."""
    return Call("POST", f"/v1/jobs/{job_id}/retry", Retried.model_validate)


def delete_job(job_id: str) -> Call[None]:
    """Delete a job with its recordings and results; what runs is cancelled."""
    return Call("DELETE", f"/v1/jobs/{job_id}", nothing)


def _change(job_id: str, what: str) -> Call[Job]:
    return Call("POST", f"/v1/jobs/{job_id}/{what}", Job.model_validate)
