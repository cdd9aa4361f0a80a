"""What the training commands learn from and hold out, and the corrupt clips that they leave out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import typer

from common.datasets import (
    Clip,
    ClipBank,
    check_no_leaks,
    exclude_leaks,
    folds_of,
    labels_of,
    load_clips,
    select_folds,
    split_of,
)
from common.datasets.leaks import drop_leaks, origin_of
from common.errors import ClassMissing, DatasetMissing, FoldMissing, SoundmillError
from common.labels import LABELS
from services.classifier.evaluation.predictions import clip_id


@dataclass(frozen=True)
class Chosen:
    """What a command trains on and what it holds out, and the labels that the clips have."""

    train: tuple[Clip, ...]
    validation: tuple[Clip, ...]
    labels: tuple[str, ...]


def choose_merged(data: Path, everything: bool) -> Chosen:
    """Return the three sets that the shipped weights are made of, with their common labels."""
    clips = load_clips(data)
    if everything:
        return Chosen(tuple(clips), (), LABELS)
    clips = exclude_leaks(clips)
    train = tuple(clip for clip in clips if split_of(clip) == "train")
    held_out = tuple(clip for clip in clips if split_of(clip) == "validation")
    return Chosen(train, held_out, LABELS)


def choose(
    clips: Sequence[Clip], train_folds: Collection[int], validation_folds: Collection[int]
) -> Chosen:
    """Return the clips of folds. No folds to train on: all that are not held out.

    Raises:
        FoldMissing: a fold has no clip, or none is left to train on.
        ClassMissing: a class is missing in a fold that is held out, or has no clip to train on.
        LeakFound: a recording is on both sides.
    """
    both = set(train_folds) & set(validation_folds)
    if both:
        raise FoldMissing(f"fold {min(both)} cannot be trained on and held out")
    known = folds_of(clips)
    for fold in sorted({*train_folds, *validation_folds} - set(known)):
        raise FoldMissing(f"there is no fold {fold}; there are {', '.join(map(str, known))}")
    wanted = set(train_folds or known) | set(validation_folds)
    used = [clip for clip in clips if clip.fold in wanted]
    if not validation_folds:
        return Chosen(tuple(used), (), labels_of(used))
    parts = select_folds(used, validation_folds)
    check_no_leaks(parts.train, parts.test)
    return Chosen(parts.train, parts.test, labels_of(used))


def choose_share(clips: Sequence[Clip], share: float, seed: int) -> Chosen:
    """Hold out about ``share`` of every class, whole recordings (speakers, sources) at a time.

    A class keeps at least one recording to train on; one of a single recording is not held out.
    Clips to train on that are copies of held-out ones are dropped.

    Raises:
        ClassMissing: no class has a second recording, so that nothing can be held out; or a class
            has nothing else than copies of what is held out.
    """
    groups: dict[Hashable, list[Clip]] = {}
    for clip in clips:
        groups.setdefault(origin_of(clip), []).append(clip)
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    shuffled = [list(groups.values())[n] for n in order]
    left = Counter(label for clip in clips for label in clip.labels)
    wanted = {label: max(1, round(share * n)) for label, n in left.items()}
    held_out: list[Clip] = []
    for group in shuffled:
        has = Counter(label for clip in group for label in clip.labels)
        useful = any(wanted[label] > 0 for label in has)
        if useful and all(left[label] > n for label, n in has.items()):
            held_out += group
            left -= has
            for label, n in has.items():
                wanted[label] -= n
    if not held_out:
        label = min(left)
        raise ClassMissing(
            f"no clip can be held out: every class, {label} for one, is of a single recording",
            label,
            None,
        )
    gone = {id(clip) for clip in held_out}
    rest = [clip for clip in clips if id(clip) not in gone]
    return Chosen(without_leaks(rest, held_out), tuple(held_out), labels_of(clips))


def open_bank(chosen: Chosen, cache: Path, rate_hz: int, skip_corrupt: bool) -> ClipBank:
    """Decode the clips; those that cannot be are named and, if ``skip_corrupt``, left out."""
    return decoded([*chosen.train, *chosen.validation], cache, rate_hz, skip_corrupt)


def decoded(clips: Sequence[Clip], cache: Path, rate_hz: int, skip_corrupt: bool) -> ClipBank:
    """Return the bank of clips; what ``skip_corrupt`` leaves out is named and counted on stderr.

    Raises:
        DatasetMissing: there are no clips.
        ClipsCorrupt: clips cannot be decoded, and ``skip_corrupt`` is not set.
    """
    if not clips:
        raise DatasetMissing("no clip is left")
    bank = ClipBank.open(clips, cache, rate_hz, skip_corrupt=skip_corrupt, progress=True)
    for skipped in bank.skipped:
        typer.echo(f"left out: {skipped.clip.path}: {skipped.reason}", err=True)
    if bank.skipped:
        typer.echo(f"left out {len(bank.skipped)} of {len(clips)} clips", err=True)
    return bank


def reasons_of(bank: ClipBank) -> dict[str, str]:
    """Return why clips were left out, by their ids."""
    return {clip_id(skipped.clip): skipped.reason for skipped in bank.skipped}


def check_classes_left(before: Sequence[Clip], after: Sequence[Clip]) -> None:
    """Raise ClassMissing where a class has lost its last clip."""
    lost = sorted(set(labels_of(before)) - set(labels_of(after)))
    if lost:
        raise ClassMissing(f"no clip of the class {lost[0]} can be decoded", lost[0], None)


def without_skipped(chosen: Chosen, bank: ClipBank) -> Chosen:
    """Return the clips that the bank holds.

    Raises:
        ClassMissing: a class has lost its last clip.
    """
    gone = {skipped.clip.path for skipped in bank.skipped}
    train = tuple(clip for clip in chosen.train if clip.path not in gone)
    check_classes_left(chosen.train, train)
    held_out = tuple(clip for clip in chosen.validation if clip.path not in gone)
    return Chosen(train, held_out, chosen.labels)


def without_copies(chosen: Chosen, bank: ClipBank) -> Chosen:
    """Return the clips without those to train on whose samples are held out, in any format.

    Raises:
        ClassMissing: a class has no others to train on.
    """
    return replace(chosen, train=without_leaks(chosen.train, chosen.validation, bank))


def without_leaks(
    train: Sequence[Clip], held_out: Sequence[Clip], bank: ClipBank | None = None
) -> tuple[Clip, ...]:
    """Return the clips to train on but for those that leak; arguments as for ``find_leaks``.

    Raises:
        ClassMissing: a class has no others.
    """
    left = drop_leaks(train, held_out, bank=bank)
    classes = labels_of(left.kept)
    for leak in left.dropped:
        for label in leak.train.labels:
            if label not in classes:
                raise ClassMissing(
                    f"no clip of the class {label} is left to train on: {leak.train.path} has "
                    f"{leak.reason} as {leak.test.path}, which is held out; add recordings of "
                    f"{label}, or take one of the two away",
                    label,
                    None,
                )
    return left.kept


def folds_in(text: str) -> tuple[int, ...]:
    """Return the folds that an option names, such as "1,2,3"."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no list of folds such as 1,2,3") from error


@contextmanager
def plain_errors() -> Iterator[None]:
    """End a command with one sentence where data, a recipe, weights or the disk are at fault."""
    try:
        yield
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        typer.echo(f"error: {place}{error.strerror or error}", err=True)
        raise typer.Exit(1) from error
    except (SoundmillError, FloatingPointError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
