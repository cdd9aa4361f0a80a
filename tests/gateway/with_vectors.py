"""Jobs whose recordings have vectors that are known by their making."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.vectors import VectorWriter
from tests.gateway.conftest import Gateway
from tests.gateway.filled import fill, give_vectors, heard

DIGEST = "a" * 64
SEGMENT_S = 0.08
VECTOR_S = 0.4
A, B, C = np.eye(3)


def write(path: Path, vectors: Sequence[Any], digest: str = DIGEST) -> Path:
    """Write vectors, (D,) each, as the classifier would: five segments to a vector."""
    segments = np.repeat(np.stack(vectors, axis=1), 5, axis=1).astype(np.float32)
    with VectorWriter(path, digest, len(segments), SEGMENT_S) as writer:
        writer.append(segments)
    return path


def give(gateway: Gateway, path: Path, recording_id: str) -> str:
    """Store a file as the vectors of a recording; return its object key."""
    return give_vectors(gateway.sessions, gateway.store, recording_id, path)


def filled(gateway: Gateway, tmp_path: Path, *contents: Sequence[Any] | None) -> list[str]:
    """Make a job of recordings with these vectors, None: without; return the recordings' ids."""
    made = fill(gateway.sessions, [heard("dog", "rain") for _ in contents])
    for recording_id, vectors in zip(made.recording_ids, contents, strict=True):
        if vectors is not None:
            give(gateway, write(tmp_path / f"{recording_id}.npz", vectors), recording_id)
    return made.recording_ids
