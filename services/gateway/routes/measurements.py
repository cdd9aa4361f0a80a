"""What the work of a job took."""

from __future__ import annotations

from anyio import to_thread

from services.gateway import job_metrics
from services.gateway.access import Caller, Reader
from services.gateway.context import Around, Surroundings, new_router
from services.gateway.exports import check_there
from services.gateway.metric_schemas import JobMetricsOut

router = new_router()


@router.get("/jobs/{job_id}/metrics")
async def get_job_metrics(around: Around, caller: Reader, job_id: str) -> JobMetricsOut:
    """Sum up what the attempts of a job measured: counts, waits, speeds, phases, memory.

    An answer is kept for ten times as long as it took to find: see ``measured_at``.
    """
    known = await to_thread.run_sync(_known, around, caller, job_id)
    if known is not None:
        return known
    measured = around.measured

    def find() -> JobMetricsOut:
        return measured.find(job_id, lambda: _look(around, caller, job_id))

    return await to_thread.run_sync(find, limiter=measured.limiter)


def _known(around: Surroundings, caller: Caller, job_id: str) -> JobMetricsOut | None:
    with around.readers() as session:
        caller.job(session, job_id)
    return around.measured.known(job_id)


def _look(around: Surroundings, caller: Caller, job_id: str) -> JobMetricsOut:
    with around.readers() as session:
        found = job_metrics.job_metrics(session, caller.job(session, job_id))
    with around.readers() as session:
        check_there(session, job_id)
    return found
