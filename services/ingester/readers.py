"""Chooses how the entries of a source are read, by its kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from common.domain import SourceKind
from common.errors import NotFound, SourceInvalid
from common.settings import Settings
from common.sources import (
    AnySpec,
    ArchiveFormat,
    ArchiveSpec,
    ManifestSpec,
    PrefixSpec,
    UploadSpec,
    UrlsSpec,
)
from common.storage import ObjectStore, Readable
from services.ingester.entries import Entry, Found, Tally
from services.ingester.locators import Blocks, Locators
from services.ingester.manifests import read_manifest, read_urls
from services.ingester.prefixes import read_prefix
from services.ingester.tars import read_tar
from services.ingester.zips import read_zip

CONSUMED = frozenset({SourceKind.ARCHIVE, SourceKind.MANIFEST})
"""Kinds whose stored object is of no use once it has been read."""


def read_entries(
    store: ObjectStore,
    locators: Locators,
    settings: Settings,
    spec: AnySpec,
    start: int,
    tally: Tally,
) -> Iterator[Found]:
    """Yield the entries of a source in order from number ``start``. Raises SourceInvalid."""
    if isinstance(spec, ArchiveSpec):
        read_archive = read_zip if spec.format is ArchiveFormat.ZIP else read_tar
        return read_archive(store, spec, settings, start, tally)
    if isinstance(spec, ManifestSpec):
        return read_manifest(store, spec, settings, locators.locate, start, tally)
    if isinstance(spec, UrlsSpec):
        return read_urls(spec, locators.locate, start, tally)
    if isinstance(spec, PrefixSpec):
        return read_prefix(locators, spec, start, tally)
    return _read_upload(store, spec, start, tally)


def _read_upload(store: ObjectStore, spec: UploadSpec, start: int, tally: Tally) -> Iterator[Found]:
    tally.total = 1
    if start == 0:
        yield Entry(
            0,
            spec.name,
            spec.custom_id,
            open=lambda: _stored(store, spec.object_key),
            object_key=spec.object_key,
            labels=spec.labels,
            params=spec.params,
            sha256=spec.sha256,
        )


@contextmanager
def _stored(store: ObjectStore, key: str) -> Iterator[Readable]:
    try:
        with store.open(key) as blocks:
            yield Blocks(blocks)
    except NotFound as error:
        raise SourceInvalid("source_unavailable", "what was uploaded is gone") from error
