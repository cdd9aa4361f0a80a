"""Search by example: sounds like a stretch of a recording."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from anyio import from_thread
from fastapi import Query, Request

from services.gateway.access import Reader
from services.gateway.context import Around, Cursor, new_router
from services.gateway.similar_schemas import SimilarPage

router = new_router()

Seconds = Annotated[float, Query(ge=0.0, allow_inf_nan=False)]


class Within(StrEnum):
    """Where to search."""

    JOB = "job"  # in the recording's own job, or the one that ``job_id`` names
    ARCHIVE = "archive"  # in every job of the key


@router.get("/recordings/{recording_id}/similar")
async def find_similar(
    request: Request,
    around: Around,
    caller: Reader,
    recording_id: str,
    onset_s: Seconds,
    offset_s: Seconds,
    within: Within = Within.JOB,
    job_id: Annotated[str | None, Query(max_length=100)] = None,
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> SimilarPage:
    """Find what sounds like a stretch of this recording, in a job or in all that the key holds.

    Needs vectors: `classify.embeddings` in the parameters of the jobs. Each page is the best of
    the recordings that its request looked at.
    """

    def find() -> SimilarPage:
        from services.gateway import similar  # NumPy comes with it

        with around.readers() as session:
            recording = caller.recording(session, recording_id)
        own = job_id or recording.job_id
        archive = similar.Archive(
            caller,
            around.readers,
            around.store,
            around.settings.scratch_dir,
            own if within is Within.JOB else None,
            around.searches.damage,
        )
        example = similar.Example(recording_id, onset_s, offset_s)
        return similar.find_similar(archive, example, cursor, limit, from_thread.check_cancelled)

    return await around.searches.by_example.run(request, caller.owner, find)
