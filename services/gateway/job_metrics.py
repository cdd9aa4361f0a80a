"""What the attempts of a job measured, summed up by the database in two passes over them.

The first groups by outcome, device and model; the second ranks the attempts of a stage by their
real-time factor and by their wait. Quantiles are exact, by nearest rank: the smallest value that is
not below such a part of the others. The cost grows with the number of attempts, so
``services.gateway.measured`` keeps answers for a while.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, func, select
from sqlalchemy.orm import Session

from common.db import DbNow
from common.domain import Outcome, Stage
from common.tables import Attempt, Job, StageRun
from services.gateway.metric_schemas import (
    AttemptsOut,
    BatchOut,
    DeviceOut,
    JobMetricsOut,
    ModelOut,
    PhaseOut,
    RealTimeFactorOut,
    SpreadOut,
    StageMetricsOut,
)

PHASES = ("download", "decode", "infer", "encode", "upload")
DONE = (Outcome.SUCCEEDED, Outcome.REUSED)
TIMED = (*DONE, Outcome.TRANSIENT, Outcome.PERMANENT)  # of a lost one nobody knows when it ended
MEDIAN, HIGH = 50, 95  # percent
TOOK_S = Attempt.finished_at - Attempt.started_at
COMPUTED = and_(Attempt.outcome == Outcome.SUCCEEDED.value, Attempt.audio_s > 0.0)


def job_metrics(session: Session, job: Job) -> JobMetricsOut:
    """Return what the attempts of a job measured so far."""
    now = session.scalar(select(DbNow())) or 0.0
    groups: dict[str, list[Any]] = defaultdict(list)
    for row in session.execute(_groups(job.id)):
        groups[row.stage].append(row)
    quantiles = {row.stage: row for row in session.execute(_quantiles(job.id))}
    stages = {Stage(stage): _stage(groups[stage], quantiles.get(stage)) for stage in job.stages}
    rows = [row for found in groups.values() for row in found]
    began_at = _least(row.first_claimed_at for row in rows)
    ended_at = _most(row.last_finished_at for row in rows)
    first_at = _least(row.first_finished_at for row in rows if row.outcome in DONE)
    working_s = None if began_at is None or ended_at is None else max(0.0, ended_at - began_at)

    def rate(done: float) -> float | None:
        return _ratio(done / len(stages), working_s)

    return JobMetricsOut.model_validate(
        {
            "job_id": job.id,
            "state": job.state,
            "measured_at": now,
            "created_at": job.created_at,
            "first_result_at": first_at,
            "finished_at": job.finished_at,
            "to_first_result_s": None if first_at is None else first_at - job.created_at,
            "to_end_s": None if job.finished_at is None else job.finished_at - job.created_at,
            "working_s": working_s,
            "audio_hours_per_hour": rate(sum(stage.audio_done_s for stage in stages.values())),
            "recordings_per_s": rate(sum(stage.recordings_done for stage in stages.values())),
            "stages": stages,
        }
    )


def _groups(job_id: str) -> Select[*tuple[Any, ...]]:
    phases = [getattr(Attempt, f"{name}_s") for name in PHASES]
    return (
        select(
            StageRun.stage,
            Attempt.outcome,
            Attempt.error_code,
            Attempt.device,
            Attempt.model_digest,
            func.count().label("attempts"),
            func.sum(TOOK_S).label("took_s"),
            func.sum(Attempt.audio_s).label("audio_s"),
            func.sum(StageRun.audio_s).label("run_audio_s"),
            func.count(Attempt.queue_wait_s).label("waits"),
            func.sum(Attempt.queue_wait_s).label("waited_s"),
            func.max(Attempt.queue_wait_s).label("longest_wait_s"),
            func.count(Attempt.batch_size).label("batches"),
            func.sum(Attempt.batch_size).label("batch_sum"),
            func.max(Attempt.batch_size).label("batch_max"),
            func.max(Attempt.peak_memory_bytes).label("peak_memory_bytes"),
            func.max(Attempt.device_memory_bytes).label("device_memory_bytes"),
            func.min(Attempt.claimed_at).label("first_claimed_at"),
            func.min(Attempt.finished_at).label("first_finished_at"),
            func.max(Attempt.finished_at).label("last_finished_at"),
            *(func.sum(column).label(column.key) for column in phases),
            *(func.count(column).label(f"{column.key}_of") for column in phases),
        )
        .select_from(Attempt)
        .join(StageRun, StageRun.id == Attempt.stage_run_id)
        .where(StageRun.job_id == job_id)
        .group_by(
            StageRun.stage,
            Attempt.outcome,
            Attempt.error_code,
            Attempt.device,
            Attempt.model_digest,
        )
    )


def _quantiles(job_id: str) -> Select[Any]:
    """Rank the attempts of each stage by two values, and select those at the ranks wanted."""
    factor = case((COMPUTED, TOOK_S / Attempt.audio_s))
    ranked = (
        select(
            StageRun.stage,
            *_ranks("factor", factor),
            *_ranks("wait", Attempt.queue_wait_s),
        )
        .select_from(Attempt)
        .join(StageRun, StageRun.id == Attempt.stage_run_id)
        .where(StageRun.job_id == job_id)
        .subquery()
    )
    of = ranked.c

    def at(name: str, percent: int) -> ColumnElement[Any]:
        rank = (of[f"{name}_of"] * percent + 99) // 100  # rounded up
        return func.max(case((of[f"{name}_rank"] == rank, of[name]))).label(f"{name}_p{percent}")

    wanted = [at(name, percent) for name in ("factor", "wait") for percent in (MEDIAN, HIGH)]
    return select(of.stage, *wanted).group_by(of.stage)


def _ranks(name: str, value: Any) -> list[ColumnElement[Any]]:
    """Select a value, its rank in its stage from 1, and how many there are, nulls left out."""
    known = (StageRun.stage, value.is_(None))
    return [
        value.label(name),
        func.row_number().over(partition_by=known, order_by=value).label(f"{name}_rank"),
        func.count(value).over(partition_by=known).label(f"{name}_of"),
    ]


def _stage(groups: Sequence[Any], quantiles: Any) -> StageMetricsOut:
    done = [row for row in groups if row.outcome in DONE]
    computed = [row for row in groups if row.outcome == Outcome.SUCCEEDED]
    took_s, audio_s = _sum(computed, "took_s"), _sum(computed, "audio_s")
    waited_s, waits = _sum(groups, "waited_s"), _sum(groups, "waits")
    return StageMetricsOut(
        attempts=_attempts(groups),
        recordings_done=round(_sum(done, "attempts")),
        audio_done_s=_sum(done, "run_audio_s"),
        audio_s=audio_s,
        busy_s=_sum([row for row in groups if row.outcome in TIMED], "took_s"),
        real_time_factor=RealTimeFactorOut(
            total=_ratio(took_s, audio_s),
            p50=getattr(quantiles, f"factor_p{MEDIAN}", None),
            p95=getattr(quantiles, f"factor_p{HIGH}", None),
        ),
        queue_wait_s=SpreadOut(
            mean=_ratio(waited_s, waits),
            p50=getattr(quantiles, f"wait_p{MEDIAN}", None),
            p95=getattr(quantiles, f"wait_p{HIGH}", None),
            max=_most(row.longest_wait_s for row in groups),
        ),
        phases=_phases(computed, took_s),
        batch_size=BatchOut(
            mean=_ratio(_sum(computed, "batch_sum"), _sum(computed, "batches")),
            max=_most(row.batch_max for row in computed),
        ),
        peak_memory_bytes=_most(row.peak_memory_bytes for row in groups),
        device_memory_bytes=_most(row.device_memory_bytes for row in groups),
        devices=_devices(computed),
        models=_models(computed),
    )


def _attempts(groups: Sequence[Any]) -> list[AttemptsOut]:
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for row in groups:
        counts[row.outcome, row.error_code or ""] += row.attempts
    return [
        AttemptsOut(outcome=Outcome(outcome), reason=reason or None, count=count)
        for (outcome, reason), count in sorted(counts.items())
    ]


def _phases(computed: Sequence[Any], took_s: float) -> dict[str, PhaseOut]:
    found = {}
    for name in PHASES:
        sum_s, number = _sum(computed, f"{name}_s"), _sum(computed, f"{name}_s_of")
        if number:
            found[name] = PhaseOut(sum_s=sum_s, mean_s=sum_s / number, share=_ratio(sum_s, took_s))
    return found


def _devices(computed: Sequence[Any]) -> list[DeviceOut]:
    found = []
    for device, rows in _by(computed, "device"):
        audio_s, busy_s = _sum(rows, "audio_s"), _sum(rows, "took_s")
        found.append(
            DeviceOut(
                device=device,
                attempts=round(_sum(rows, "attempts")),
                audio_s=audio_s,
                busy_s=busy_s,
                real_time_factor=_ratio(busy_s, audio_s),
            )
        )
    return found


def _models(computed: Sequence[Any]) -> list[ModelOut]:
    return [
        ModelOut(
            digest=digest,
            attempts=round(_sum(rows, "attempts")),
            audio_s=_sum(rows, "audio_s"),
        )
        for digest, rows in _by(computed, "model_digest")
    ]


def _by(groups: Sequence[Any], column: str) -> list[tuple[str, list[Any]]]:
    """Return the groups that have a value in a column, by it, in its order."""
    found: dict[str, list[Any]] = defaultdict(list)
    for row in groups:
        if getattr(row, column) is not None:
            found[getattr(row, column)].append(row)
    return sorted(found.items())


def _sum(groups: Sequence[Any], column: str) -> float:
    return float(sum(getattr(row, column) or 0 for row in groups))


def _most(values: Iterable[Any]) -> Any:
    return max((value for value in values if value is not None), default=None)


def _least(values: Iterable[Any]) -> Any:
    return min((value for value in values if value is not None), default=None)


def _ratio(part: float, whole: float | None) -> float | None:
    return part / whole if whole else None
