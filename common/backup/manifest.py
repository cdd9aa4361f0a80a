"""What belongs to a backup: ``manifest.json``, checked field by field when it is read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import BackupInvalid

MANIFEST = "manifest.json"
OBJECTS = "objects"  # the folder of the objects
INDEX = "index.db"
LISTING = "objects.jsonl.gz"
MAX_MANIFEST_BYTES = 16 << 20
MOST_NAMED = 10_000  # objects that are missing or damaged, by name
BLOCK_BYTES = 1 << 20
COPY = re.compile(r"copy-[0-9]{8}T[0-9]{12}Z")

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
Count = Annotated[int, Field(ge=0)]


class Written(BaseModel):
    """A file of a copy, packed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size_bytes: Count
    sha256: Hash


class TableCopy(BaseModel):
    """The rows of a table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    columns: list[Name]
    rows: Count
    file: Written

    @property
    def file_name(self) -> str:
        return f"{self.name}.jsonl.gz"


class ObjectsCopy(BaseModel):
    """The objects; ``file`` lists them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: Count
    size_bytes: Count
    file: Written


class Flaw(BaseModel):
    """An object that is not as the database has it. ``why`` is ``missing`` or ``differs``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Annotated[str, Field(max_length=512)]
    why: Literal["missing", "differs"]


class Manifest(BaseModel):
    """A complete backup.

    ``deleted_jobs`` were deleted while it was made: restored, they are deleted again. ``flaws``
    were there in the store before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["soundmill-backup"] = "soundmill-backup"
    version: Literal[1] = 1
    created_at: float  # of the snapshot, on the database's clock
    database: Literal["sqlite", "postgresql"]
    revision: Annotated[str, Field(pattern=r"^[0-9a-z_]{1,32}$")]  # of the database's schema
    copy_name: Annotated[str, Field(pattern=rf"^{COPY.pattern}$")]
    tables: list[TableCopy]
    objects: ObjectsCopy
    deleted_jobs: list[str] = []
    flaws: Annotated[list[Flaw], Field(max_length=MOST_NAMED)] = []

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)


@dataclass(frozen=True)
class Backup:
    """A folder with a complete backup."""

    folder: Path
    manifest: Manifest
    checksum: str  # of the manifest: also the name of this very backup

    @property
    def copy(self) -> Path:
        return self.folder / self.manifest.copy_name

    @property
    def objects(self) -> Path:
        return self.folder / OBJECTS


def open_backup(folder: Path) -> Backup:
    """Return the backup in a folder. Reads the manifest alone.

    Raises:
        BackupInvalid: there is none, or the manifest is damaged.
    """
    path = folder / MANIFEST
    try:
        with open_file(path) as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise BackupInvalid(f"{folder} holds no complete backup: there is no {MANIFEST}") from None
    try:
        content = json.loads(raw)
        checksum = content.pop("checksum")
        version = content.get("version")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BackupInvalid(f"{path} cannot be read: it is damaged") from None
    if content.get("format") != "soundmill-backup" or version != 1:
        raise BackupInvalid(f"{path} is not of this kind of backup (version {version!r})")
    if checksum_of(content) != checksum:
        raise BackupInvalid(f"{path} was changed: its checksum does not fit")
    try:
        return Backup(folder, Manifest.model_validate(content), checksum)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise BackupInvalid(f"{path}: {where} is not as it must be") from None


def write_manifest(folder: Path, manifest: Manifest) -> Backup:
    """Make a backup complete: write its manifest beside, flush it, rename it."""
    content = manifest.model_dump(mode="json")
    checksum = checksum_of(content)
    beside = folder / f".{MANIFEST}.{os.getpid()}"
    try:
        with open(beside, "x", opener=private) as file:
            file.write(json.dumps({**content, "checksum": checksum}, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(folder / MANIFEST)
    finally:
        beside.unlink(missing_ok=True)
    return Backup(folder, manifest, checksum)


def checksum_of(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its checksum."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def private(path: str, flags: int) -> int:
    """Open a file that only its owner may read: ``open(..., opener=private)``."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def open_file(path: Path) -> Any:
    """Open a regular file of a backup to be read, never through a link.

    Raises:
        FileNotFoundError: it is not there.
        BackupInvalid: it is a link or something else.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BackupInvalid(f"{path} cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BackupInvalid(f"{path} is not a file")
    return os.fdopen(descriptor, "rb")


def check_file(path: Path, written: Written) -> None:
    """Raise BackupInvalid when a file is not as it was written."""
    digest = hashlib.sha256()
    try:
        with open_file(path) as file:
            if os.fstat(file.fileno()).st_size != written.size_bytes:
                raise BackupInvalid(f"{path} has another size than when it was written")
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    except FileNotFoundError:
        raise BackupInvalid(f"{path} is missing") from None
    if digest.hexdigest() != written.sha256:
        raise BackupInvalid(f"{path} is damaged: its SHA-256 does not fit")
