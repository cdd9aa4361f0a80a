"""Guards against a model being tested on what it has learnt from.

A training clip leaks if a test clip is from the same Freesound recording (ESC, UrbanSound8K and
FSD50K all draw on Freesound), the same speaker or the same source of one's own, or if it holds the
same bytes under whatever name.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from common.datasets.bank import ClipBank, check_present
from common.datasets.clips import OWN_SOURCE, Clip, Dataset
from common.errors import LeakFound

FREESOUND_SETS: frozenset[Dataset] = frozenset({"esc50", "esc10", "us8k", "fsd50k"})
FREESOUND_SOURCE = "freesound:"
"""Begins a source of one's own manifest that is a Freesound id."""
SHOWN_PAIRS = 5


@dataclass(frozen=True)
class Origin:
    """What clips have in common: ``kind`` of thing, and which one where it has a name."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


@dataclass(frozen=True)
class Leak:
    """A training clip, the first test clip that it shares something with, and what that is."""

    train: Clip
    test: Clip
    shared: Origin

    @property
    def reason(self) -> str:
        """Why it is a leak, in words."""
        return f"the same {self.shared}"


@dataclass(frozen=True)
class Dropped:
    """Training clips without leaks, and what was taken out."""

    kept: tuple[Clip, ...]
    dropped: tuple[Leak, ...]


def origin_of(clip: Clip) -> Origin:
    """Return what a clip is from; two clips of equal origin must not be set apart."""
    if clip.dataset in FREESOUND_SETS:
        return Origin("Freesound id", clip.source_id)
    if clip.dataset == "digits":
        return Origin("speaker", clip.source_id)
    if clip.source_id.startswith(OWN_SOURCE):
        return Origin("file", os.path.realpath(clip.path))
    if clip.source_id.startswith(FREESOUND_SOURCE):
        return Origin("Freesound id", clip.source_id.removeprefix(FREESOUND_SOURCE))
    return Origin("source", clip.source_id)


def find_leaks(
    train: Sequence[Clip],
    test: Sequence[Clip],
    *,
    bank: ClipBank | None = None,
    uploaders: bool = False,
) -> list[Leak]:
    """Return the training clips that leak, each once, in their order.

    Args:
        bank: where given, clips of equal samples leak too, in whatever format they are stored.
        uploaders: whether clips of one uploader leak, where the data set tells who that is.

    Raises:
        DatasetMissing: a file is no longer there.
    """
    check_present([*train, *test])
    found: dict[int, Leak] = {}

    def compare(key: Callable[[Clip], Hashable | None], shared: Callable[[Clip], Origin]) -> None:
        firsts: dict[Hashable, Clip] = {}
        for clip in test:
            value = key(clip)
            if value is not None:
                firsts.setdefault(value, clip)
        for number, clip in enumerate(train):
            if number not in found and (other := firsts.get(key(clip))) is not None:
                found[number] = Leak(clip, other, shared(clip))

    compare(origin_of, origin_of)
    compare(_digests(train, test, _size_of, _digest_of), lambda _: Origin("bytes"))
    if bank is not None:
        compare(
            _digests(train, test, bank.n_samples, bank.digest),
            lambda _: Origin("samples"),
        )
    if uploaders:
        compare(lambda clip: clip.uploader or None, lambda clip: Origin("uploader", clip.uploader))
    return [found[number] for number in sorted(found)]


def check_no_leaks(
    train: Sequence[Clip],
    test: Sequence[Clip],
    *,
    bank: ClipBank | None = None,
    uploaders: bool = False,
) -> None:
    """Do nothing if no training clip leaks; arguments as for ``find_leaks``.

    Raises:
        LeakFound: some do; says how many, and for the first few which clips and why.
    """
    leaks = find_leaks(train, test, bank=bank, uploaders=uploaders)
    if not leaks:
        return
    pairs = "; ".join(
        f"{_name(leak.train)} and {_name(leak.test)}: {leak.reason}" for leak in leaks[:SHOWN_PAIRS]
    )
    more = "; ..." if len(leaks) > SHOWN_PAIRS else ""
    raise LeakFound(
        f"{len(leaks)} of {len(train)} training clips leak into the test: {pairs}{more}",
        len(leaks),
    )


def drop_leaks(
    train: Sequence[Clip],
    test: Sequence[Clip],
    *,
    bank: ClipBank | None = None,
    uploaders: bool = False,
) -> Dropped:
    """Return ``train`` without the clips that leak, and these; arguments as for ``find_leaks``."""
    leaks = find_leaks(train, test, bank=bank, uploaders=uploaders)
    gone = {id(leak.train) for leak in leaks}
    return Dropped(tuple(clip for clip in train if id(clip) not in gone), tuple(leaks))


def duplicates_of(clips: Sequence[Clip]) -> list[tuple[Clip, ...]]:
    """Return the groups of clips that hold the same bytes."""
    sizes = Counter(_size_of(clip) for clip in clips)
    groups: dict[bytes, list[Clip]] = {}
    for clip in clips:
        if sizes[_size_of(clip)] > 1:
            groups.setdefault(_digest_of(clip), []).append(clip)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _digests(
    train: Sequence[Clip],
    test: Sequence[Clip],
    length_of: Callable[[Clip], int],
    digest_of: Callable[[Clip], bytes],
) -> Callable[[Clip], Hashable | None]:
    """Return a key of content. Only clips whose length occurs on the other side are read."""
    shared = _lengths(train, length_of) & _lengths(test, length_of)
    return lambda clip: digest_of(clip) if length_of(clip) in shared else None


def _lengths(clips: Iterable[Clip], length_of: Callable[[Clip], int]) -> set[int]:
    return {length_of(clip) for clip in clips}


def _size_of(clip: Clip) -> int:
    return clip.path.stat().st_size


def _digest_of(clip: Clip) -> bytes:
    stat = clip.path.stat()
    return _digest(clip.path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _digest(path: Path, size: int, mtime_ns: int) -> bytes:
    """Return the SHA-256 of a file; size and time make a changed file another one."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _name(clip: Clip) -> str:
    return f"{clip.dataset} fold {clip.fold} {clip.path.name}"
