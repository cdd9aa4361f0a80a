"""Weights files: round trip, digest, damage."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from common import checkpoint
from common.errors import WeightsInvalid

CONFIG = {"name": "hybrid", "widths": [8, 16], "temperature": 1.25}


def test_round_trip(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    path = tmp_path / "new" / "weights.safetensors"
    checkpoint.save(path, CONFIG, model)
    loaded = checkpoint.load(path)
    assert loaded.config == CONFIG
    assert loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    twin = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    checkpoint.restore(twin, loaded)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], tensor)
    assert [p.name for p in path.parent.iterdir()] == ["weights.safetensors"]


def test_same_weights_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(2), "a": torch.zeros(2, 3).T}
    checkpoint.save(tmp_path / "1", CONFIG, tensors)
    checkpoint.save(tmp_path / "2", dict(reversed(CONFIG.items())), tensors)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(WeightsInvalid, match=r"w\.safetensors"):
        checkpoint.load(path)
    checkpoint.save(path, CONFIG, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsInvalid):
        checkpoint.load(path)
    path.write_bytes(b"")
    with pytest.raises(WeightsInvalid):
        checkpoint.load(path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)  # no config inside
    with pytest.raises(WeightsInvalid):
        checkpoint.load(path)


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "w", CONFIG, nn.Linear(3, 4))
    with pytest.raises(WeightsInvalid, match="do not fit"):
        checkpoint.restore(nn.Linear(3, 5), checkpoint.load(tmp_path / "w"))
