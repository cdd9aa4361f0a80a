"""The OpenAPI document: what FastAPI finds in the routes, with problems, examples and words added.

Every operation lists the problems it may answer with, by status, each with its code and an
example; ``services.gateway.problem_codes`` says which.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from services.gateway import api_examples
from services.gateway.problem_codes import CODES, codes_of
from services.gateway.problems import MEDIA_TYPE

METHODS = ("get", "put", "post", "delete", "patch")
DESCRIPTION = """\
Takes an archive of recordings and returns, for each one, what sounds in it and when, a mask of
foreground and background, a cleaned version, and one from which unwanted sounds were removed.

A *job* holds *recordings*; each goes through *stages*. Recordings come one by one, as an archive,
a manifest, a bucket prefix or a list of addresses (*sources*). Every error is a problem document
(RFC 9457) with a stable `code`. A request with an `Idempotency-Key` may be sent again safely.
"""
TAGS = {
    "jobs": "Make, change, follow and end jobs.",
    "recordings": "Add recordings, list and look at them.",
    "uploads": "Large files in parts, resumable.",
    "sources": "Archives, manifests, prefixes and lists of addresses.",
    "results": "Results of one recording.",
    "exports": "Results of a whole job, streamed.",
    "measurements": "What the work of a job took.",
    "search": "Sounds found by words.",
    "similar": "Sounds found by an example.",
    "follow": "Server-sent events of a job.",
    "webhooks": "Who is told what happens to jobs.",
    "operations": "Health, readiness and metrics of the process.",
}
Document = dict[str, Any]


def install(app: FastAPI) -> None:
    """Have ``app`` describe itself by ``build``, once."""

    def openapi() -> Document:
        if app.openapi_schema is None:
            app.openapi_schema = build(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way


def build(app: FastAPI) -> Document:
    """Return the OpenAPI document of ``app``."""
    document = get_openapi(
        title=app.title,
        version="1",
        summary="Processes archives of recordings.",
        description=DESCRIPTION,
        routes=app.routes,
        servers=[{"url": "/", "description": "This gateway."}],
        tags=[{"name": name, "description": words} for name, words in TAGS.items()],
    )
    schemas = document["components"]["schemas"]
    for path, operation in operations(document):
        name = operation["operationId"]
        _hoist_definitions(operation, schemas)
        _describe_problems(name, path, operation)
        api_examples.add(name, operation)
    return document


def operations(document: Document) -> Iterator[tuple[str, Document]]:
    """Yield every operation of a document with its path."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, item[method]


def _describe_problems(name: str, path: str, operation: Document) -> None:
    """Say which problems an operation may answer with, instead of "some problem"."""
    responses = operation["responses"]
    responses.pop("default", None)
    codes = codes_of(name, caller="security" in operation, path="{" in path)
    for status, same in groupby(codes, key=lambda code: CODES[code].status):
        found = list(same)
        responses[str(status.value)] = {
            "description": " ".join(f"`{code}`: {CODES[code].meaning}" for code in found),
            "content": {
                MEDIA_TYPE: {
                    "schema": {
                        "allOf": [{"$ref": "#/components/schemas/ProblemOut"}],
                        "properties": {"code": {"enum": found}},
                    },
                    "examples": {code: {"value": _problem(code, path)} for code in found},
                }
            },
        }


def _problem(code: str, path: str) -> Document:
    status = CODES[code].status
    return {
        "type": f"urn:soundmill:problem:{code}",
        "title": status.phrase,
        "status": status.value,
        "detail": CODES[code].meaning,
        "instance": path,
        "code": code,
        "request_id": api_examples.REQUEST_ID,
    }


def _hoist_definitions(node: Any, schemas: Document) -> None:
    """Move the definitions that pydantic wrote inside a schema to where all others are."""
    if isinstance(node, list):
        for item in node:
            _hoist_definitions(item, schemas)
    elif isinstance(node, dict):
        for name, schema in node.pop("$defs", {}).items():
            _hoist_definitions(schema, schemas)
            schemas.setdefault(name, schema)
        reference = node.get("$ref")
        if isinstance(reference, str):
            node["$ref"] = reference.replace("#/$defs/", "#/components/schemas/")
        for key, value in node.items():
            if key == "mapping":  # of a discriminator
                node[key] = {
                    kind: target.replace("#/$defs/", "#/components/schemas/")
                    for kind, target in value.items()
                }
            else:
                _hoist_definitions(value, schemas)
