"""The decoders behind ``common.audio``: libsndfile and FFmpeg, one class each.

Owns which decoder gets a file, and that a hostile file reaches nothing but itself. ``soundfile``
reads the formats it knows by their first bytes (WAV, RF64, W64, FLAC, AIFF, AU, CAF, Ogg);
everything else, and what it refuses, goes to FFmpeg through PyAV. FFmpeg is given an open file
instead of a path, no protocol at all, a list of plain containers and audio decoders only, so that a
playlist or a concat script that calls itself audio can open neither another local file nor a
connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, Self

import av
import numpy as np
import soundfile

from common.audio_headers import declared_frames
from common.errors import (
    AudioEmpty,
    AudioError,
    AudioTruncated,
    AudioUnreadable,
    AudioUnsupported,
)
from common.settings import Settings

SOUNDFILE_MAGICS = (b"RIFF", b"RF64", b"riff", b"FORM", b"fLaC", b".snd", b"caff", b"OggS")
FFMPEG_CONTAINERS = (
    "wav,w64,aiff,au,caf,flac,mp3,ogg,mov,mp4,m4a,3gp,3g2,mj2,aac,ac3,eac3,asf,matroska,webm,"
    "avi,flv,mpeg,mpegts"
)
"""Containers that hold their own samples. Never hls, dash, concat, image2, lavfi, sdp or rtsp."""
FFMPEG_ESTIMATES = frozenset({"mp3", "aac", "ac3", "eac3", "mpeg", "mpegts", "flv", "avi"})
"""Containers without a trustworthy length: FFmpeg guesses it from the bit rate."""

MAX_BLOCK_VALUES = 32 * 1024 * 1024
"""Samples times channels in one block (128 MB); longer blocks are shortened to this."""
SOUNDFILE_STEP_FRAMES = 8_192
"""Read at once: short, since libsndfile gives nothing of a step in which it meets damage."""

AudioBlock = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class AudioLimits:
    """What is accepted. Defaults are those of the settings."""

    max_duration_s: float = 24 * 3600.0
    max_channels: int = 64
    min_sample_rate: int = 2_000
    max_sample_rate: int = 384_000

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the limits that the operator has set."""
        return cls(
            max_duration_s=settings.max_duration_s,
            max_channels=settings.max_channels,
            min_sample_rate=settings.min_sample_rate,
            max_sample_rate=settings.max_sample_rate,
        )


@dataclass(frozen=True)
class AudioInfo:
    """What the header says. ``declared_duration_s`` is None where no header can be believed."""

    sample_rate: int
    channels: int
    declared_duration_s: float | None
    container: str
    codec: str


class Source(Protocol):
    """A decoder: its facts, and its samples in pieces of any size."""

    info: AudioInfo

    def pieces(self, frames: int) -> Iterator[AudioBlock]:
        """Yield (C, n) float32, n at most about ``frames``; raise AudioError on damage."""

    def close(self) -> None: ...


def open_source(path: Path, limits: AudioLimits) -> Source:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic in SOUNDFILE_MAGICS:
        # TypeError: soundfile takes any name that ends in .raw for headerless samples
        with suppress(soundfile.LibsndfileError, TypeError):
            return _SoundfileSource(path, limits)
    return _FfmpegSource(path, limits)


def _check_range(sample_rate: int, channels: int, limits: AudioLimits) -> None:
    if not limits.min_sample_rate <= sample_rate <= limits.max_sample_rate:
        raise AudioUnsupported(
            f"sample rate {sample_rate} Hz; accepted are {limits.min_sample_rate} to "
            f"{limits.max_sample_rate} Hz"
        )
    if not 1 <= channels <= limits.max_channels:
        raise AudioUnsupported(f"{channels} channels; accepted are 1 to {limits.max_channels}")


def _damaged(frames: int, sample_rate: int) -> AudioError:
    if frames == 0:
        return AudioUnreadable("damaged: nothing can be decoded")
    return AudioTruncated(f"damaged: decoding stops after {frames / sample_rate:.1f} s")


