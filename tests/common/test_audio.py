"""Reading: every format, hostile files, limits, memory."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

from common.audio import AudioLimits, AudioReader, read_clip
from common.errors import (
    AudioEmpty,
    AudioError,
    AudioTooLong,
    AudioTruncated,
    AudioUnreadable,
    AudioUnsupported,
)
from common.settings import Settings
from tests.common.audio_files import tones, wav_bytes, write_ffmpeg, write_soundfile

RATE = 44_100
SECONDS = 3.0


def decoded(path: Path, limits: AudioLimits | None = None) -> np.ndarray:
    with AudioReader(path, limits) as reader:
        return np.concatenate(list(reader.blocks(1.0)), axis=1)


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# Formats

SOUNDFILE_KINDS = {
    "a.wav": {"subtype": "PCM_16"},
    "b.wav": {"subtype": "PCM_U8"},
    "c.wav": {"subtype": "PCM_24"},
    "d.wav": {"subtype": "FLOAT"},
    "e.wav": {"format": "RF64", "subtype": "PCM_16"},
    "f.flac": {"subtype": "PCM_24"},
    "g.aiff": {"subtype": "PCM_16"},
    "h.ogg": {"format": "OGG", "subtype": "VORBIS"},
    "i.mp3": {"format": "MP3"},
    "j.w64": {"subtype": "PCM_16"},
    "k.raw": {"format": "WAV", "subtype": "PCM_16"},  # a name that means nothing
}
FFMPEG_KINDS = {
    "a.mp3": (RATE, "mp3", "libmp3lame", False),
    "b.opus": (48_000, "ogg", "libopus", False),
    "c.m4a": (RATE, "ipod", "aac", False),
    "d.aac": (RATE, "adts", "aac", False),
    "e.wma": (RATE, "asf", "wmav2", False),
    "f.webm": (48_000, "webm", "libopus", False),
    "g.mp4": (RATE, "mp4", "aac", True),
    "h.mkv": (RATE, "matroska", "aac", True),
    "i.m4a": (RATE, "ipod", "alac", False),
    "j.avi": (RATE, "avi", "libmp3lame", True),
    "k.mov": (RATE, "mov", "pcm_s16le", True),
    "l.ts": (RATE, "mpegts", "aac", True),
    "m.ac3": (RATE, "ac3", "ac3", False),
    "n.wav": (RATE, "wav", "adpcm_ima_wav", False),
    "o.flv": (RATE, "flv", "aac", False),
}


@pytest.mark.parametrize("name", SOUNDFILE_KINDS)
def test_reads_formats_of_soundfile(tmp_path: Path, name: str) -> None:
    audio = tones(SECONDS, RATE)
    path = write_soundfile(tmp_path / name, audio, RATE, **SOUNDFILE_KINDS[name])
    check_like(path, audio, RATE)


@pytest.mark.parametrize("name", FFMPEG_KINDS)
def test_reads_formats_of_ffmpeg(tmp_path: Path, name: str) -> None:
    rate, container, codec, picture = FFMPEG_KINDS[name]
    audio = tones(SECONDS, rate)
    path = write_ffmpeg(tmp_path / name, audio, rate, container, codec, picture)
    check_like(path, audio, rate)


def check_like(path: Path, audio: np.ndarray, rate: int) -> None:
    with AudioReader(path) as reader:
        blocks = list(reader.blocks(1.0))
        facts = reader.facts()
    assert (facts.sample_rate, facts.channels) == (rate, 2)
    assert abs(facts.duration_s - SECONDS) < 0.1
    assert {block.shape[1] for block in blocks[:-1]} == {rate}
    assert all(block.dtype == np.float32 and block.shape[0] == 2 for block in blocks)
    got = np.concatenate(blocks, axis=1)[:, rate : 2 * rate]
    for channel in range(2):  # the loudest frequency is the channel's tone
        peak_hz = int(np.abs(np.fft.rfft(got[channel])).argmax())
        assert peak_hz == 300 * (channel + 1)
        assert np.sqrt(np.mean(got[channel] ** 2)) == pytest.approx(0.5 / 2**0.5, rel=0.1)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_lossless_is_exact(tmp_path: Path, subtype: str) -> None:
    audio = np.round(tones(0.5, 8_000, 3) * 2**15) / np.float32(2**15)
    path = write_soundfile(tmp_path / "x.wav", audio, 8_000, subtype=subtype)
    np.testing.assert_array_equal(decoded(path), audio)


def test_matroska_pcm_is_exact(tmp_path: Path) -> None:
    audio = np.round(tones(0.5, RATE) * 2**14) / np.float32(2**15)
    path = write_ffmpeg(tmp_path / "x.mkv", audio, RATE, "matroska", "pcm_s16le")
    np.testing.assert_allclose(decoded(path), audio, atol=2**-15)


@pytest.mark.parametrize("rate", [2_000, 8_000, 11_025, 96_001, 192_000, 384_000])
def test_any_rate(tmp_path: Path, rate: int) -> None:
    path = write_soundfile(tmp_path / "x.wav", tones(0.1, rate, 1), rate)
    with AudioReader(path) as reader:
        assert reader.info.sample_rate == rate
        assert sum(block.shape[1] for block in reader.blocks()) == round(0.1 * rate)


def test_one_sample(tmp_path: Path) -> None:
    path = write_soundfile(tmp_path / "x.wav", np.full((1, 1), 0.5, np.float32), 48_000)
    assert decoded(path).shape == (1, 1)


def test_64_channels(tmp_path: Path) -> None:
    path = write_soundfile(tmp_path / "x.wav", tones(0.1, 8_000, 64), 8_000)
    assert decoded(path).shape == (64, 800)


def test_format_that_changes_on_the_way(tmp_path: Path) -> None:
    """Two MP3 streams of different rate and channels in one file: the first one's format holds."""
    low = write_soundfile(tmp_path / "l.mp3", tones(2.0, 22_050, 1), 22_050, format="MP3")
    high = write_soundfile(tmp_path / "h.mp3", tones(2.0, RATE, 2), RATE, format="MP3")
    path = put(tmp_path / "x.mp3", high.read_bytes()[: 20_000 // 417 * 417] + low.read_bytes())
    audio = decoded(path)
    assert audio.shape[0] == 2
    assert audio.shape[1] > 2.0 * RATE


def test_read_clip_is_mono_at_the_rate_asked_for(tmp_path: Path) -> None:
    audio = tones(1.0, 22_050, 2)
    path = write_soundfile(tmp_path / "x.flac", audio, 22_050)
    clip = read_clip(path, 32_000)
    assert clip.shape == (32_000,)
    assert clip.dtype == np.float32


def test_read_clip_refuses_what_is_no_clip(tmp_path: Path) -> None:
    path = write_soundfile(tmp_path / "x.flac", np.zeros((1, 8_000 * 601), np.float32), 8_000)
    with pytest.raises(AudioTooLong):
        read_clip(path, 8_000)


# Values


def test_nan_and_infinity_become_zero_and_peaks_are_bounded(tmp_path: Path) -> None:
    values = struct.pack("<5f", float("nan"), float("inf"), 1e30, -9.0, 0.25) * 4_000
    path = put(tmp_path / "x.wav", wav_bytes(values, encoding=3, bits=32))
    audio = decoded(path)[0]
    np.testing.assert_array_equal(audio[:5], [0.0, 0.0, 8.0, -8.0, 0.25])
    assert np.isfinite(audio).all()


# Damage and lies


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("one.wav", b"R"),
        ("text.wav", b"hello, this is no audio file\n" * 50),
        ("html.flac", b"<html><body>404</body></html>"),
        ("random.mp3", np.random.default_rng(1).bytes(300_000)),
        ("chunk.wav", b"RIFF\xff\xff\xff\xffWAVEfmt \xff\xff\xff\x7f" + b"\0" * 100),
        ("meta.flac", b"fLaC\x84\xff\xff\xff" + b"\0" * 1000),
        ("id3.mp3", b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + b"\0" * 5000),
        ("ch0.wav", wav_bytes(channels=0)),
        ("bits0.wav", wav_bytes(bits=0)),
        ("kind.wav", wav_bytes(encoding=0x1234)),
        ("riff.wav", b"RIFF"),
    ],
)
def test_what_is_no_audio_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(AudioError):
        decoded(put(tmp_path / name, data))


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    path = put(tmp_path / "no extension at all", wav_bytes())
    assert decoded(path).shape == (1, 16_000)


