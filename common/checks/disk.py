"""The room on the disks that a process writes to."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from common.checks.base import Check, Disk, Found, Status, failed, ok
from common.settings import Settings

DISK = "disk"
SMALL_DISK_SHARE = 0.05  # what must be free of a disk that is small beside min_free_bytes
HOPELESS_BYTES = 64 << 20  # with less, no worker begins anything
SOON = 2.0  # times the limit: below, somebody should know
ADVICE = "Make room: delete old jobs or other files, or give it a larger disk."


class DiskLook:
    """Looks at the file systems of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self) -> Found:
        checks, disks = [], []
        together: dict[tuple[int, int], list[Disk]] = {}  # places on what seems to be one disk
        for place, path in places(self._settings).items():
            there = nearest(path)
            try:
                disk = room(place, there)
            except OSError as error:
                detail = f"{place}: {path} cannot be looked at ({error.strerror})"
                checks.append(failed(DISK, detail))
                continue
            disks.append(disk)
            together.setdefault((disk.free_bytes, disk.total_bytes), []).append(disk)
            if place == "scratch" and not os.access(there, os.W_OK | os.X_OK):
                detail = f"scratch: {path} cannot be written"
                checks.append(failed(DISK, detail, "Give the folder to this user."))
        for same in together.values():
            names = ", ".join(disk.place for disk in same)
            checks.append(judge(names, same[0], self._settings.min_free_bytes))
        return Found((worst(checks),), disks=tuple(disks))


def places(settings: Settings) -> dict[str, Path]:
    """Return the folders whose disks can fill: scratch, a directory store, an SQLite database."""
    found = {"scratch": settings.scratch_dir}
    store = urlsplit(settings.store_url)
    if store.scheme == "file":
        found["store"] = Path(unquote(store.path))
    try:
        database = make_url(settings.database_url.get_secret_value())
    except (ArgumentError, ValueError):
        return found
    if database.get_backend_name() == "sqlite" and database.database:
        found["database"] = Path(database.database).parent
    return found


def nearest(path: Path) -> Path:
    """Return the folder, or the closest one above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def room(place: str, folder: Path) -> Disk:
    """Return the room of the disk on which a folder lies. Raises OSError."""
    status = os.statvfs(folder)
    return Disk(place, status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)


def least_bytes(disk: Disk, min_free_bytes: int) -> int:
    """Return the room that must be free: less on a disk for which the setting is much."""
    return min(min_free_bytes, int(disk.total_bytes * SMALL_DISK_SHARE))


def lack_of_room(settings: Settings) -> str | None:
    """Return a sentence where so little room is left that work would only fail for it."""
    for place, path in places(settings).items():
        try:
            disk = room(place, nearest(path))
        except OSError as error:
            return f"{place}: {path} cannot be looked at ({error.strerror})"
        if disk.free_bytes < min(least_bytes(disk, settings.min_free_bytes), HOPELESS_BYTES):
            return f"{place}: {size(disk.free_bytes)} free of {size(disk.total_bytes)}"
    return None


def judge(names: str, disk: Disk, min_free_bytes: int) -> Check:
    """Return whether there is room enough for what lies there."""
    least = least_bytes(disk, min_free_bytes)
    detail = f"{names}: {size(disk.free_bytes)} free of {size(disk.total_bytes)}"
    if disk.free_bytes < least:
        return failed(DISK, f"{detail}, and {size(least)} must be", ADVICE)
    if disk.free_bytes < SOON * least:
        return Check(DISK, Status.WARNING, detail, ADVICE)
    return ok(DISK, detail)


def worst(checks: list[Check]) -> Check:
    """Return one check for all: those that are as bad as the worst."""
    order = [Status.OK, Status.WARNING, Status.FAILED]
    status = max((check.status for check in checks), key=order.index)
    same = [check for check in checks if check.status is status]
    detail = "; ".join(dict.fromkeys(check.detail for check in same))
    return Check(DISK, status, detail, " ".join(dict.fromkeys(c.advice for c in same if c.advice)))


def size(number: int) -> str:
    """Return bytes for people: ``1.5 GB``."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
