"""What Schemathesis must be told to test this API: how to send bodies that are bytes."""

import schemathesis

schemathesis.serializer.alias(
    [
        "application/zip",
        "application/x-zip-compressed",
        "application/x-tar",
        "application/gzip",
        "application/x-gzip",
        "application/zstd",
        "application/x-ndjson",
        "application/jsonl",
    ],
    "application/octet-stream",
)
