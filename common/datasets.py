"""The clips that models are trained and judged on: published layouts in, splits and waveforms out.

Reads ESC-50 (also its ESC-10 part), UrbanSound8K and the Free Spoken Digit Dataset in the layouts
they are published in, whatever the audio format their tables name. The labels are those of
``common.labels``; clips of other classes are left out. Mixing and augmentation live elsewhere.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from common.audio import read_clip
from common.labels import LABELS

Dataset = Literal["esc10", "us8k", "digits"]
Split = Literal["train", "validation", "test"]
Waveform = np.ndarray[Any, np.dtype[np.float32]]

FOLDERS: dict[Dataset, tuple[str, ...]] = {
    "esc10": ("esc-10", "ESC-10", "ESC-50", "ESC-50-master"),
    "us8k": ("urbansound8k-part", "UrbanSound8K"),
    "digits": ("free-spoken-digit", "free-spoken-digit-dataset"),
}
"""Where a data set may lie inside the data folder; the first that exists is read."""

RENAMED = {"dog_bark": "dog"}
"""Class names that mean one of ours."""

ESC_TEST_FOLD, ESC_VALIDATION_FOLD = 5, 4
US8K_TEST_FOLD = 3
US8K_VALIDATION_SHARE = 0.1
DIGITS_TEST_SPEAKER, DIGITS_VALIDATION_SPEAKER = "theo", "nicolas"

PADDING_LEVEL = 2.0**-12
"""Trailing samples of UrbanSound8K below this (-72 dB) are padding; lossy coding blurs zeros."""


@dataclass(frozen=True)
class Clip:
    """A labelled training example. ``source_id`` tells what recording or speaker it is from."""

    path: Path
    label: str
    dataset: Dataset
    fold: int
    source_id: str
    index: int  # position in the list that ``load_clips`` returned


def load_clips(data: Path) -> list[Clip]:
    """Return every clip under ``data`` whose class is in the label set, in a stable order.

    Raises:
        FileNotFoundError: a data set, its table or a file named in it is missing; says which.
    """
    drafts: list[tuple[Dataset, Path, str, int, str]] = []
    for dataset, read in _READERS.items():
        folder = _folder_of(dataset, data)
        for path, name, fold, source_id in read(folder):
            label = RENAMED.get(name, name)
            if label in LABELS:
                drafts.append((dataset, path, label, fold, source_id))
    clips = [
        Clip(path=path, label=label, dataset=dataset, fold=fold, source_id=source_id, index=index)
        for index, (dataset, path, label, fold, source_id) in enumerate(drafts)
    ]
    missing = [clip.path for clip in clips if not clip.path.is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} clips are missing, the first is {missing[0]}")
    return clips


def split_of(clip: Clip) -> Split:
    """Return which part of the data a clip belongs to.

    Test: ESC fold 5, UrbanSound8K fold 3, digits of one speaker. Validation: ESC fold 4, a tenth
    of the other UrbanSound8K sources (chosen by hash), digits of another speaker.
    """
    if clip.dataset == "esc10":
        held_out = {ESC_TEST_FOLD: "test", ESC_VALIDATION_FOLD: "validation"}
        return _split(held_out.get(clip.fold, "train"))
    if clip.dataset == "digits":
        held_out_speakers = {
            DIGITS_TEST_SPEAKER: "test",
            DIGITS_VALIDATION_SPEAKER: "validation",
        }
        return _split(held_out_speakers.get(clip.source_id, "train"))
    if clip.fold == US8K_TEST_FOLD:
        return "test"
    draw = int(hashlib.sha256(clip.source_id.encode()).hexdigest()[:8], 16) / 16**8
    return "validation" if draw < US8K_VALIDATION_SHARE else "train"


def exclude_leaks(clips: Iterable[Clip]) -> list[Clip]:
    """Return ``clips`` without those that share a recording with a split held out from them.

    ESC and UrbanSound8K both draw on Freesound. A training clip goes if its recording is also in
    the test or validation split, a validation clip if it is also in the test split.
    """
    clips = list(clips)
    sources: dict[Split, set[tuple[str, str]]] = {
        "train": set(),
        "validation": set(),
        "test": set(),
    }
    for clip in clips:
        sources[split_of(clip)].add(_source(clip))
    banned: dict[Split, set[tuple[str, str]]] = {
        "train": sources["validation"] | sources["test"],
        "validation": sources["test"],
        "test": set(),
    }
    return [clip for clip in clips if _source(clip) not in banned[split_of(clip)]]


def clips_of(data: Path, split: Split) -> list[Clip]:
    """Return the leak-free clips of one split under ``data``."""
    return [clip for clip in exclude_leaks(load_clips(data)) if split_of(clip) == split]


def _split(name: str) -> Split:
    if name == "test":
        return "test"
    return "validation" if name == "validation" else "train"


def _source(clip: Clip) -> tuple[str, str]:
    return ("digits" if clip.dataset == "digits" else "freesound", clip.source_id)


def _folder_of(dataset: Dataset, data: Path) -> Path:
    for name in FOLDERS[dataset]:
        if (data / name).is_dir():
            return data / name
    raise FileNotFoundError(f"{data} holds none of the folders {', '.join(FOLDERS[dataset])}")


def _rows(table: Path) -> Iterator[dict[str, str]]:
    if not table.is_file():
        raise FileNotFoundError(f"the table {table} is missing")
    with table.open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


_Draft = tuple[Path, str, int, str]


def _read_esc(folder: Path) -> Iterator[_Draft]:
    for row in _rows(folder / "meta" / "esc50.csv"):
        path = folder / "audio" / row["filename"]
        yield path, row["category"], int(row["fold"]), row["src_file"]


def _read_us8k(folder: Path) -> Iterator[_Draft]:
    for row in _rows(folder / "metadata" / "UrbanSound8K.csv"):
        path = folder / "audio" / f"fold{row['fold']}" / row["slice_file_name"]
        yield path, row["class"], int(row["fold"]), row["fsID"]


def _read_digits(folder: Path) -> Iterator[_Draft]:
    for name in ("audio", "recordings"):
        paths = sorted(
            path
            for path in (folder / name).glob("*_*_*.*")
            if path.suffix in {".flac", ".wav", ".ogg"}
        )
        if paths:
            break
    else:
        raise FileNotFoundError(f"{folder} holds no audio/<digit>_<speaker>_<index>.flac")
    speakers = sorted({path.stem.split("_")[1] for path in paths})
    for path in paths:
        speaker = path.stem.split("_")[1]
        yield path, "speech", speakers.index(speaker) + 1, speaker


_READERS: dict[Dataset, Callable[[Path], Iterator[_Draft]]] = {
    "esc10": _read_esc,
    "us8k": _read_us8k,
    "digits": _read_digits,
}


class ClipBank:
    """Clips decoded once, as mono 16-bit samples in one memory-mapped file.

    Processes that open the same bank share its pages. Where a bank in the cache already holds all
    the clips asked for, unchanged and at the same rate, it is used instead of a new one.
    """

    def __init__(
        self, clips: Sequence[Clip], samples: Path, spans: dict[str, list[int]], sample_rate: int
    ) -> None:
        self.clips = tuple(clips)
        self.sample_rate = sample_rate
        self._spans = {clip.path: spans[_key(clip.path)] for clip in clips}
        self._samples = np.memmap(samples, dtype=np.int16, mode="r")

    @classmethod
    def open(cls, clips: Sequence[Clip], cache: Path, sample_rate: int = 32_000) -> ClipBank:
        """Return the bank of ``clips``, decoding them under a file lock if no cache holds them.

        Raises:
            AudioError: a clip cannot be decoded.
            ValueError: there are no clips.
        """
        if not clips:
            raise ValueError("a bank needs at least one clip")
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / "clips.lock"):
            keys = [_key(clip.path) for clip in clips]
            found = _find(cache, keys, sample_rate) or _build(cache, clips, keys, sample_rate)
            spans = json.loads(found.read_text())["spans"]
        return cls(clips, found.with_suffix(".int16"), spans, sample_rate)

    def waveform(self, clip: Clip) -> Waveform:
        """Return a clip as float32 (n,) in [-1, 1], without padding, at least one sample."""
        start, stop = self._spans[clip.path]
        return self._samples[start:stop].astype(np.float32) / np.float32(32767.0)

    def n_samples(self, clip: Clip) -> int:
        """Return the length of a clip without reading it."""
        start, stop = self._spans[clip.path]
        return stop - start


def _key(path: Path) -> str:
    stat = path.stat()
    return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the operating system frees it whatever happens."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _find(cache: Path, keys: Sequence[str], sample_rate: int) -> Path | None:
    for index in sorted(cache.glob(f"clips-{sample_rate}-*.json")):
        spans = json.loads(index.read_text())["spans"]
        if all(key in spans for key in keys):
            return index
    return None


def _build(cache: Path, clips: Sequence[Clip], keys: Sequence[str], sample_rate: int) -> Path:
    digest = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:16]
    index = cache / f"clips-{sample_rate}-{digest}.json"
    samples = index.with_suffix(".int16")
    beside = samples.with_suffix(".part")
    spans: dict[str, list[int]] = {}
    position = 0
    with beside.open("wb") as file:
        for clip, key in zip(clips, keys, strict=True):
            waveform = _trimmed(read_clip(clip.path, sample_rate), clip)
            pcm = np.round(np.clip(waveform, -1.0, 1.0) * 32767.0).astype("<i2")
            file.write(pcm.tobytes())
            spans[key] = [position, position + len(pcm)]
            position += len(pcm)
    os.replace(beside, samples)
    # the index comes last: a bank without one does not exist
    beside.write_text(json.dumps({"sample_rate": sample_rate, "spans": spans}))
    os.replace(beside, index)
    return index


def _trimmed(waveform: Waveform, clip: Clip) -> Waveform:
    if clip.dataset != "us8k":
        return waveform
    loud = np.flatnonzero(np.abs(waveform) >= PADDING_LEVEL)
    return waveform[: int(loud[-1]) + 1] if len(loud) else waveform