def test_empty_file(tmp_path: Path) -> None:
    with pytest.raises(AudioEmpty, match="0 bytes"):
        AudioReader(put(tmp_path / "x.wav", b""))


def test_no_samples(tmp_path: Path) -> None:
    with pytest.raises(AudioEmpty):
        decoded(put(tmp_path / "x.wav", wav_bytes(b"")))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        AudioReader(tmp_path / "x.wav")


@pytest.mark.parametrize("sample_rate", [1, 1_999, 384_001, 4_000_000_000])
def test_rate_out_of_range(tmp_path: Path, sample_rate: int) -> None:
    path = put(tmp_path / "x.wav", wav_bytes(sample_rate=sample_rate))
    with pytest.raises((AudioUnsupported, AudioUnreadable)):
        decoded(path)


@pytest.mark.parametrize("channels", [65, 1_000, 65_535])
def test_too_many_channels(tmp_path: Path, channels: int) -> None:
    with pytest.raises(AudioUnsupported, match="channels"):
        decoded(put(tmp_path / "x.wav", wav_bytes(channels=channels)))


def test_limits_come_from_the_settings() -> None:
    limits = AudioLimits.from_settings(Settings(max_channels=3))
    assert limits.max_channels == 3
    assert AudioLimits.from_settings(Settings()) == AudioLimits()


