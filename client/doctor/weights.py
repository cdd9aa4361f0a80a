"""The weights files of the models: there, whole, and which they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import common
from common.checks import Check
from common.checks.base import failed, ok
from common.domain import SERVICE_OF

DIGITS = 12  # of a digest, as in the metrics
SHORTEST = 8  # bytes: the length of the header
AGAIN = "Install Soundmill again: the file came damaged, or was changed."


def checks() -> Iterator[Check]:
    """Yield one check for each worker. No model is loaded."""
    root = Path(common.__file__).parent.parent
    for service in SERVICE_OF.values():
        yield check(service, root / "services" / service / "weights")


def check(service: str, folder: Path) -> Check:
    """Return whether the weights files of a worker can be used, and their digests."""
    name = f"{service}_weights"
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return failed(name, f"there are none in {folder}", AGAIN)
    digests = []
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            return failed(name, f"{file} cannot be read ({error.strerror})", "Let this user read.")
        if not is_whole(content):
            return failed(name, f"{file} is damaged", AGAIN)
        digests.append(f"{file.stem} {hashlib.sha256(content).hexdigest()[:DIGITS]}")
    return ok(name, ", ".join(digests))


def is_whole(content: bytes) -> bool:
    """Whether a safetensors file holds as many bytes as its header says."""
    size = int.from_bytes(content[:SHORTEST], "little")
    try:
        header = json.loads(content[SHORTEST : SHORTEST + size])
        tensors = [entry for key, entry in header.items() if key != "__metadata__"]
        end = max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False
    return len(content) == SHORTEST + size + end