class _SoundfileSource:
    """Reads with libsndfile."""

    def __init__(self, path: Path, limits: AudioLimits) -> None:
        self._file = soundfile.SoundFile(path)
        try:
            rate, channels = int(self._file.samplerate), int(self._file.channels)
            _check_range(rate, channels, limits)
            frames = declared_frames(path)
            if frames is None and self._file.format == "FLAC" and 0 < self._file.frames < 2**40:
                frames = int(self._file.frames)
            self.info = AudioInfo(
                sample_rate=rate,
                channels=channels,
                declared_duration_s=None if frames is None else frames / rate,
                container=str(self._file.format),
                codec=str(self._file.subtype),
            )
        except BaseException:
            self._file.close()
            raise

    def pieces(self, frames: int) -> Iterator[AudioBlock]:
        step = min(frames, SOUNDFILE_STEP_FRAMES)
        done = 0
        while True:
            try:
                piece = self._file.read(step, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise _damaged(done, self.info.sample_rate) from error
            if not len(piece):
                return
            done += len(piece)
            yield piece.T

    def close(self) -> None:
        self._file.close()


@cache
def _audio_decoders() -> str:
    """Return FFmpeg's audio decoders. No picture is ever decoded, not even to look at its size."""
    names = set()
    for name in av.codecs_available:
        with suppress(ValueError):  # one that only encodes
            codec = av.Codec(name, "r")
            if codec.type == "audio":
                names.add(codec.name)
    return ",".join(sorted(names))


class _NamelessFile:
    """A file for FFmpeg that has no name to guess a format from, and whose seeks fail quietly."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.read = self._file.read
        self.tell = self._file.tell
        self.close = self._file.close

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class _FfmpegSource:
    """Reads with FFmpeg. A format that changes on the way is converted to that of the start."""

    def __init__(self, path: Path, limits: AudioLimits) -> None:
        self._limits = limits
        self._frames = 0
        self._converter: av.AudioResampler | None = None
        self._converts: tuple[int, str, str] | None = None
        self._file = _NamelessFile(path)
        try:
            self._container = self._open()
        except BaseException:
            self._file.close()
            raise
        try:
            self._decoded = self._decode()
            self._first = next(self._decoded, None)
            if self._first is None:
                raise AudioEmpty("the file opens, but holds no samples")
            rate, channels = int(self._first.sample_rate), len(self._first.layout.channels)
            _check_range(rate, channels, limits)
            self._layout = self._first.layout
            self.info = AudioInfo(
                sample_rate=rate,
                channels=channels,
                declared_duration_s=self._declared_s(path),
                container=str(self._container.format.name),
                codec=str(self._stream.codec_context.name),
            )
        except BaseException:
            self.close()
            raise

    def _open(self) -> Any:
        options = {
            "protocol_whitelist": "none",
            "format_whitelist": FFMPEG_CONTAINERS,
            "codec_whitelist": _audio_decoders(),
        }
        try:
            container = av.open(self._file, options=options, metadata_errors="replace")
        except (av.FFmpegError, OSError, EOFError, ValueError) as error:
            raise AudioUnreadable("not audio in a known format, or damaged") from error
        if not container.streams.audio:
            container.close()
            raise AudioUnreadable("the file has no audio stream")
        self._stream = container.streams.audio[0]
        context = self._stream.codec_context
        if context is None or not hasattr(context, "sample_rate"):
            container.close()
            raise AudioUnreadable("the audio is in an unknown codec")
        impossible = context.channels == 0 and context.name.startswith("pcm_")
        if impossible or context.channels > self._limits.max_channels:
            count = "an impossible number of" if impossible else str(context.channels)
            container.close()
            raise AudioUnsupported(
                f"{count} channels; accepted are 1 to {self._limits.max_channels}"
            )
        return container

    def _declared_s(self, path: Path) -> float | None:
        frames = declared_frames(path)
        if frames is not None:
            return frames / int(self._stream.codec_context.sample_rate or 1)
        names = set(self._container.format.name.split(","))
        if names & FFMPEG_ESTIMATES or "ogg" in names:
            return None
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        alone = len(self._container.streams) == 1
        if alone and self._container.duration is not None:
            return float(self._container.duration) / av.time_base
        return None

    def _decode(self) -> Iterator[Any]:
        damaged_packets = 0
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except av.InvalidDataError:
                    damaged_packets += 1
                    continue
                for frame in frames:
                    if frame.samples:
                        yield frame
                        self._frames += frame.samples
        except (av.FFmpegError, OSError, EOFError, ValueError) as error:
            raise _damaged(
                self._frames, int(self._stream.codec_context.sample_rate or 1)
            ) from error
        if damaged_packets and not self._frames:
            raise _damaged(0, 1)

    def pieces(self, frames: int) -> Iterator[AudioBlock]:
        first, self._first = self._first, None
        if first is not None:
            yield from self._converted(first)
        for frame in self._decoded:
            yield from self._converted(frame)
        if self._converter is not None:
            yield from (_float_samples(out) for out in self._converter.resample(None))

    def _converted(self, frame: Any) -> Iterator[AudioBlock]:
        _check_range(frame.sample_rate, len(frame.layout.channels), self._limits)
        arrives = (frame.sample_rate, frame.layout.name, frame.format.name)
        same = frame.sample_rate == self.info.sample_rate and (
            len(frame.layout.channels) == self.info.channels
        )
        if self._converter is not None and (same or arrives != self._converts):
            yield from (_float_samples(out) for out in self._converter.resample(None))
            self._converter = None
        if same:
            yield _float_samples(frame)
            return
        if self._converter is None:
            self._converts = arrives
            self._converter = av.AudioResampler(
                format="fltp", layout=self._layout, rate=self.info.sample_rate
            )
        yield from (_float_samples(out) for out in self._converter.resample(frame))

    def close(self) -> None:
        self._container.close()
        self._file.close()


def _float_samples(frame: Any) -> AudioBlock:
    """Return the samples of an FFmpeg frame as float32 (C, n), full scale at 1."""
    samples: np.ndarray[Any, Any] = frame.to_ndarray()
    if frame.format.is_packed:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128.0) / 128.0
    if np.issubdtype(samples.dtype, np.integer):
        scale = np.float32(1.0 / -float(np.iinfo(samples.dtype).min))
        return samples.astype(np.float32) * scale
    result: AudioBlock = samples.astype(np.float32, copy=False)
    return result
