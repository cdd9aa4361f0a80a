"""How a file is cut into parts, and whether what has arrived is all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from http import HTTPStatus

from common.storage import Readable, StoredPart
from common.tables import Upload
from services.gateway.problems import Problem, invalid
from services.gateway.source_schemas import SentPart

MEBIBYTE = 1 << 20
MIN_PART_BYTES = 8 * MEBIBYTE  # S3 asks for 5
AIMED_PARTS = 1_000  # some servers take no more by default
MAX_NAMED_PARTS = 100  # in a problem


def part_bytes_of(size_bytes: int) -> int:
    """Return the size of the parts of a file: whole mebibytes."""
    return max(MIN_PART_BYTES, -(-size_bytes // (AIMED_PARTS * MEBIBYTE)) * MEBIBYTE)


def part_count(upload: Upload) -> int:
    """Return of how many parts an upload is made."""
    return -(-upload.size_bytes // upload.part_bytes)


def part_size(upload: Upload, number: int) -> int:
    """Return the size of a part. Raises Problem when there is no such part."""
    count = part_count(upload)
    if not 1 <= number <= count:
        raise invalid("part_number_invalid", f"The parts of this upload are 1 to {count}.")
    return min(upload.part_bytes, upload.size_bytes - (number - 1) * upload.part_bytes)


def check_whole(upload: Upload, parts: Sequence[StoredPart]) -> None:
    """Return if every part is there with its size; else raise a Problem that names those missing.

    What was sent by a presigned link can have any size or number.
    """
    there = {part.number: part.size_bytes for part in parts}
    count = part_count(upload)
    missing = [
        number for number in range(1, count + 1) if there.get(number) != part_size(upload, number)
    ]
    if missing or len(there) > count:
        raise Problem(
            HTTPStatus.CONFLICT,
            "upload_incomplete",
            f"{len(missing)} of {count} parts are missing or have another size."
            if missing
            else f"There are parts after number {count}.",
            missing=missing[:MAX_NAMED_PARTS],
            missing_count=len(missing),
        )


def check_named(named: Sequence[SentPart], parts: Sequence[StoredPart]) -> None:
    """Return if the caller names the very parts that have arrived, in order."""
    if [part.number for part in named] != [part.number for part in parts]:
        raise invalid("parts_order_wrong", f"Name parts 1 to {len(parts)}, each once, in order.")
    other = [
        part.number
        for part, sent in zip(parts, named, strict=True)
        if part.etag != sent.etag.strip('"')
    ]
    if other:
        raise Problem(
            HTTPStatus.CONFLICT,
            "part_etag_wrong",
            f"{len(other)} parts have arrived with another content.",
            parts=other[:MAX_NAMED_PARTS],
        )


class Checked:
    """Reads a part of known length and keeps its end back when its hash is wrong.

    So a wrong part never becomes whole in the store.
    """

    def __init__(self, reader: Readable, length: int, sha256: str) -> None:
        self._reader = reader
        self._missing = length
        self._expected = sha256
        self._sha256 = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        block = self._reader.read(size)
        self._sha256.update(block)
        self._missing -= len(block)
        if block and self._missing <= 0 and self._sha256.hexdigest() != self._expected:
            raise invalid(
                "hash_mismatch",
                f"The bytes that arrived have the SHA-256 {self._sha256.hexdigest()}.",
            )
        return block
