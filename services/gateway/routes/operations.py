"""Health, readiness and metrics of the process."""

from __future__ import annotations

from concurrent.futures import TimeoutError as CheckTimeout
from http import HTTPStatus

from fastapi import APIRouter, Response
from sqlalchemy import select

from common.db import Job
from common.errors import SoundmillError
from common.metrics import expose
from services.gateway.context import Around, Surroundings, problem
from services.gateway.problems import Problem
from services.gateway.schemas import Health, Ready

CHECK_TIMEOUT_S = 3.0

router = APIRouter()


@router.get("/health")
def health() -> Health:
    """Tell that the process answers."""
    return Health()


@router.get("/ready", responses={503: problem})
def ready(around: Around) -> Ready:
    """Tell whether database, Redis and object store answer; 503 says which does not."""
    checks = {"database": _check_database, "redis": _check_redis, "store": _check_store}
    waiting = {name: around.checks.submit(check, around) for name, check in checks.items()}
    found = {}
    for name, check in waiting.items():
        try:
            found[name] = check.result(CHECK_TIMEOUT_S)
        except CheckTimeout:
            check.cancel()
            found[name] = f"no answer within {CHECK_TIMEOUT_S:.0f} s"
        except SoundmillError as error:
            found[name] = str(error)
        except Exception as error:  # whatever a driver raises: its kind says enough
            found[name] = type(error).__name__
    failed = [name for name, outcome in found.items() if outcome != "ok"]
    if failed:
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "not_ready",
            f"Not usable: {', '.join(failed)}.",
            checks=found,
        )
    return Ready(status="ready", checks=found)


@router.get("/metrics", response_class=Response)
def metrics(around: Around) -> Response:
    """Return the metrics as Prometheus reads them."""
    page = expose(around.registry)
    return Response(page.body, media_type=page.media_type)


def _check_database(around: Surroundings) -> str:
    with around.readers() as session:
        session.scalar(select(Job.id).limit(1))
    return "ok"


def _check_redis(around: Surroundings) -> str:
    around.redis.ping()
    return "ok"


def _check_store(around: Surroundings) -> str:
    around.store.check()
    return "ok"
