"""Puts the gateway together: ``create_app`` returns the ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI

from common import logs
from common.checks.observe import CheckMetrics
from common.checks.start import checker_of
from common.db import make_engine, make_readers, make_sessions
from common.errors import SoundmillError
from common.metrics import new_registry, start_counting
from common.settings import Settings
from common.storage import open_store
from common.wording import wording_of
from services.gateway import api_document, problems
from services.gateway.context import Surroundings
from services.gateway.follow import Streams
from services.gateway.guard import NoNul, is_loopback
from services.gateway.keyring import Keyring
from services.gateway.limits import RateLimiter
from services.gateway.observe import HttpMetrics, Observed
from services.gateway.routes import (
    exports,
    follow,
    jobs,
    measurements,
    operations,
    recordings,
    results,
    search,
    similar,
    sources,
    uploads,
    webhooks,
)

log = logs.get_logger(__name__)

ROUTES = (
    jobs,
    recordings,
    sources,
    uploads,
    results,
    exports,
    measurements,
    search,
    similar,
    follow,
    webhooks,
    operations,
)


def create_app(settings: Settings) -> FastAPI:
    """Return the application. It connects to database, Redis and object store when it is used."""
    start_counting("gateway")
    engine = make_engine(settings)
    readers = make_readers(engine)
    registry = new_registry()
    metrics = HttpMetrics(registry)
    checker = checker_of(settings, "gateway")
    registry.register(CheckMetrics(checker))
    around = Surroundings(
        settings=settings,
        sessions=make_sessions(engine),
        readers=readers,
        store=open_store(settings),
        keyring=Keyring(readers),
        limiter=RateLimiter(settings.redis_url.get_secret_value(), settings.requests_per_minute),
        streams=Streams(readers),
        keyless=settings.embedded and is_loopback(settings.host),
        registry=registry,
        metrics=metrics,
        checker=checker,
        wording=wording_of(settings, lambda why: log.error("texts are read with less", detail=why)),
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        try:
            await to_thread.run_sync(around.store.prepare)
        except SoundmillError as error:  # it may come later: /ready tells
            log.warning("object store not prepared", detail=str(error))
        yield
        await around.limiter.close()
        engine.dispose()

    app = FastAPI(
        title="Soundmill",
        lifespan=lifespan,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,  # a redirect would repeat whatever the Host header says
    )
    app.state.surroundings = around
    for part in ROUTES:
        app.include_router(part.router, tags=[part.__name__.rpartition(".")[2]])
    problems.install(app)
    api_document.install(app)
    app.add_middleware(NoNul)
    app.add_middleware(Observed, metrics=metrics)
    return app
