"""Sounds like an example, as they go over the wire."""

from __future__ import annotations

from pydantic import BaseModel


class Alike(BaseModel):
    """A stretch of a recording that sounds like the example. Times in seconds from its start.

    ``similarity`` is the cosine of what the classifier hears there and in the example, from -1 to
    1. ``label`` is the event with which it overlaps most, if it overlaps with one.
    """

    job_id: str
    recording_id: str
    position: int
    custom_id: str | None
    name: str
    onset_s: float
    offset_s: float
    similarity: float
    label: str | None


class SimilarPage(BaseModel):
    """The stretches most alike among the recordings that this request looked at, best first.

    A request looks at so many recordings and no more: ``next_cursor`` asks for the best of those
    that follow, which may be better or worse. ``looked_at`` counts recordings whose vectors were
    compared, ``without_vectors`` those that have none (their job did not ask for them, or they are
    not classified yet), ``other_weights`` those with vectors of other weights, which do not
    compare, ``unreadable`` those whose vectors are damaged or gone: they are left out.
    """

    hits: list[Alike]
    looked_at: int
    without_vectors: int
    other_weights: int
    unreadable: int
    next_cursor: str | None
