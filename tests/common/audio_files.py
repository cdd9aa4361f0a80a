"""Audio files for tests, made on the spot: every format we promise to read, and hostile ones."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

Array = np.ndarray[Any, np.dtype[np.float32]]


def tones(seconds: float, sample_rate: int, channels: int = 2) -> Array:
    """Return (C, n): a sine of another frequency on each channel, at half scale."""
    time_s = np.arange(round(seconds * sample_rate)) / sample_rate
    rows = [0.5 * np.sin(2 * np.pi * 300.0 * (c + 1) * time_s) for c in range(channels)]
    return np.stack(rows).astype(np.float32)


def write_soundfile(path: Path, audio: Array, sample_rate: int, **options: str) -> Path:
    """Write (C, n) with libsndfile."""
    soundfile.write(path, audio.T, sample_rate, **options)
    return path


def write_ffmpeg(
    path: Path,
    audio: Array,
    sample_rate: int,
    container: str,
    codec: str,
    picture: bool = False,
) -> Path:
    """Write stereo (2, n) with FFmpeg, with a moving picture beside it if asked."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=sample_rate)
        stream.layout = "stereo"
        stream.bit_rate = 128_000
        video = None
        if picture:
            video = out.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        size = stream.codec_context.frame_size or 1024
        kind = stream.codec_context.format
        convert = av.AudioResampler(
            format=kind.name if kind else "fltp", layout="stereo", rate=sample_rate, frame_size=size
        )
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(audio), format="fltp", layout="stereo"
        )
        frame.sample_rate = sample_rate
        for ready in [*convert.resample(frame), *convert.resample(None)]:
            out.mux(stream.encode(ready))
        out.mux(stream.encode(None))
        if video is not None:
            for _ in range(10):
                black = av.VideoFrame(64, 48, "yuv420p")
                for plane in black.planes:
                    plane.update(bytes(plane.buffer_size))
                out.mux(video.encode(black))
            out.mux(video.encode(None))
    return path


def wav_bytes(
    data: bytes = b"\0\0" * 16_000,
    encoding: int = 1,
    channels: int = 1,
    sample_rate: int = 16_000,
    bits: int = 16,
    declared_bytes: int | None = None,
) -> bytes:
    """Return a WAV file whose header says whatever it is told to."""
    declared = len(data) if declared_bytes is None else declared_bytes
    block_align = (channels * bits // 8) & 0xFFFF
    byte_rate = (sample_rate * channels * bits // 8) & 0xFFFFFFFF
    layout = struct.pack("<HHIIHH", encoding, channels, sample_rate, byte_rate, block_align, bits)
    return (
        b"RIFF"
        + struct.pack("<I", (36 + declared) & 0xFFFFFFFF)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + layout
        + b"data"
        + struct.pack("<I", declared)
        + data
    )
