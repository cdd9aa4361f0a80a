"""Names of result folders: safe on every file system, unique within a job.

A recording's name comes from whoever made the archive, so it is never used as a path. Folders are
named in the order of the recordings, which makes the names of a job the same every time.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

MAX_NAME_BYTES = 120
RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$")


def safe_name(text: str) -> str:
    """Return ``text`` as one folder name: no separators, no hidden or reserved name, not long."""
    name = re.sub(r"[^\w.,()+@=&'!# -]", "_", text.replace("/", "_"))
    name = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore").strip(" .")
    if not name or RESERVED.match(name):
        name = f"recording_{name}".rstrip("_")
    return name


class FolderNames:
    """Gives each recording of a job its folder name. Call it in the order of the recordings."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next_number: dict[str, int] = {}

    def of(self, recording_name: str) -> str:
        """Return the name without its suffix, made safe, with a number when it is taken.

        Two names that differ only in case count as the same: some file systems think so.
        """
        path = PurePosixPath(recording_name)
        base = safe_name(str(path.with_suffix("")) if path.suffix else recording_name)
        name, number = base, self._next_number.get(base.casefold(), 2)
        while name.casefold() in self._taken:
            name = f"{base}-{number}"
            number += 1
        self._next_number[base.casefold()] = number
        self._taken.add(name.casefold())
        return name
