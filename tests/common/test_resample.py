"""Streaming resampling: exact length, the same as at once, pure tones stay pure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.resample import resample_blocks


def in_blocks(audio: np.ndarray, size: int, rate_in: int, rate_out: int) -> np.ndarray:
    blocks = (audio[:, i : i + size] for i in range(0, audio.shape[1], size))
    return np.concatenate(list(resample_blocks(blocks, rate_in, rate_out)), axis=1)


@pytest.mark.parametrize(
    ("rate_in", "rate_out"), [(8_000, 48_000), (44_100, 32_000), (48_000, 8_000), (11_025, 44_100)]
)
def test_tone(rate_in: int, rate_out: int) -> None:
    time_s = np.arange(2 * rate_in + 77) / rate_in
    audio = np.stack([np.sin(2 * np.pi * hz * time_s) for hz in (440.0, 1_000.0)])
    out = in_blocks(audio.astype(np.float32), 999, rate_in, rate_out)
    time_s = np.arange(out.shape[1]) / rate_out
    expected = np.stack([np.sin(2 * np.pi * hz * time_s) for hz in (440.0, 1_000.0)])
    inner = slice(rate_out // 4, -rate_out // 4)
    np.testing.assert_allclose(out[:, inner], expected[:, inner], atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 3_000),
    size=st.integers(1, 2_000),
    rate_in=st.sampled_from([2_000, 8_000, 11_025, 22_050, 44_100, 96_001, 384_000]),
    rate_out=st.sampled_from([8_000, 32_000, 44_100, 48_000]),
)
def test_length_is_exact(n: int, size: int, rate_in: int, rate_out: int) -> None:
    expected = (2 * n * rate_out + rate_in) // (2 * rate_in)
    pieces = list(
        resample_blocks(
            (np.ones((1, min(size, n - i)), np.float32) for i in range(0, n, size)),
            rate_in,
            rate_out,
        )
    )
    assert sum(piece.shape[1] for piece in pieces) == expected


def test_equal_rates_pass_through() -> None:
    audio = np.random.default_rng(0).standard_normal((3, 500)).astype(np.float32)
    np.testing.assert_array_equal(in_blocks(audio, 70, 8_000, 8_000), audio)


def test_nothing_gives_nothing() -> None:
    assert list(resample_blocks([], 8_000, 16_000)) == []
