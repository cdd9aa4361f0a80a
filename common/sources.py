"""What a Source is made of: ``source.spec`` per kind, and the lines of a manifest.

The gateway writes specs, the ingester reads them. A spec that names an ``object_key`` owns that
object: it goes when the source has been read, or with its job. A recording of kind ``upload`` keeps
it as its own bytes instead, so that nothing large is copied.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from common.domain import SourceKind
from common.errors import SourceInvalid
from common.names import CleanName, CustomId, Labels, plain_text

MAX_URL_LENGTH = 4_096
MAX_URL_ITEMS = 100_000
SHA256 = r"^[0-9a-fA-F]{64}$"


def storable(value: Any) -> Any:
    """Return JSON as it is. Raises ValueError for what a database keeps not: NUL, NaN, infinity."""
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must not hold NaN or infinity")
    if isinstance(value, dict):
        for key, inner in value.items():
            storable(key)
            storable(inner)
    elif isinstance(value, list):
        for inner in value:
            storable(inner)
    return value


Changes = Annotated[dict[str, Any], AfterValidator(storable)]
"""Changes to a job's parameters, not yet held against any stage."""

MAY_PASS = frozenset(
    {"store_unavailable", "disk_full", "out_of_memory", "internal_error", "source_unavailable"}
)
"""Codes of failed sources that a retry of the job reads on: what they own is kept until then."""

Url = Annotated[str, Field(min_length=1, max_length=MAX_URL_LENGTH), AfterValidator(plain_text)]
Sha256 = Annotated[str, Field(pattern=SHA256), AfterValidator(str.lower)]


class ArchiveFormat(StrEnum):
    """How an archive is packed."""

    ZIP = "zip"
    TAR = "tar"
    TAR_GZ = "tar.gz"
    TAR_ZST = "tar.zst"


class ManifestFormat(StrEnum):
    """How a manifest is written: one JSON object per line, or CSV with a header."""

    JSONL = "jsonl"
    CSV = "csv"


class Spec(BaseModel):
    """Base of the specs."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ManifestLine(Spec):
    """One recording by its address, as its owner describes it.

    ``url`` is http(s)://, or s3://bucket/key or file:///path where the settings allow it.
    ``params`` are changes to the job's parameters. In CSV the columns are url, name, custom_id,
    sha256, params (JSON) and one ``label.NAME`` per label; an empty cell says nothing.
    """

    url: Url
    name: CleanName | None = None
    custom_id: CustomId | None = None
    labels: Labels = {}
    params: Changes | None = None
    sha256: Sha256 | None = None


class ArchiveSpec(Spec):
    """A stored archive. Entries without the name of an audio file are left out by default."""

    object_key: str
    format: ArchiveFormat
    sha256: Sha256 | None = None  # as declared and not checked yet
    all_files: bool = False


class ManifestSpec(Spec):
    """A stored manifest."""

    object_key: str
    format: ManifestFormat
    sha256: Sha256 | None = None  # as declared and not checked yet


class UrlsSpec(Spec):
    """A short manifest, in the database."""

    items: Annotated[list[ManifestLine], Field(min_length=1, max_length=MAX_URL_ITEMS)]


class PrefixSpec(Spec):
    """Everything below s3://bucket/prefix or file:///folder that has the name of an audio file.

    The ingester keeps in ``after`` what it took last: a listing may change while it is read.
    """

    url: Url
    after: str | None = None


class UploadSpec(Spec):
    """A finished multipart upload that is one recording."""

    upload_id: str
    object_key: str
    name: CleanName
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256 | None = None
    custom_id: CustomId | None = None
    labels: Labels = {}
    params: Changes | None = None


AnySpec = ArchiveSpec | ManifestSpec | UrlsSpec | PrefixSpec | UploadSpec
SPECS: dict[SourceKind, type[AnySpec]] = {
    SourceKind.ARCHIVE: ArchiveSpec,
    SourceKind.MANIFEST: ManifestSpec,
    SourceKind.URLS: UrlsSpec,
    SourceKind.PREFIX: PrefixSpec,
    SourceKind.UPLOAD: UploadSpec,
}


def parse_spec(kind: SourceKind, raw: dict[str, Any]) -> AnySpec:
    """Return the spec of a source's row. Raises SourceInvalid when it does not fit its kind."""
    try:
        return SPECS[kind].model_validate(raw)
    except ValidationError as error:
        raise SourceInvalid("spec_invalid", f"not the spec of a source of kind {kind}") from error


def source_key(job_id: str, source_id: str) -> str:
    """Return where a stored archive or manifest lies."""
    return f"sources/{job_id}/{source_id}"


def owned_object(spec: dict[str, Any]) -> str | None:
    """Return the key of the object that belongs to a source, if it has one."""
    key = spec.get("object_key")
    return key if isinstance(key, str) else None
