"""Folds, the published ones, for cross-validation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from common.datasets.clips import Clip, labels_of
from common.errors import ClassMissing, FoldMissing


@dataclass(frozen=True)
class Parts:
    """What is learnt from and what is tested on."""

    train: tuple[Clip, ...]
    test: tuple[Clip, ...]


def folds_of(clips: Iterable[Clip]) -> tuple[int, ...]:
    """Return the folds of ``clips``, sorted."""
    return tuple(sorted({clip.fold for clip in clips}))


def select_folds(clips: Sequence[Clip], folds: Collection[int]) -> Parts:
    """Return the clips in ``folds`` as test, all others as training.

    Nothing is dropped: a recording may be on both sides where the folds are not those published.
    ``check_no_leaks`` tells, ``drop_leaks`` removes.

    Raises:
        FoldMissing: a fold has no clip, or all of them are for the test.
        ClassMissing: a class has no clip in one of ``folds``, or none to train on.
    """
    known = folds_of(clips)
    wanted = sorted(set(folds))
    if not wanted:
        raise FoldMissing(f"no fold was asked for; there are {_listed(known)}")
    for fold in wanted:
        if fold not in known:
            raise FoldMissing(f"there is no fold {fold}; there are {_listed(known)}")
    if len(wanted) == len(known):
        raise FoldMissing(f"the folds {_listed(known)} are all for the test, none is left to train")
    parts = Parts(
        train=tuple(clip for clip in clips if clip.fold not in wanted),
        test=tuple(clip for clip in clips if clip.fold in wanted),
    )
    labels = labels_of(clips)
    trained = _counts(parts.train)
    for label in labels:
        if not trained[label]:
            raise ClassMissing(
                f"the class {label} has no clip to train on: all {_counts(clips)[label]} of them "
                f"are in the test folds {_listed(wanted)}",
                label,
                None,
            )
    for fold in wanted:
        counts = _counts(clip for clip in parts.test if clip.fold == fold)
        for label in labels:
            if not counts[label]:
                others = folds_of(clip for clip in clips if label in clip.labels)
                raise ClassMissing(
                    f"the class {label} has no clip in fold {fold}; it is in {_listed(others)}",
                    label,
                    fold,
                )
    return parts


def _counts(clips: Iterable[Clip]) -> Counter[str]:
    return Counter(label for clip in clips for label in clip.labels)


def _listed(folds: Iterable[int]) -> str:
    return ", ".join(str(fold) for fold in folds) or "none"
