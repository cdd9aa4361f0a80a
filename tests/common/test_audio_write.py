"""Writing: exact round trips, the format's limits, large files, a full disk."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common import audio_write
from common.audio import AudioLimits, AudioReader, AudioWriter
from common.errors import DiskFull

FULL_SCALE = 2**23


def noise(channels: int, n: int) -> np.ndarray:
    """24-bit samples that use the whole range, (C, n)."""
    rng = np.random.default_rng(0)
    values = rng.integers(-FULL_SCALE, FULL_SCALE, (channels, n))
    values[:, :2] = [[-FULL_SCALE, FULL_SCALE - 1]]
    return (values / FULL_SCALE).astype(np.float32)


@pytest.mark.parametrize(
    ("sample_rate", "channels", "extension"),
    [
        (2_000, 1, "flac"),
        (11_025, 2, "flac"),
        (44_100, 1, "flac"),
        (48_000, 8, "flac"),
        (65_535, 1, "flac"),
        (65_537, 1, "wav"),
        (96_000, 2, "flac"),
        (96_001, 2, "wav"),
        (384_000, 1, "flac"),
        (8_000, 9, "wav"),
        (8_000, 64, "wav"),
        (8_001, 3, "flac"),
    ],
)
def test_round_trip_is_exact(
    tmp_path: Path, sample_rate: int, channels: int, extension: str
) -> None:
    audio = noise(channels, 5_001)
    with AudioWriter(tmp_path, "out", sample_rate, channels) as writer:
        for start in range(0, audio.shape[1], 1_234):
            writer.write(audio[:, start : start + 1_234])
    assert writer.path == tmp_path / f"out.{extension}"
    assert writer.media_type == f"audio/{extension}"
    assert writer.clipped_values == 0
    with AudioReader(writer.path, AudioLimits()) as reader:
        np.testing.assert_array_equal(np.concatenate(list(reader.blocks()), axis=1), audio)
        assert reader.info.sample_rate == sample_rate


def test_odd_number_of_bytes_is_padded(tmp_path: Path) -> None:
    with AudioWriter(tmp_path, "out", 8_000, 9) as writer:
        writer.write(noise(9, 3))
    assert writer.path.stat().st_size % 2 == 0
    assert soundfile.info(writer.path).frames == 3


def test_values_beyond_full_scale_are_limited_and_counted(tmp_path: Path) -> None:
    with AudioWriter(tmp_path, "out", 8_000, 1) as writer:
        writer.write(np.array([[0.5, 1.5, -3.0, -1.0]], np.float32))
    assert writer.clipped_values == 2
    with AudioReader(writer.path) as reader:
        (block,) = reader.blocks()
    np.testing.assert_allclose(block[0], [0.5, 1.0, -1.0, -1.0], atol=2 / FULL_SCALE)


def test_wav_of_nothing(tmp_path: Path) -> None:
    with AudioWriter(tmp_path, "out", 8_000, 9) as writer:
        pass
    assert soundfile.info(writer.path).frames == 0


def test_large_wav_turns_rf64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_write, "MAX_RIFF_BYTES", 10_000)
    audio = noise(9, 1_000)
    with AudioWriter(tmp_path, "out", 8_000, 9) as writer:
        writer.write(audio)
    data = bytearray(writer.path.read_bytes())
    assert data[:4] == b"RF64"
    assert data[12:16] == b"ds64"
    # the sizes a real RF64 holds there: the limit was lowered only for the test
    assert struct.unpack_from("<QQQ", data, 20) == (len(data) - 8, 27_000, 1_000)
    for at in (4, data.index(b"data") + 4):
        data[at : at + 4] = b"\xff\xff\xff\xff"
    writer.path.write_bytes(data)
    with AudioReader(writer.path) as reader:
        np.testing.assert_array_equal(np.concatenate(list(reader.blocks()), axis=1), audio)


@pytest.mark.parametrize("channels", [2, 9])
def test_full_disk(tmp_path: Path, channels: int) -> None:
    for extension in ("flac", "wav"):
        (tmp_path / f"out.{extension}").symlink_to("/dev/full")
    rng = np.random.default_rng(0)

    def write() -> None:
        with AudioWriter(tmp_path, "out", 48_000, channels) as writer:
            for _ in range(4):
                writer.write(rng.uniform(-1, 1, (channels, 48_000)).astype(np.float32))

    with pytest.raises(DiskFull, match="out"):
        write()


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"cannot write out\.flac"):
        AudioWriter(tmp_path / "missing", "out", 48_000, 1)
