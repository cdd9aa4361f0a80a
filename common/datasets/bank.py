"""Clips decoded once and kept for all that train: ``ClipBank``."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.audio import read_clip
from common.datasets.clips import Clip
from common.errors import AudioError, ClipsCorrupt, DatasetMissing

Waveform = np.ndarray[Any, np.dtype[np.float32]]
Pcm = np.ndarray[Any, np.dtype[np.int16]]

PADDING_LEVEL = 2.0**-12
"""Trailing samples of UrbanSound8K below this (-72 dB) are padding; lossy coding blurs zeros."""
DECODING_THREADS = 4
CLIPS_AT_ONCE = 16
"""Decoded before they are written, which bounds the memory."""
SHOWN_CLIPS = 10


@dataclass(frozen=True)
class Skipped:
    """A clip that a bank does not hold, and why."""

    clip: Clip
    reason: str


class ClipBank:
    """Clips decoded once, as mono 16-bit samples in one memory-mapped file.

    Processes that open the same bank share its pages. Where a bank in the cache already holds all
    the clips asked for, unchanged and at the same rate, it is used instead of a new one.
    ``clips`` are those that it holds, ``skipped`` those that could not be decoded.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        samples: Path,
        spans: Mapping[str, list[int]],
        sample_rate: int,
        skipped: Sequence[Skipped] = (),
    ) -> None:
        self.clips = tuple(clips)
        self.skipped = tuple(skipped)
        self.sample_rate = sample_rate
        self._spans = {_place(clip): spans[_key(clip)] for clip in clips}
        self._samples = np.memmap(samples, dtype=np.int16, mode="r")
        self._digests: dict[tuple[Path, bool], bytes] = {}

    @classmethod
    def open(
        cls,
        clips: Sequence[Clip],
        cache: Path,
        sample_rate: int = 32_000,
        *,
        skip_corrupt: bool = False,
        progress: bool = False,
    ) -> ClipBank:
        """Return the bank of ``clips``, decoding them under a file lock if no cache holds them.

        Args:
            cache: a folder for decoded clips; 64 kB for each second at 32 kHz.
            skip_corrupt: leave out clips that cannot be decoded, and list them in ``skipped``.
            progress: show a bar while decoding.

        Raises:
            ClipsCorrupt: clips cannot be decoded: any, or with ``skip_corrupt`` all.
            DatasetMissing: a file is no longer there.
            OSError: a file may not be read, or the cache has no room; nothing half-written is left.
            ValueError: there are no clips.
        """
        if not clips:
            raise ValueError("a bank needs at least one clip")
        check_present(clips)
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / "clips.lock"):
            keys = [_key(clip) for clip in clips]
            index = _find(cache, keys, sample_rate)
            if index is None:
                index = _build(cache, clips, keys, sample_rate, skip_corrupt, progress)
            told = _told(index)
            reasons: dict[str, str] = told["skipped"]
            skipped = [
                Skipped(clip, reasons[key])
                for clip, key in zip(clips, keys, strict=True)
                if key in reasons
            ]
            if skipped and (not skip_corrupt or len(skipped) == len(clips)):
                raise _corrupt(skipped, len(clips))
            kept = [clip for clip, key in zip(clips, keys, strict=True) if key not in reasons]
            return cls(kept, _samples_of(index), told["spans"], sample_rate, skipped)

    def waveform(self, clip: Clip) -> Waveform:
        """Return a clip as float32 (n,) in [-1, 1], without padding, at least one sample."""
        return self.pcm(clip).astype(np.float32) / np.float32(32767.0)

    def pcm(self, clip: Clip) -> Pcm:
        """Return the same as int16 (n,), full scale at 32767; a view that must not be changed."""
        start, stop = self._spans[_place(clip)]
        return self._samples[start:stop]

    def digest(self, clip: Clip) -> bytes:
        """Return the SHA-256 of a clip's samples, which are read once however often it is asked."""
        place = _place(clip)
        if place not in self._digests:
            self._digests[place] = hashlib.sha256(self.pcm(clip).tobytes()).digest()
        return self._digests[place]

    def n_samples(self, clip: Clip) -> int:
        """Return the length of a clip without reading it."""
        start, stop = self._spans[_place(clip)]
        return stop - start


def check_present(clips: Sequence[Clip]) -> None:
    """Raise DatasetMissing where files of ``clips`` are missing; says how many and the first."""
    missing = [clip.path for clip in clips if not clip.path.is_file()]
    if missing:
        raise DatasetMissing(
            f"{len(missing)} of {len(clips)} clips are missing, the first is {missing[0]}"
        )


def _is_trimmed(clip: Clip) -> bool:
    return clip.dataset == "us8k"


def _place(clip: Clip) -> tuple[Path, bool]:
    return clip.path, _is_trimmed(clip)


