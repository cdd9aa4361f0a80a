"""Search by example with what the shipped classifier really hears: yelps among other sounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from common.domain import ArtifactKind
from common.params import ClassifyParams
from common.stage_io import StageInput
from services.classifier.infer import load, process
from tests.gateway.conftest import Gateway
from tests.gateway.filled import fill, heard
from tests.gateway.with_vectors import give

SAMPLE_RATE = 32_000
DURATION_S = 4.0
EMBEDDED = pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True
)


def yelps(at_s: list[float], seed: int) -> np.ndarray:
    """Return a quiet room in which something yelps: harmonics that fall from 900 to 400 Hz."""
    rng = np.random.default_rng(seed)
    samples = 1e-3 * rng.normal(size=round(DURATION_S * SAMPLE_RATE))
    time_s = np.arange(round(0.25 * SAMPLE_RATE)) / SAMPLE_RATE
    for start_s in at_s:
        pitch_hz = rng.uniform(0.9, 1.1) * np.linspace(900.0, 400.0, len(time_s))
        phase = 2.0 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE
        yelp = sum(np.sin(k * phase) / k for k in range(1, 6)) * np.hanning(len(time_s))
        start = round(start_s * SAMPLE_RATE)
        samples[start : start + len(time_s)] += 0.3 * yelp
    return samples


def noise(seed: int) -> np.ndarray:
    """Return steady noise, as of a fan."""
    rng = np.random.default_rng(seed)
    return 0.1 * rng.normal(size=round(DURATION_S * SAMPLE_RATE))


def tone(frequency_hz: float) -> np.ndarray:
    """Return a steady tone."""
    time_s = np.arange(round(DURATION_S * SAMPLE_RATE)) / SAMPLE_RATE
    return 0.1 * np.sin(2.0 * np.pi * frequency_hz * time_s)


@EMBEDDED
def test_yelps_are_found_by_a_yelp(gateway: Gateway, tmp_path: Path) -> None:
    loaded = load("cpu")
    sounds = [yelps([0.8], 1), noise(2), tone(3_000.0), yelps([2.4], 3), noise(4)]
    made = fill(gateway.sessions, [heard() for _ in sounds])
    for recording_id, samples in zip(made.recording_ids, sounds, strict=True):
        path = tmp_path / f"{recording_id}.wav"
        soundfile.write(path, samples, SAMPLE_RATE)
        scratch = tmp_path / recording_id
        scratch.mkdir()
        item = StageInput(path.name, path, ClassifyParams(embeddings=True), {}, scratch)
        give(gateway, process(loaded, item).files[ArtifactKind.VECTORS].path, recording_id)
    page = gateway.get(
        f"/v1/recordings/{made.recording_ids[0]}/similar",
        params={"onset_s": 0.8, "offset_s": 1.2},
    )
    others = [hit for hit in page["hits"] if hit["recording_id"] != made.recording_ids[0]]
    best = others[0]
    assert best["recording_id"] == made.recording_ids[3]
    assert best["onset_s"] <= 2.65
    assert best["offset_s"] >= 2.4
