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


def test_a_config_of_lists_in_lists_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {"a": torch.zeros(1)}
    safetensors.torch.save_file(tensors, path, metadata={"config": "[" * 100_000})
    with pytest.raises(WeightsInvalid, match=r"w\.safetensors cannot be read"):
        checkpoint.load(path)


def norm_with(tmp_path: Path, name: str, tensor: torch.Tensor) -> checkpoint.Checkpoint:
    """Return the weights of a norm of three, one of them another tensor."""
    state = nn.BatchNorm1d(3).state_dict() | {name: tensor}
    checkpoint.save(tmp_path / "w", CONFIG, state)
    return checkpoint.load(tmp_path / "w")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("weight", torch.ones(3).to(torch.float8_e4m3fn)),
        ("weight", torch.ones(3).to(torch.float8_e5m2)),
        ("weight", torch.ones(3, dtype=torch.complex64)),
        ("weight", torch.ones(3, dtype=torch.float64)),
        ("weight", torch.ones(3, dtype=torch.int8)),
        ("weight", torch.ones(3, dtype=torch.bool)),
        ("num_batches_tracked", torch.tensor(1.5)),
        ("num_batches_tracked", torch.tensor(True)),
    ],
)
def test_other_types_are_refused(tmp_path: Path, name: str, tensor: torch.Tensor) -> None:
    loaded = norm_with(tmp_path, name, tensor)
    with pytest.raises(WeightsInvalid, match=f"do not fit the model: {name} is of "):
        checkpoint.restore(nn.BatchNorm1d(3), loaded)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_may_be_stored_in_half(tmp_path: Path, kind: torch.dtype) -> None:
    norm = nn.BatchNorm1d(3)
    checkpoint.restore(norm, norm_with(tmp_path, "weight", torch.full((3,), 0.5).to(kind)))
    torch.testing.assert_close(norm.weight.detach(), torch.full((3,), 0.5))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    loaded = norm_with(tmp_path, "running_mean", torch.full((3,), value))
    with pytest.raises(WeightsInvalid, match="running_mean are not all finite"):
        checkpoint.restore(nn.BatchNorm1d(3), loaded)
