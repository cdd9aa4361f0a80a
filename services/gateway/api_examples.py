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

UPLOAD_ID = "0199f3a6c9a15b7c8d9e0f1a2b3c4d5e"

PARAMETERS: dict[str, Any] = {
    "upload_id": UPLOAD_ID,
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
    "post_upload": {
        "application/json": {
            "night": {
                "summary": "A long recording",
                "value": {"name": "night.wav", "size_bytes": 21474836480, "sha256": SHA256},
            },
        },
    },
    "complete_upload": {
        "application/json": {
            "compared": {
                "summary": "Compare the parts with what has arrived",
                "value": {"parts": [{"number": 1, "etag": "5d41402abc4b2a76b9719d911017c592"}]},
            },
        },
    },
    "post_source": {
        "application/json": {
            "urls": {
                "summary": "Recordings by their addresses",
                "value": {"kind": "urls", "items": [LINE]},
            },
            "prefix": {
                "summary": "Everything below a prefix",
                "value": {"kind": "prefix", "url": "s3://field-recordings/2026/"},
            },
            "recording": {
                "summary": "A finished upload as one recording",
                "value": {"kind": "upload", "upload_id": UPLOAD_ID, "custom_id": "night-1"},
            },
            "archive": {
                "summary": "A finished upload as an archive",
                "value": {"kind": "upload", "upload_id": UPLOAD_ID, "as": "archive"},
            },
        },
        "application/x-ndjson": {
            "lines": {
                "summary": "One recording per line",
                "value": '{"url": "https://archive.example.org/1.flac", "custom_id": "1"}\n',
            },
        },
        "text/csv": {
            "table": {
                "summary": "One recording per row",
                "value": "url,custom_id,label.site\nhttps://archive.example.org/1.flac,1,pier 4\n",
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
