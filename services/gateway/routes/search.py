"""Search by words in the results of a job."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from services.gateway.access import Reader
from services.gateway.context import Around, Cursor, Limit, new_router
from services.gateway.exports import Export
from services.gateway.search import SearchPage, search

router = new_router()


@router.get("/jobs/{job_id}/search")
def search_job(
    around: Around,
    caller: Reader,
    job_id: str,
    text: Annotated[str, Query(min_length=1, max_length=500, examples=["dogs barking"])],
    cursor: Cursor = None,
    limit: Limit = 50,
) -> SearchPage:
    """Find the recordings in which something is heard, in plain words: "dogs barking"."""
    with around.readers() as session:
        caller.job(session, job_id)
    return search(Export(around.readers, around.store, job_id), text, cursor, limit)