def test_declared_too_long(tmp_path: Path) -> None:
    path = write_soundfile(tmp_path / "x.flac", tones(1.0, 8_000, 1), 8_000)
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F  # the high bits of the total number of samples
    data[22:26] = b"\xff\xff\xff\xff"
    with pytest.raises(AudioTooLong, match="declares"):
        decoded(put(path, bytes(data)))


def test_decoded_too_long(tmp_path: Path) -> None:
    path = write_soundfile(tmp_path / "x.ogg", tones(3.0, 8_000, 1), 8_000)
    with pytest.raises(AudioTooLong, match="limit"):
        decoded(path, AudioLimits(max_duration_s=2.0))


@pytest.mark.parametrize("kind", ["wav", "flac", "aiff", "mp3"])
def test_truncated(tmp_path: Path, kind: str) -> None:
    path = write_soundfile(tmp_path / f"x.{kind}", tones(4.0, RATE), RATE)
    data = path.read_bytes()
    with pytest.raises(AudioTruncated):
        decoded(put(path, data[: len(data) // 2]))


@pytest.mark.parametrize("declared", [0, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF - 44])
def test_streamed_wav_declares_nothing(tmp_path: Path, declared: int) -> None:
    path = put(tmp_path / "x.wav", wav_bytes(declared_bytes=declared))
    if declared == 0:  # libsndfile may believe it
        with pytest.raises(AudioEmpty):
            decoded(path)
    else:
        assert decoded(path).shape == (1, 16_000)


def test_garbage_before_an_mp3_is_skipped(tmp_path: Path) -> None:
    path = write_soundfile(tmp_path / "x.mp3", tones(2.0, RATE), RATE)
    data = np.random.default_rng(2).bytes(3_000) + path.read_bytes()
    assert decoded(put(path, data)).shape[1] > 1.5 * RATE


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["flac", "mp3", "ogg", "m4a"])
def test_flipped_bytes_end_in_audio_or_a_clear_error(tmp_path: Path, kind: str, seed: int) -> None:
    audio = tones(2.0, RATE)
    path = tmp_path / f"x.{kind}"
    if kind == "m4a":
        write_ffmpeg(path, audio, RATE, "ipod", "aac")
    else:
        write_soundfile(path, audio, RATE)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for at in rng.integers(100, len(data), 40):
        data[at] = rng.integers(256)
    put(path, bytes(data))
    with suppress(AudioError):  # and no other error
        got = decoded(path)
        assert np.isfinite(got).all()
        assert np.abs(got).max() <= 8.0


# Files that would reach out


@pytest.fixture
def listener() -> Iterator[tuple[int, list[object]]]:
    """A port on this machine, and the connections that it received."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.1)
    seen: list[object] = []
    stop = threading.Event()

    def accept() -> None:
        while not stop.is_set():
            try:
                connection, address = server.accept()
            except TimeoutError:
                continue
            seen.append(address)
            connection.close()

    thread = threading.Thread(target=accept)
    thread.start()
    yield server.getsockname()[1], seen
    stop.set()
    thread.join()
    server.close()


HLS = "#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10.0,\n{target}\n#EXT-X-ENDLIST\n"
PLAYLISTS = {
    "x.m3u8": HLS,
    "x.mp3": HLS,
    "x.wav": "ffconcat version 1.0\nfile '{target}'\n",
    "x.ffconcat": "ffconcat version 1.0\nfile '{target}'\n",
    "x.pls": "[playlist]\nFile1={target}\nNumberOfEntries=1\n",
    "x.sdp": (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"
    ),
    "x.mpd": (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
        '<AdaptationSet mimeType="audio/mp4"><Representation id="1"><BaseURL>{target}</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>"
    ),
    "x.xspf": (
        "<playlist><trackList><track><location>{target}</location></track></trackList></playlist>"
    ),
}


@pytest.mark.parametrize("name", PLAYLISTS)
@pytest.mark.parametrize("relative", [True, False])
def test_playlists_open_no_other_file(tmp_path: Path, name: str, relative: bool) -> None:
    secret = write_soundfile(tmp_path / "secret.mp3", tones(2.0, RATE), RATE)
    target = secret.name if relative else str(secret)
    path = put(tmp_path / name, PLAYLISTS[name].format(target=target).encode())
    with pytest.raises(AudioUnreadable):
        decoded(path)


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_open_no_connection(
    tmp_path: Path, listener: tuple[int, list[object]], name: str
) -> None:
    port, seen = listener
    target = f"http://127.0.0.1:{port}/x.mp3"
    path = put(tmp_path / name, PLAYLISTS[name].format(target=target).encode())
    with pytest.raises(AudioUnreadable):
        decoded(path)
    assert seen == []


def test_the_listener_would_notice(listener: tuple[int, list[object]]) -> None:
    port, seen = listener
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.recv(1)
    assert len(seen) == 1


# Memory


def test_memory_is_bounded(tmp_path: Path) -> None:
    """An hour of stereo, 635 MB as float samples, is read in under 150 MB more than an import."""
    path = tmp_path / "long.flac"
    minute = np.zeros((22_050 * 60, 2), np.int16)
    with soundfile.SoundFile(path, "w", 22_050, 2, subtype="PCM_16") as file:
        for _ in range(60):
            file.write(minute)
    code = (
        "import resource, sys; from pathlib import Path; from common.audio import AudioReader\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "with AudioReader(Path(sys.argv[1])) as reader:\n"
        "    n = sum(block.shape[1] for block in reader.blocks())\n"
        "print(n, peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    frames, kibibytes = (int(word) for word in done.stdout.split())
    assert frames == 3600 * 22_050
    assert kibibytes < 150 * 1024


def test_many_channels_make_shorter_blocks(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    audio = np.zeros((192_000, 64), np.int16)
    with soundfile.SoundFile(path, "w", 192_000, 64, subtype="PCM_16", format="RF64") as file:
        for _ in range(4):
            file.write(audio)
    with AudioReader(path) as reader:
        sizes = [block.size for block in reader.blocks(60.0)]
    assert max(sizes) <= 32 * 1024 * 1024
    assert sum(sizes) == 4 * audio.size
