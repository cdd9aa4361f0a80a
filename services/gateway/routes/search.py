"""Search by words in the results of a job, and how words are understood."""

from __future__ import annotations

from typing import Annotated

from anyio import from_thread
from fastapi import Query, Request

from services.gateway.access import Reader
from services.gateway.context import Around, Cursor, Limit, new_router
from services.gateway.exports import Export
from services.gateway.search import SearchPage, search
from services.gateway.texts import TextOut, explain

MAX_TEXT_LENGTH = 500

router = new_router()

Text = Annotated[str, Query(max_length=MAX_TEXT_LENGTH, examples=["dogs barking"])]


@router.get("/text")
def get_text(around: Around, caller: Reader, text: Text) -> TextOut:
    """Tell how a text is understood: "remove the barking dog" names `dog`, for sure."""
    return explain(around.wording, text)


@router.get("/jobs/{job_id}/search")
async def search_job(
    request: Request,
    around: Around,
    caller: Reader,
    job_id: str,
    text: Text,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> SearchPage:
    """Find the recordings in which something is heard, in plain words: "dogs barking"."""

    def find() -> SearchPage:
        with around.readers() as session:
            caller.job(session, job_id)
        export = Export(around.readers, around.store, job_id)
        damage, check = around.searches.damage, from_thread.check_cancelled
        return search(export, around.wording, text, cursor, limit, damage, check)

    return await around.searches.by_words.run(request, caller.owner, find)
