"""Lengths from the first and last bytes alone."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from common.probe import HEAD_BYTES, TAIL_BYTES, probe_s
from tests.ingester.conftest import wav


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", None),
        ("AIFF", None),
    ],
)
def test_the_ends_tell_the_length(form: str, subtype: str | None) -> None:
    rate_hz, seconds = 48_000, 60
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, rate_hz * seconds)
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate_hz, 1, subtype, format=form) as file:
        for block in noise.reshape(seconds, rate_hz):  # the Vorbis encoder crashes on long blocks
            file.write(block)
    data = buffer.getvalue()
    assert len(data) > HEAD_BYTES + TAIL_BYTES  # so that the middle is unknown
    length_s = probe_s(data[:HEAD_BYTES], data[-TAIL_BYTES:], len(data))
    assert length_s == pytest.approx(seconds, rel=0.02)


@pytest.mark.parametrize("cut", range(0, 364, 13))
def test_what_is_no_recording_has_no_length(cut: int) -> None:
    data = wav()[:cut]
    found = probe_s(data, data, len(data))
    assert found is None or found <= 0.01 + 1e-9


def test_noise_is_survived() -> None:
    random = np.random.default_rng(1)
    marks = (b"RIFF", b"fLaC", b"OggS", b"ID3\x04", b"FORM", b"\xff\xfb", b"\x00\x00\x00\x20ftyp")
    for mark in marks * 20:
        data = mark + random.bytes(2_000)
        probe_s(data, data[-100:], 1 << 40)
