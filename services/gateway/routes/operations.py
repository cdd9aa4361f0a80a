"""Health, readiness and metrics of the process."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Response

from common.checks.start import readiness
from common.metrics import REGISTRY, expose
from common.monitor import is_well
from services.gateway.context import Around, problem
from services.gateway.problems import Problem
from services.gateway.schemas import Health, Ready

router = APIRouter()


@router.get("/health")
def health() -> Health:
    """Tell that the process answers."""
    return Health()


@router.get("/ready", responses={503: problem})
def ready(around: Around) -> Ready:
    """Tell whether all that the gateway leans on is well; 503 says what is not.

    Each check is `ok`, `ok, but ...` with what somebody should know, or what is wrong. Answers are
    a few seconds old at most.
    """
    found = readiness(around.checker.report(), "gateway")
    wrong = [name for name, text in found.items() if not is_well(text)]
    if wrong:
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "not_ready",
            f"Not usable: {', '.join(wrong)}.",
            checks=found,
        )
    return Ready(status="ready", checks=found)


@router.get("/metrics", response_class=Response)
def metrics(around: Around) -> Response:
    """Return the metrics as Prometheus reads them."""
    page = expose(around.registry, REGISTRY)
    return Response(page.body, media_type=page.media_type)
