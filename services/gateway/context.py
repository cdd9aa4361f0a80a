"""What every route may use: the outside world of the gateway, and shared types of parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated

from anyio import CapacityLimiter
from fastapi import APIRouter, Depends, Query, Request
from prometheus_client import CollectorRegistry
from pydantic import AfterValidator
from sqlalchemy.orm import Session, sessionmaker

from common.checks import Checker
from common.names import plain_text
from common.settings import Settings
from common.storage import ObjectStore
from common.wording import Wording
from services.gateway.bodies import Receiver
from services.gateway.downloads import Room
from services.gateway.keyring import Keyring
from services.gateway.limits import RateLimiter
from services.gateway.measured import Measured
from services.gateway.observe import HttpMetrics, bind_ids
from services.gateway.problems import MEDIA_TYPE as PROBLEM_TYPE
from services.gateway.schemas import ProblemOut
from services.gateway.searches import Searches

if TYPE_CHECKING:
    from services.gateway.follow import Streams

PRESIGNED_FOR_S = 900
CALL_THREADS = 4  # that wait for somebody else's server


@dataclass(frozen=True)
class Surroundings:
    """The outside world of the gateway."""

    settings: Settings
    sessions: sessionmaker[Session]
    readers: sessionmaker[Session]
    store: ObjectStore
    keyring: Keyring
    limiter: RateLimiter
    streams: Streams
    keyless: bool  # the one user of this machine needs no key
    registry: CollectorRegistry
    metrics: HttpMetrics
    checker: Checker
    wording: Wording
    receiver: Receiver = field(default_factory=Receiver)
    calls: CapacityLimiter = field(default_factory=partial(CapacityLimiter, CALL_THREADS))
    searches: Searches = field(default_factory=Searches)
    exports: Room = field(default_factory=Room)
    measured: Measured = field(default_factory=Measured)


async def surroundings(request: Request) -> Surroundings:
    """Return what ``create_app`` put into the application."""
    around: Surroundings = request.app.state.surroundings
    return around


Around = Annotated[Surroundings, Depends(surroundings)]
Limit = Annotated[int, Query(ge=1, le=500)]
FilterText = Annotated[
    Annotated[str, AfterValidator(plain_text)] | None, Query(min_length=1, max_length=500)
]
Cursor = Annotated[str | None, Query(max_length=200)]

problem = {"model": ProblemOut, "content": {PROBLEM_TYPE: {}}, "description": "A problem."}


def new_router() -> APIRouter:
    """Return a router of version 1 of the API."""
    return APIRouter(prefix="/v1", responses={"default": problem}, dependencies=[Depends(bind_ids)])
