"""Calls that follow a job and fetch its results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from client.api.call import Call, Download, Export, Stream, given, sendable
from client.api.records import Found, Similar, Understood


def download(recording_id: str, what: str, path: Path) -> Download:
    """Write a result of one recording to ``path``.

    ``what`` is ``artifacts/mask``, ``events.csv``, ``manifest`` and so on.

    Raises:
        OSError: the file cannot be written; what there is of it is for the caller to remove.
    """
    return Download(f"/v1/recordings/{recording_id}/{what}", path)


def export(job_id: str, what: str, **options: Any) -> Export:
    """Yield a result of a whole job as it comes.

    ``what`` is ``events.csv``, ``recordings.parquet``, ``errors.jsonl``, ``attempts.csv``,
    ``manifest.jsonl``, ``labels.zip`` with ``format="raven"``, ``artifacts.zip`` with
    ``kind=["mask"]`` and so on.
    """
    return Export(f"/v1/jobs/{job_id}/{what}", given(**options))


def search(job_id: str, text: str, *, cursor: str | None = None) -> Call[Found]:
    """Return recordings of a job in which something sounds, asked for in words.

    A page may hold few hits, or none, and still have a cursor for what follows.
    """
    params = {"text": sendable(text), **given(cursor=cursor)}
    return Call("GET", f"/v1/jobs/{job_id}/search", Found.model_validate, params)


def text(text: str) -> Call[Understood]:
    """Return how a text is understood: which labels it names, and what it was not taken for."""
    return Call("GET", "/v1/text", Understood.model_validate, {"text": sendable(text)})


def similar(
    recording_id: str,
    onset_s: float,
    offset_s: float,
    *,
    everywhere: bool = False,
    job_id: str | None = None,
    limit: int | None = None,
    cursor: str | None = None,
) -> Call[Similar]:
    """Return what sounds like a stretch of a recording: in its job, in ``job_id``, or everywhere.

    Each page is the best of the recordings that its request looked at: merge pages by similarity.
    """
    params = {
        "onset_s": onset_s,
        "offset_s": offset_s,
        "within": "archive" if everywhere else "job",
        **given(job_id=job_id, limit=limit, cursor=cursor),
    }
    path = f"/v1/recordings/{recording_id}/similar"
    return Call("GET", path, Similar.model_validate, params)


def events(job_id: str, after: int | None = None) -> Stream:
    """Yield what happens to a job, from the event after ``after`` on, as it happens."""
    return Stream(f"/v1/jobs/{job_id}/events", after)
