"""Logs: one JSON object per line on standard error, with the ids of what is being done.

``bind`` adds ids (job, recording, stage run, attempt) to every line of the current task. Libraries
that log by ``logging``, warnings and exceptions that nobody caught become such lines, too.
``Redactor`` is the last defence against secrets in them; nobody should log any to begin with.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog
from pydantic import SecretStr
from structlog.contextvars import bind_contextvars, bound_contextvars, merge_contextvars
from structlog.stdlib import BoundLogger

from common.settings import Settings

bind = bound_contextvars
bind_on = bind_contextvars  # for the rest of the task, or of the thread

HIDDEN = "[redacted]"
SHORTEST_SECRET = 8  # characters; shorter ones are words, too
NO_SECRETS = {"s3_access_key"}  # a user's name, often a plain word
URL_PASSWORD = re.compile(r"://[^\s:@/]*:(.+)@")
NAMES = (
    r"(?:authorization|x-api-key|cookie|set-cookie|password|passwd|secret|secret[-_]?key"
    r"|access[-_]?key|api[-_]?key|(?:(?:access|auth|id|refresh|sas)[-_])?token)"
)


@dataclass(frozen=True)
class Shape:
    """What a secret looks like: a pattern, and words of which its line holds at least one."""

    words: tuple[str, ...]
    pattern: re.Pattern[str]


def _shape(words: str, pattern: str) -> Shape:
    return Shape(tuple(words.split()), re.compile(pattern, re.IGNORECASE))


SHAPES = (
    _shape("sm_", r"\b(?P<kept>sm_)[\w-]{20,}"),  # API keys
    _shape("whsec_", r"\b(?P<kept>whsec_)[\w+/=-]{8,}"),  # secrets of webhooks
    _shape(  # presigned URLs, signed requests
        "signature credential security-token sig",
        r"(?P<kept>(?:signature|credential|security-token|\bsig)(?:=|%3D))[^\s&\"'\\,<>]+",
    ),
    _shape(  # passwords in URLs
        "://", r"(?P<kept>://[^\s/:@\"\\]*:)(?:\\[^nrt]|[^\s/\"\\])+(?=@)"
    ),
    _shape("bearer basic", r"(?P<kept>\b(?:bearer|basic) )[\w.~+/=-]{8,}"),
    *(  # objects: as JSON, as JSON in a text, as Python shows them
        _shape("auth key cookie pass secret token", pattern)
        for pattern in (
            rf'(?P<kept>"{NAMES}": ?")(?:\\.|[^"\\])+',
            rf'(?P<kept>\\"{NAMES}\\": ?\\")[^"\\]+',
            rf"(?P<kept>'{NAMES}': ?b?')(?:\\.|[^'\"\\])+",
            rf"(?P<kept>\b{NAMES}=)[^\s&\"'\\,]+",
        )
    ),
)


class Redactor:
    """A processor for rendered lines: hides what looks like a secret, and this process's own."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        written = {
            form
            for secret in secrets
            if len(secret) >= SHORTEST_SECRET
            for form in (secret, json.dumps(secret)[1:-1])
        }
        longest_first = sorted(written, key=lambda form: (-len(form), form))
        self._own = re.compile("|".join(map(re.escape, longest_first))) if written else None

    def __call__(self, _logger: Any, _method: str, rendered: Any) -> str:
        """Return the line without secrets. Quotes and braces stay, so JSON stays JSON."""
        line: str = rendered
        if self._own is not None:
            line = self._own.sub(HIDDEN, line)
        lowered = line.lower()
        for shape in SHAPES:
            if any(word in lowered for word in shape.words):
                line = shape.pattern.sub(rf"\g<kept>{HIDDEN}", line)
        return line


def own_secrets(settings: Settings) -> set[str]:
    """Return the secrets in a process's settings, the passwords of its URLs among them."""
    found = set()
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if not isinstance(value, SecretStr) or name in NO_SECRETS:
            continue
        text = value.get_secret_value()
        try:
            password = urlsplit(text).password if "://" in text else text
        except ValueError:  # no URL after all: whoever needs it will say so
            password = text
        if password is None and (match := URL_PASSWORD.search(text)) is not None:
            password = match[1]  # with characters that should have been escaped
        found |= {password or "", unquote(password or "")}
    return found - {""}


def configure(settings: Settings, service: str) -> None:
    """Set up logging for this process; also catches what libraries log by ``logging``."""

    def add_service(_logger: Any, _method: str, line: structlog.types.EventDict) -> Any:
        line.setdefault("service", service)
        return line

    shared: list[structlog.typing.Processor] = [
        merge_contextvars,
        add_service,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
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
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
                Redactor(own_secrets(settings)),
            ],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def get_logger(name: str) -> BoundLogger:
    """Return a logger: ``log.info("what happened", key=value)``."""
    logger: BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    get_logger(__name__).critical("uncaught", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        thread = args.thread.name if args.thread is not None else None
        get_logger(__name__).critical("uncaught", thread=thread, exc_info=args.exc_value)
