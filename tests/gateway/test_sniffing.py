"""Archives and manifests are told by their first bytes."""

from __future__ import annotations

import pytest

from services.gateway.sniffing import archive_format, manifest_format
from tests.gateway.archives import ARCHIVES, CSV, JSONL, MANIFESTS


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_told_by_their_first_bytes(name: str) -> None:
    data, _, found = ARCHIVES[name]
    assert archive_format(data[:1024]) is found
    assert manifest_format(data[:1024]) is None


@pytest.mark.parametrize(
    "head",
    [b"", b"P", b"PK", b"PK\x03", bytes(512), b"\xff" * 600, JSONL, CSV, b"RIFF" + bytes(900)],
)
def test_what_is_no_archive(head: bytes) -> None:
    assert archive_format(head) is None


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_told_by_their_first_bytes(name: str) -> None:
    data, _, found = MANIFESTS[name]
    assert manifest_format(data[:1024]) is found
