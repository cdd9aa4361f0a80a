"""What a config and a file of weights may say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from common import checkpoint
from common.errors import WeightsInvalid
from services.classifier import infer
from services.classifier.config import Config, ResNetSettings
from services.classifier.model import build
from tests.models.networks import SMALL


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL.keys())
def test_configs_survive_json(config: Config) -> None:
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_what_a_config_leaves_out_has_defaults() -> None:
    config = Config.from_dict({"architecture": "resnet", "network": {"width": 8}})
    assert config.network == ResNetSettings(width=8, blocks=(2, 2, 2, 2))
    assert config.n_mels == 64


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "other"},
        {"architecture": 3},
        {"architecture": ["resnet"]},
        {"architecture": "vgg_slat"},  # with the settings of a resnet
        {"colour": 1},
        {"labels": []},
        {"labels": "dog"},
        {"labels": ["dog", "dog"]},
        {"labels": ["dog", ""]},
        {"labels": ["dog", 3]},
        {"labels": ["dog", ["cat"]]},
        {"labels": ["x" * 1000]},
        {"labels": [str(n) for n in range(20_000)]},
        {"multi_label": 1},
        {"sample_rate": 0},
        {"sample_rate": "32000"},
        {"sample_rate": 32000.5},
        {"sample_rate": None},
        {"n_fft": -1024},
        {"n_fft": 10**9},
        {"hop_length": 0},
        {"hop_length": 10**9},
        {"n_mels": 65},
        {"n_mels": 10**9},
        {"n_mels": True},
        {"window": "kaiser"},
        {"window": []},
        {"dropout": 1.5},
        {"dropout": "much"},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": False},
        {"temperature": [1.0]},
        {"segment_temperature": math.nan},
        {"segment_shift": math.inf},
        {"event_threshold": 1.5},
        {"event_threshold": {}},
        {"network": None},
        {"network": [1, 2]},
        {"network": {"width": 10**9}},
        {"network": {"width": -1}},
        {"network": {"width": 4.0}},
        {"network": {"width": "4"}},
        {"network": {"blocks": [2, 2, 2]}},
        {"network": {"blocks": [2, 2, 2, 10**9]}},
        {"network": {"blocks": 2}},
        {"network": {"depth": 2}},
        {"network": {"blocks": [[2], 2, 2, 2]}},
    ],
    ids=repr,
)
def test_hostile_configs_are_refused(change: dict[str, Any]) -> None:
    raw = SMALL["resnet"].to_dict() | change
    with pytest.raises(WeightsInvalid, match=r"^the classifier's config does not fit: [^\n]*$"):
        Config.from_dict(raw)


@pytest.mark.parametrize(
    ("architecture", "network"),
    [
        ("hybrid", {"channels": [8, 8, 8, 10**9]}),
        ("hybrid", {"patch_heads": 0}),
        ("hybrid", {"patch_heads": 3}),
        ("hybrid", {"patch_layers": 10**6}),
        ("vgg_slat", {"channels": [8, 8, 8, 8]}),
        ("vgg_slat", {"channels": [0, 8, 8, 8, 8, 8]}),
        ("vgg_slat", {"pooling": "median"}),
        ("vgg_slat", {"lstm_width": -1}),
        ("vgg_slat", {"segment_width": 10**9}),
        ("stride_cnn", {"channels": [8, 8, 8, math.nan]}),
        ("stride_cnn", {"channels": "wide"}),
    ],
)
def test_hostile_settings_are_refused(architecture: str, network: dict[str, Any]) -> None:
    with pytest.raises(WeightsInvalid):
        Config.from_dict({"architecture": architecture, "network": network})


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["dog", "rain"]},
        {"n_mels": 32},
        {"n_mels": 512},  # too fine for the spectrum
        {"network": {"width": 8, "blocks": [2, 1, 1, 1]}},
        {"network": {"width": 4, "blocks": [2, 1, 1, 2]}},
        {"architecture": "stride_cnn", "network": {}},
    ],
    ids=repr,
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "w.safetensors"
    config = SMALL["resnet"]
    checkpoint.save(path, config.to_dict() | change, build(config))
    with pytest.raises(WeightsInvalid, match=r"^the [^\n]* fit[^\n]*$"):
        infer.load("cpu", path)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    config = SMALL["stride_cnn"]
    state = build(config).state_dict()
    state["network.clip_head.weight"][0, 0] = math.nan
    checkpoint.save(path, config.to_dict(), state)
    with pytest.raises(WeightsInvalid, match=r"network\.clip_head\.weight"):
        infer.load("cpu", path)
