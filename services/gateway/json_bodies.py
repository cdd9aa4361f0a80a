"""JSON bodies of bounded size: read in a thread, checked against a model, described in OpenAPI."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from services.gateway.bodies import Body
from services.gateway.problems import too_large

MEDIA_TYPE = "application/json"
READ_BYTES = 1 << 16
MAX_FAULTS = 20  # named in an answer

Model = TypeVar("Model", bound=BaseModel)


def read_model(body: Body, model: type[Model], max_bytes: int) -> Model:
    """Return what a body asks for.

    Raises:
        Problem: more than ``max_bytes``.
        RequestValidationError: not JSON, or not what the model describes.
    """
    parts: list[bytes] = []
    size = 0
    while block := body.read(READ_BYTES):
        parts.append(block)
        size += len(block)
        if size > max_bytes:
            raise too_large(max_bytes)
    try:
        return model.model_validate_json(b"".join(parts))
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(faults[:MAX_FAULTS]) from error


def media_type_of(content_type: str) -> str:
    """Return the plain media type of a Content-Type header."""
    return content_type.partition(";")[0].strip().lower()


def described(model: type[BaseModel], required: bool = True) -> dict[str, Any]:
    """Return what OpenAPI says of a route that reads ``model`` from its body."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": required, "content": {MEDIA_TYPE: {"schema": schema}}}}
