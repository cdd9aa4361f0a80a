"""Logs: one JSON object per line on standard error, with the ids of what is being done.

``bind`` adds ids (job, recording, stage run, attempt) to every line of the current task.
"""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.stdlib import BoundLogger

from common.settings import Settings

bind = bound_contextvars


def configure(settings: Settings, service: str) -> None:
    """Set up logging for this process; also catches what libraries log by ``logging``."""
    shared: list[structlog.typing.Processor] = [
        merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_json
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    structlog.contextvars.bind_contextvars(service=service)


def get_logger(name: str) -> BoundLogger:
    """Return a logger: ``log.info("what happened", key=value)``."""
    logger: BoundLogger = structlog.stdlib.get_logger(name)
    return logger
