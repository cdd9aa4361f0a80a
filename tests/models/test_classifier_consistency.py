"""Long recordings: what is heard must not depend on where windows begin."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from common import checkpoint
from common.domain import Event
from services.classifier.config import Config, HybridSettings
from services.classifier.evaluation import consistency as command
from services.classifier.evaluation.consistency import Hearing, alike, consistency
from services.classifier.listening import LoadedClassifier
from services.classifier.model import build
from tests.models.explained import (
    BANDS_HZ,
    BURST_S,
    LABELS,
    NOISE_LEVEL,
    RATE,
    heard,
    noise_in_band,
)
from tests.models.urban import urban_sound

DURATION_S = 30.0


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def small(architecture: str) -> LoadedClassifier:
    model = heard(architecture)
    return LoadedClassifier(model, model.config, "cpu", "0" * 64)


def bursts(seed: int) -> np.ndarray:
    """Return half a minute of noise with a burst about every second, in either band."""
    generator = np.random.default_rng(seed)
    samples = NOISE_LEVEL * generator.standard_normal(round(DURATION_S * RATE))
    n = round(BURST_S * RATE)
    for second in range(int(DURATION_S)):
        label = LABELS[int(generator.integers(2))]
        start = round((second + float(generator.uniform(0.0, 0.6))) * RATE)
        samples[start : start + n] += (
            0.1 * np.hanning(n) * noise_in_band(n, *BANDS_HZ[label], generator)
        )
    return samples.astype(np.float32)


def test_likeness_by_hand() -> None:
    loaded = small("hybrid")  # its threshold is 0.5, so what is above 0.25 is heard
    zeros = np.zeros((2, 102), np.float32)
    other = zeros.copy()
    other[0, :13] = 0.4  # where two windows overlap
    other[0, 60] = 0.1
    event = Event("low", 0.0, 1.0, 0.9)
    found = alike(loaded, [(Hearing([event], zeros, None), Hearing([event, event], other, 0))])
    assert (found.events, found.kept, found.new, found.share_kept) == (1, 1, 1, 1.0)
    assert found.mean == pytest.approx(5.3 / 204)
    assert found.largest == pytest.approx(0.4)
    assert found.where_heard == pytest.approx(0.4)
    assert found.in_overlap == pytest.approx((13 * 0.4 + 0.1) / 52)  # 51 to 63 overlap too
    assert found.between == 0.0
    same = alike(loaded, [(Hearing([], zeros, None), Hearing([], zeros, None))])
    assert (same.share_kept, same.largest, same.where_heard) == (None, 0.0, None)


@pytest.mark.parametrize("architecture", ["hybrid", "resnet"])
def test_what_is_heard_does_not_depend_on_where_windows_begin(architecture: str) -> None:
    loaded = small(architecture)
    found = consistency(loaded, [bursts(seed) for seed in range(2)])
    for likeness in found.values():  # its segments were not taught, so that it names no events
        assert 0.0 < likeness.mean < 0.02
        assert likeness.in_overlap < 0.05


def test_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    sizes = HybridSettings((4, 4, 8, 8), 8, 1, 2, 8)
    model = build(Config(network=sizes))
    weights, report = tmp_path / "w.safetensors", tmp_path / "report.json"
    checkpoint.save(weights, model.config.to_dict(), model)
    command.main(
        urban_sound(tmp_path / "data"),
        report,
        weights,
        layout="us8k",
        scenes=1,
        seconds=20.0,
        cache=tmp_path / "cache",
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(report.read_text())
    assert printed["shifts_s"] == [0.0, 1.04, 2.08, 3.12]
    assert printed["compared"]["whole, in windows"]["mean"] < 0.1
