"""One job of good and bad recordings: each bad one gets its reason, the good ones finish."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.e2e.conftest import Stack

RATE = 16_000


@pytest.fixture(scope="module")
def stack_settings() -> dict[str, str]:
    return {"max_duration_s": "36000"}


def wav_claiming(data_bytes: int, data: bytes) -> bytes:
    """Return a WAV whose header claims ``data_bytes`` of samples, whatever ``data`` holds."""
    form = struct.pack("<HHIIHH", 1, 1, RATE, RATE * 2, 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + data_bytes)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", data_bytes)
        + data
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad files; the name says what each is."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal(3 * RATE)
    soundfile.write(folder / "good.wav", noise, RATE)
    soundfile.write(folder / "good.flac", noise, RATE)
    soundfile.write(folder / "silent.wav", np.zeros(3 * RATE), RATE)
    soundfile.write(folder / "one-sample.wav", np.array([0.5]), RATE)
    soundfile.write(folder / "64-channels.wav", np.tile(noise[:, None], (1, 64)), RATE)
    nan = noise.copy()
    nan[1_000:2_000] = np.nan
    nan[5_000] = np.inf
    soundfile.write(folder / "nan.wav", nan.astype(np.float32), RATE, subtype="FLOAT")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_bytes(b"hello, this is no audio file\n" * 50)
    (folder / "playlist.mp3").write_bytes(
        b"#EXTM3U\n#EXTINF:10.0,\n/etc/hostname\n#EXT-X-ENDLIST\n"
    )
    soundfile.write(folder / "whole.flac", rng.standard_normal(10 * RATE) * 0.1, RATE)
    whole = (folder / "whole.flac").read_bytes()
    (folder / "whole.flac").unlink()
    (folder / "truncated.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "lying.wav").write_bytes(wav_claiming(60 * RATE * 2, b"\1\0" * RATE))
    (folder / "1-hertz.wav").write_bytes(
        wav_claiming(2_000, b"\0" * 2_000).replace(
            struct.pack("<II", RATE, RATE * 2), struct.pack("<II", 1, 2)
        )
    )
    with soundfile.SoundFile(folder / "10-hours.flac", "w", RATE, 1, "PCM_16") as out:
        silence = np.zeros(RATE * 60, dtype=np.int16)
        for _ in range(10 * 60 + 1):
            out.write(silence)
    return folder


EXPECTED = {
    "1-hertz.wav": "audio_unsupported",
    "10-hours.flac": "audio_too_long",
    "64-channels.wav": None,
    "empty.wav": "audio_empty",
    "good.flac": None,
    "good.wav": None,
    "lying.wav": "audio_truncated",
    "nan.wav": None,
    "one-sample.wav": None,
    "playlist.mp3": "audio_unreadable",
    "silent.wav": None,
    "text.wav": "audio_unreadable",
    "truncated.flac": "audio_truncated",
}


def test_every_input_ends_as_documented_and_nothing_is_left(stack: Stack, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    assert {path.name for path in paths} == set(EXPECTED)
    job_id = stack.submit(paths)
    stack.wait(job_id)
    rows = stack.rows(
        "SELECT c.name, r.stage, r.state, r.error_code, r.error_detail FROM stage_run r"
        " JOIN recording c ON c.id = r.recording_id WHERE r.job_id = ?",
        job_id,
    )
    for name, stage, state, code, detail in rows:
        expected = EXPECTED[name]
        if expected is None:
            assert (state, code) == ("succeeded", None), (name, stage, detail)
        elif stage == "segment":
            assert (state, code) == ("failed", expected), (name, detail)
            assert detail, name
        else:
            assert (state, code) == ("skipped", "upstream_failed"), (name, stage)
    assert list((stack.home.folder / "scratch").iterdir()) == []
    # What the artifacts of the odd but good ones hold
    (silent,) = stack.rows(
        "SELECT r.result FROM stage_run r JOIN recording c ON c.id = r.recording_id"
        " WHERE c.name = 'silent.wav' AND r.stage = 'segment' AND r.job_id = ?",
        job_id,
    )
    assert '"regions": 0' in silent[0]
    for name, channels, frames in (
        ("64-channels.wav", 64, 3 * RATE),
        ("one-sample.wav", 1, 1),
        ("nan.wav", 1, 3 * RATE),
    ):
        (key,) = stack.rows(
            "SELECT a.object_key FROM artifact a JOIN recording c ON c.id = a.recording_id"
            " WHERE c.name = ? AND a.kind = 'restored' AND c.job_id = ?",
            name,
            job_id,
        )
        samples, rate = soundfile.read(stack.home.folder / "objects" / key[0], always_2d=True)
        assert (samples.shape, rate) == ((frames, channels), RATE), name
        assert np.isfinite(samples).all()
