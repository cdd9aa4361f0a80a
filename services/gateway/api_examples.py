"""Examples of requests in the OpenAPI document: one for every way to send something."""

from __future__ import annotations

import json
from typing import Any

JOB_ID = "0199f3a6c2d47a1be84f0c5d9273aa10"
UPLOAD_ID = "0199f3a6c4117e0ab3d95c2f81e6a04d"
RECORDING_ID = "0199f3a6c5514bd2970de1c83f64b721"
REQUEST_ID = "0199f3a6c8e03f5d6a7b8c9d0e1f2a3b"
LINE = {
    "url": "https://archive.example.org/harbour/0001.flac",
    "custom_id": "harbour-0001",
    "labels": {"site": "pier 4"},
    "params": {"classify": {"threshold": 0.4}},
}

UPLOAD_ID = "0199f3a6c9a15b7c8d9e0f1a2b3c4d5e"

PARAMETERS: dict[str, Any] = {
    "job_id": JOB_ID,
    "recording_id": RECORDING_ID,
    "upload_id": UPLOAD_ID,
    "name": "harbour/0001.flac",
    "custom_id": "harbour-0001",
    "labels": '{"site": "pier 4"}',
    "params": '{"classify": {"threshold": 0.4}}',
    "text": "dogs barking",
    "onset_s": 1.2,
    "offset_s": 2.4,
    "created_after": "2026-11-01T00:00:00Z",
    "created_before": "2026-12-01T00:00:00Z",
    "idempotency-key": "harbour-2026-11-20-1",
}
ARCHIVES = (
    "application/zip",
    "application/x-zip-compressed",
    "application/x-tar",
    "application/gzip",
    "application/x-gzip",
    "application/zstd",
    "application/octet-stream",
)
BYTES = {"summary": "The bytes of the file as they are", "value": "RIFF..."}

BODIES: dict[str, dict[str, dict[str, Any]]] = {  # operation, media type, name of the example
    "post_job": {
        "application/json": {
            "everything": {
                "summary": "An open job with all stages",
                "value": {"name": "harbour 2026", "priority": "bulk"},
            },
            "labels": {
                "summary": "Only what sounds when, done by Monday and kept for a month",
                "value": {
                    "name": "harbour labels",
                    "stages": ["classify"],
                    "params": {"classify": {"threshold": 0.4, "top_k": 3}},
                    "deadline_at": "2099-11-23T08:00:00Z",
                    "retention_s": 2_592_000,
                },
            },
            "words": {
                "summary": "Take sounds out, in plain words; keep vectors to find alike sounds",
                "value": {
                    "name": "harbour, quiet",
                    "params": {
                        "classify": {"embeddings": True},
                        "restore": {"remove": "the barking dog and any sirens"},
                    },
                },
            },
            "dry run": {
                "summary": "Look at the sources that follow and estimate; process nothing",
                "value": {"name": "what would it take?", "dry_run": True},
            },
        },
        "multipart/form-data": {
            "whole": {
                "summary": "A whole job in one request: it is closed at once",
                "value": {"name": "two dogs", "stages": "classify", "file": ["RIFF..."]},
            },
        },
    },
    "change_job": {
        "application/json": {
            "urgent": {"summary": "Go first", "value": {"priority": "interactive"}},
            "name": {"summary": "Another name", "value": {"name": "harbour 2026, part 1"}},
        },
    },
    "post_recording": {"application/octet-stream": {"bytes": BYTES}},
    "post_source": {
        "application/json": {
            "urls": {
                "summary": "Recordings by their addresses",
                "value": {"kind": "urls", "name": "harbour", "items": [LINE]},
            },
            "prefix": {
                "summary": "Everything below a prefix of a bucket that the settings name",
                "value": {"kind": "prefix", "url": "s3://field-recordings/2026/harbour/"},
            },
            "upload": {
                "summary": "A finished upload in parts that is an archive",
                "value": {"kind": "upload", "upload_id": UPLOAD_ID, "as": "archive"},
            },
        },
        **{kind: {"archive": BYTES} for kind in ARCHIVES},
        **{
            kind: {"lines": {"summary": "A manifest, a line each", "value": json.dumps(LINE)}}
            for kind in ("application/x-ndjson", "application/jsonl")
        },
        "text/csv": {
            "table": {
                "summary": "A manifest as a table",
                "value": "url,custom_id,label.site\n"
                "https://archive.example.org/harbour/0001.flac,harbour-0001,pier 4\n",
            }
        },
    },
    "post_upload": {
        "application/json": {
            "large": {
                "summary": "A file of 40 GB",
                "value": {"name": "december.wav", "size_bytes": 40_000_000_000},
            }
        }
    },
    "put_part": {"application/octet-stream": {"bytes": BYTES}},
    "complete_upload": {
        "application/json": {
            "nothing": {"summary": "Every part that was announced", "value": {}},
            "named": {
                "summary": "With the entity tags that the parts were answered with",
                "value": {"parts": [{"number": 1, "etag": "9b2cf535f27731c974343645a3985328"}]},
            },
        }
    },
    "post_webhook": {
        "application/json": {
            "ends": {
                "summary": "When jobs end",
                "value": {
                    "url": "https://hooks.example.org/soundmill",
                    "kinds": ["job.completed", "job.cancelled", "job.expired"],
                },
            }
        }
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
