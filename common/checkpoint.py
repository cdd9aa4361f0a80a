"""Weights files: a config plus tensors in one safetensors file, never a pickled class.

Source: the safetensors format, whose header carries string metadata; the config is JSON there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from common.errors import WeightsInvalid
from common.weights_header import CONFIG_KEY, metadata_of

NOTES_KEY = "notes"
"""Within the config's JSON: of two keys in the header, safetensors does not keep the order."""

FLOAT_TYPES = (torch.float16, torch.bfloat16, torch.float32)
"""In which weights may be stored that a model computes with."""


@dataclass(frozen=True)
class Checkpoint:
    """A weights file in memory. ``digest`` is the SHA-256 of the file, in hexadecimal.

    ``notes`` are what else is known of the weights, such as the data they were trained on.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    digest: str
    notes: dict[str, Any] = field(default_factory=dict)


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes ``path`` where the block ends well, else it goes.

    What was there before stays until then, and what is there afterwards is whole and outlasts a
    power cut. The folder is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    try:
        yield beside
        _sync(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    _sync(path.parent)


def save(
    path: Path,
    config: dict[str, Any],
    weights: nn.Module | dict[str, Tensor],
    notes: dict[str, Any] | None = None,
) -> None:
    """Write a weights file beside ``path``, then rename it there. The same input, the same bytes.

    Args:
        path: its folder is made if need be.
        config: anything JSON can hold.
        weights: a module, whose state is taken, or named tensors.
        notes: anything JSON can hold; kept beside the config.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    noted = config | {NOTES_KEY: notes} if notes else config
    header = {CONFIG_KEY: json.dumps(noted, sort_keys=True, separators=(",", ":"))}
    with written_beside(path) as beside:
        beside.write_bytes(safetensors.torch.save(tensors, metadata=header))


def load(path: Path) -> Checkpoint:
    """Read a weights file.

    Raises:
        WeightsInvalid: missing, damaged, or without a config.
    """
    try:
        content = path.read_bytes()
        tensors = safetensors.torch.load(content)
        config = json.loads(metadata_of(content)[CONFIG_KEY])
    except (
        OSError,
        safetensors.SafetensorError,
        KeyError,
        ValueError,
        RecursionError,  # lists in lists in lists
    ) as error:
        raise WeightsInvalid(f"the weights file {path.name} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise WeightsInvalid(f"the weights file {path.name} holds no config")
    notes = config.pop(NOTES_KEY, {})
    if not isinstance(notes, dict):
        raise WeightsInvalid(f"the notes in the weights file {path.name} are no table")
    return Checkpoint(config, tensors, hashlib.sha256(content).hexdigest(), notes)


def restore(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Put the tensors of a checkpoint into a module.

    Raises:
        WeightsInvalid: names, shapes or types differ, or a value is no finite number.
    """
    _check_fit(module.state_dict(), checkpoint.tensors)
    try:
        module.load_state_dict(checkpoint.tensors)
    except RuntimeError as error:
        raise WeightsInvalid(f"the weights do not fit the model: {error}") from error


def _check_fit(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Raises WeightsInvalid: see ``restore``."""
    for name in sorted(wanted.keys() ^ given.keys()):
        lacks = "are missing" if name in wanted else "have no place"
        raise WeightsInvalid(f"the weights do not fit the model: those of {name:.80} {lacks}")
    for name, tensor in given.items():
        place = wanted[name]
        if tensor.shape != place.shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(place.shape)}"
            raise WeightsInvalid(f"the weights do not fit the model: {name} is {shapes}")
        # of others something would be lost, such as the imaginary part
        if tensor.dtype not in (FLOAT_TYPES if place.is_floating_point() else (place.dtype,)):
            types = f"{tensor.dtype}, not {place.dtype}"
            raise WeightsInvalid(f"the weights do not fit the model: {name} is of {types}")
        if not bool(tensor.isfinite().all()):
            raise WeightsInvalid(f"the weights of {name} are not all finite numbers")


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
