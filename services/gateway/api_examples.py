"""Examples of requests in the OpenAPI document: one for every way to send something."""

from __future__ import annotations

from typing import Any

JOB_ID = "0199f3a6c2d47a1be84f0c5d9273aa10"
RECORDING_ID = "0199f3a6c5514bd2970de1c83f64b721"
REQUEST_ID = "0199f3a6c8e03f5d6a7b8c9d0e1f2a3b"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
LINE = {
    "url": "https://archive.example.org/harbour/0001.flac",
    "custom_id": "harbour-0001",
    "labels": {"site": "pier 4"},
    "params": {"classify": {"threshold": 0.4}},
}

PARAMETERS: dict[str, Any] = {
    "job_id": JOB_ID,
    "recording_id": RECORDING_ID,
    "name": "harbour/0001.flac",
    "x-content-sha256": SHA256,
}

BODIES: dict[str, dict[str, dict[str, Any]]] = {  # operation, media type, example
    "post_webhook": {
        "application/json": {
            "ends": {
                "summary": "Tell me when a job has ended",
                "value": {
                    "url": "https://example.org/hooks/soundmill",
                    "kinds": ["job.completed", "job.cancelled", "job.expired"],
                },
            },
        },
    },
    "post_job": {
        "application/json": {
            "all": {
                "summary": "An open job with all stages",
                "value": {"name": "harbour 2026", "priority": "bulk"},
            },
            "labels": {
                "summary": "Only what sounds when",
                "value": {
                    "name": "harbour labels",
                    "stages": ["classify"],
                    "params": {"classify": {"threshold": 0.4, "top_k": 3}},
                },
            },
        },
    },
}


def add(name: str, operation: dict[str, Any]) -> None:
    """Add the examples of an operation."""
    for parameter in operation.get("parameters", []):
        known = PARAMETERS.get(parameter["name"].lower())
        if known is not None:
            parameter.setdefault("example", known)
    content = operation.get("requestBody", {}).get("content", {})
    for media_type, examples in BODIES.get(name, {}).items():
        if media_type in content:
            content[media_type]["examples"] = examples