def _key(clip: Clip) -> str:
    """Return what a clip's samples depend on: where the file is, its size and time, its padding."""
    stat = clip.path.stat()
    key = f"{clip.path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    return f"{key}|trimmed" if _is_trimmed(clip) else key


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the operating system frees it whatever happens."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _samples_of(index: Path) -> Path:
    return index.with_suffix(".int16")


def _told(index: Path) -> dict[str, Any]:
    """Return what an index says, nothing where it or its samples are damaged or of an old kind."""
    try:
        told: dict[str, Any] = json.loads(index.read_text())
        if _samples_of(index).stat().st_size == 2 * told["samples"]:
            return {"spans": told["spans"], "skipped": told["skipped"]}
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return {"spans": {}, "skipped": {}}


def _find(cache: Path, keys: Sequence[str], sample_rate: int) -> Path | None:
    for index in sorted(cache.glob(f"clips-{sample_rate}-*.json")):
        told = _told(index)
        if all(key in told["spans"] or key in told["skipped"] for key in keys):
            return index
    return None


def _build(
    cache: Path,
    clips: Sequence[Clip],
    keys: Sequence[str],
    sample_rate: int,
    skip_corrupt: bool,
    progress: bool,
) -> Path:
    """Decode ``clips`` into a new bank, all of them or, without ``skip_corrupt``, none."""
    digest = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:16]
    index = cache / f"clips-{sample_rate}-{digest}.json"
    for left in cache.glob("clips-*.part"):  # of a process that was killed; the lock is ours
        left.unlink()
    beside = index.with_suffix(".part")
    try:
        with beside.open("wb") as file:
            spans, skipped = _write(file, clips, keys, sample_rate, progress)
        if skipped and (not skip_corrupt or not spans):
            raise _corrupt(list(skipped.values()), len(clips))
        os.replace(beside, _samples_of(index))
        told = {
            "sample_rate": sample_rate,
            "samples": sum(stop - start for start, stop in spans.values()),
            "spans": spans,
            "skipped": {key: one.reason for key, one in skipped.items()},
        }
        # the index comes last: a bank without one does not exist
        beside.write_text(json.dumps(told))
        os.replace(beside, index)
    finally:
        beside.unlink(missing_ok=True)
    return index


def _write(
    file: BinaryIO, clips: Sequence[Clip], keys: Sequence[str], sample_rate: int, progress: bool
) -> tuple[dict[str, list[int]], dict[str, Skipped]]:
    """Write the samples of ``clips`` one behind the other; return their spans and the corrupt."""
    todo = dict(zip(keys, clips, strict=True))
    spans: dict[str, list[int]] = {}
    skipped: dict[str, Skipped] = {}
    position = 0
    for key, decoded in zip(
        todo, _shown(_decoded(list(todo.values()), sample_rate), len(todo), progress), strict=True
    ):
        if isinstance(decoded, Skipped):
            skipped[key] = decoded
            continue
        file.write(decoded.tobytes())
        spans[key] = [position, position + len(decoded)]
        position += len(decoded)
    return spans, skipped


def _decoded(clips: Sequence[Clip], sample_rate: int) -> Iterator[Pcm | Skipped]:
    """Yield the samples of each clip, or why there are none. Decoders let other threads run."""
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for start in range(0, len(clips), CLIPS_AT_ONCE):
            part = clips[start : start + CLIPS_AT_ONCE]
            yield from pool.map(_decode, part, [sample_rate] * len(part))


def _decode(clip: Clip, sample_rate: int) -> Pcm | Skipped:
    try:
        waveform = _trimmed(read_clip(clip.path, sample_rate), clip)
    except AudioError as error:
        return Skipped(clip, str(error))
    pcm: Pcm = np.round(np.clip(waveform, -1.0, 1.0) * 32767.0).astype("<i2")
    return pcm


def _trimmed(waveform: Waveform, clip: Clip) -> Waveform:
    if not _is_trimmed(clip):
        return waveform
    loud = np.flatnonzero(np.abs(waveform) >= PADDING_LEVEL)
    return waveform[: int(loud[-1]) + 1] if len(loud) else waveform


def _shown(decoded: Iterable[Pcm | Skipped], total: int, progress: bool) -> Iterable[Pcm | Skipped]:
    if not progress:
        return decoded
    from tqdm import tqdm  # of the training extra: who only infers does not have it

    bar: Iterable[Pcm | Skipped] = tqdm(decoded, total=total, desc="decoding", unit="clip")
    return bar


def _corrupt(skipped: Sequence[Skipped], total: int) -> ClipsCorrupt:
    named = "; ".join(f"{one.clip.path}: {one.reason}" for one in skipped[:SHOWN_CLIPS])
    more = f"; and {len(skipped) - SHOWN_CLIPS} more" if len(skipped) > SHOWN_CLIPS else ""
    return ClipsCorrupt(
        f"{len(skipped)} of {total} clips cannot be decoded: {named}{more}",
        {one.clip.path: one.reason for one in skipped},
    )
