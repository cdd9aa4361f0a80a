"""Uploads in parts and sources, as they go over the wire."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from common.domain import SourceKind, SourceState, UploadState
from common.names import CleanName, CustomId, Labels
from common.sources import (
    MAX_URL_ITEMS,
    ArchiveFormat,
    Changes,
    ManifestFormat,
    ManifestLine,
    Sha256,
    Url,
)
from services.gateway.schemas import Out, Time


class In(BaseModel):
    """Base of what is taken in: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid")


class UploadRequest(In):
    """A file that is about to come in parts.

    ``sha256`` of the whole is checked when the file is read as a recording.
    """

    name: CleanName
    size_bytes: Annotated[int, Field(ge=1, le=1 << 60)]
    sha256: Sha256 | None = None


class PartOut(Out):
    """A part that has arrived whole. ``number`` counts from 1."""

    number: int
    size_bytes: int
    etag: str


class UploadOut(Out):
    """An upload. It has ``parts`` parts of ``part_bytes`` each, but for the last.

    ``received`` are the parts that have arrived while it is open. What is not used by
    ``expires_at`` is removed.
    """

    id: str
    name: str
    state: UploadState
    size_bytes: int
    sha256: str | None
    part_bytes: int
    parts: int
    created_at: Time
    expires_at: Time
    received: list[PartOut]


class PartLink(BaseModel):
    """Where a part is to be PUT, with exactly ``size_bytes``: an address of the object store that
    expires, or one of this gateway.
    """

    number: int
    size_bytes: int
    url: str
    expires_at: Time | None


class PartLinks(BaseModel):
    """Where to send a stretch of the parts of an upload."""

    parts: list[PartLink]


class SentPart(In):
    """A part as its sender knows it: the entity tag that the PUT was answered with."""

    number: Annotated[int, Field(ge=1, le=1 << 30)]
    etag: Annotated[str, Field(max_length=200)]


class CompleteRequest(In):
    """All parts in order, so that they can be compared with what has arrived; or nothing."""

    parts: Annotated[list[SentPart], Field(max_length=10_000)] | None = None


class UploadUse(StrEnum):
    """What a finished upload is."""

    RECORDING = "recording"
    ARCHIVE = "archive"
    MANIFEST = "manifest"


class UrlsRequest(In):
    """Recordings by their addresses. What cannot be fetched becomes a rejection."""

    kind: Literal[SourceKind.URLS]
    name: CleanName = "addresses"
    items: Annotated[list[ManifestLine], Field(min_length=1, max_length=MAX_URL_ITEMS)]


class PrefixRequest(In):
    """Everything below s3://bucket/prefix or file:///folder, where the settings allow it."""

    kind: Literal[SourceKind.PREFIX]
    name: CleanName | None = None
    url: Annotated[Url, Field(pattern=r"^(s3|file)://")]


class UploadSourceRequest(In):
    """A finished upload: a recording (with what is said about it), an archive or a manifest.

    ``format`` is found out from the content; if it is given, it must agree.
    """

    kind: Literal[SourceKind.UPLOAD]
    upload_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    use: Annotated[UploadUse, Field(alias="as")] = UploadUse.RECORDING
    format: ArchiveFormat | ManifestFormat | None = None
    all_files: bool = False
    custom_id: CustomId | None = None
    labels: Labels = {}
    params: Changes | None = None


class SourceRequest(
    RootModel[
        Annotated[UrlsRequest | PrefixRequest | UploadSourceRequest, Field(discriminator="kind")]
    ]
):
    """Something that holds recordings of the job."""


class SourceOut(Out):
    """A source and how far it is read. ``total`` is known of some kinds, others once they are read.

    Each of its ``entries`` so far is one of ``recordings``, one of ``rejected`` or no audio at all.
    """

    id: str
    job_id: str
    kind: SourceKind
    name: str
    state: SourceState
    created_at: Time
    finished_at: Time | None
    entries: int
    total: int | None
    recordings: int
    rejected: int
    error_code: str | None
    error_detail: str | None


class SourcePage(BaseModel):
    """Sources of a job, oldest first. ``next_cursor`` asks for the page after this one."""

    sources: list[SourceOut]
    next_cursor: str | None
