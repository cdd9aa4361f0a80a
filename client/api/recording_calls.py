"""Calls that add recordings and look at them."""

from __future__ import annotations

import json
from typing import Any

from client.api.call import IDEMPOTENCY_KEY, Blocks, Call, Pages, given
from client.api.records import Recording, Rejection
from common.domain import RunState, Stage


def upload(
    job_id: str,
    name: str,
    blocks: Blocks,
    *,
    custom_id: str | None = None,
    labels: dict[str, str] | None = None,
    params: dict[str, Any] | None = None,
    sha256: str | None = None,
    idempotency_key: str | None = None,
) -> Call[Recording]:
    """Send one recording.

    Args:
        job_id: An open job.
        name: For people; may hold slashes.
        blocks: Called once per try, yields the file's bytes. The gateway keeps nothing of a
            recording for which it raises.
        custom_id: What the owner calls it, unique in its job.
        labels: What the owner notes on it.
        params: Changes to the job's parameters for this recording.
        sha256: What the bytes must hash to.
        idempotency_key: The same text for the same recording: then it is sent again when the
            connection breaks, and added once.
    """
    texts = {key: json.dumps(value) for key, value in given(labels=labels, params=params).items()}
    headers = {
        **({IDEMPOTENCY_KEY: idempotency_key} if idempotency_key else {}),
        **({"X-Content-SHA256": sha256} if sha256 else {}),
    }
    return Call(
        "POST",
        f"/v1/jobs/{job_id}/recordings",
        Recording.model_validate,
        {"name": name, **given(custom_id=custom_id), **texts},
        content=blocks,
        headers=headers,
        repeatable=idempotency_key is not None,
    )


def recording(recording_id: str) -> Call[Recording]:
    """Return a recording, its stages and outputs."""
    return Call("GET", f"/v1/recordings/{recording_id}", Recording.model_validate)


def recordings(
    job_id: str,
    *,
    state: RunState | None = None,
    stage: Stage | None = None,
    custom_id: str | None = None,
    error_code: str | None = None,
    name: str | None = None,
) -> Pages[Recording]:
    """Yield the recordings of a job in its order: all, or those that fit.

    ``state`` and ``error_code`` are those of any stage, or of ``stage``; ``name`` is how the name
    begins.
    """
    filters = given(state=state, stage=stage, custom_id=custom_id, error_code=error_code, name=name)
    return Pages(f"/v1/jobs/{job_id}/recordings", "recordings", Recording, filters)


def rejections(job_id: str, *, error_code: str | None = None) -> Pages[Rejection]:
    """Yield the entries of a job's sources that did not become recordings."""
    filters = given(error_code=error_code)
    return Pages(f"/v1/jobs/{job_id}/rejections", "rejections", Rejection, filters)
