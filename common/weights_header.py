"""What a weights file says of itself, read without PyTorch and without its tensors.

Source: the safetensors format: a little-endian length, then a header in JSON, then the tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import WeightsInvalid

CONFIG_KEY = "config"
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


def metadata_of(content: bytes) -> dict[str, str]:
    """Return the metadata of a file, given at least its beginning up to the tensors.

    Raises:
        ValueError, RecursionError: it is no safetensors file.
        KeyError: it has no metadata.
    """
    size = int.from_bytes(content[:LENGTH_BYTES], "little")
    header = json.loads(content[LENGTH_BYTES : LENGTH_BYTES + size])
    metadata: dict[str, str] = header["__metadata__"]
    return metadata


def labels_of(path: Path) -> tuple[str, ...]:
    """Return the labels that the weights in a file tell apart.

    Raises:
        WeightsInvalid: the file is missing or damaged, or names no labels.
    """
    try:
        with path.open("rb") as opened:
            length = opened.read(LENGTH_BYTES)
            size = min(int.from_bytes(length, "little"), MAX_HEADER_BYTES)
            config: Any = json.loads(metadata_of(length + opened.read(size))[CONFIG_KEY])
        labels = config["labels"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsInvalid(f"the weights file {path.name} cannot be read: {error}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise WeightsInvalid(f"the weights file {path.name} names no labels")
    return tuple(labels)
