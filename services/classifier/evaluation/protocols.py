"""The protocols by which results count: which clips train, which test, and what is made of it.

ESC-10 by its official five folds, UrbanSound8K leaving one fold out, and either split at random,
which lets recordings be on both sides and is there to show how much that flatters. Everything
else in hand trains too, unless it shares a recording with the test clips.

Source: Piczak 2015 (ESC-10) and Salamon et al. 2014 (UrbanSound8K), whose folds keep recordings
whole; why a random split flatters, Salamon and Bello 2017, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from common.datasets import Clip, ClipBank, Dataset, drop_leaks, labels_of, select_folds
from common.errors import ClassMissing, DatasetMissing

SPLIT_SEED = 2026
"""Of the random split: the same one for every architecture and every seed of training."""


class Learning(StrEnum):
    """What a fold's network learns from, beside the other folds of its data set."""

    TOGETHER = "together"  # everything else in hand, all at once
    OTHERS_FIRST = "others-first"  # the other data sets first, once for all folds; then its own
    OWN = "own"  # nothing


@dataclass(frozen=True)
class Protocol:
    """A data set, the folds that are tested in turn, and whether the folds are drawn anew."""

    name: str
    dataset: Dataset
    folds: tuple[int, ...]
    at_random: bool = False

    def over(self, folds: tuple[int, ...]) -> Protocol:
        """Return the protocol over some folds only; over none named, as it is."""
        if not folds or folds == self.folds:
            return self
        return replace(self, name=f"{self.name}-{'-'.join(map(str, folds))}", folds=folds)


PROTOCOLS = {
    "esc10-5fold": Protocol("esc10-5fold", "esc10", (1, 2, 3, 4, 5)),
    "us8k-lofo": Protocol("us8k-lofo", "us8k", (1, 2)),
}
RANDOM_SPLIT = "random-split"


def at_random(official: Protocol) -> Protocol:
    """Return the protocol whose folds are as large as the official ones, but drawn from a hat."""
    return replace(official, name=f"{RANDOM_SPLIT}-of-{official.name}", at_random=True)


@dataclass(frozen=True)
class Part:
    """One fold's clips on both sides, and how many that could have trained shared a recording."""

    fold: int
    train: tuple[Clip, ...]
    test: tuple[Clip, ...]
    dropped: int


def clips_for_every_fold(
    protocol: Protocol, clips: Sequence[Clip], bank: ClipBank | None = None
) -> tuple[Clip, ...]:
    """Return the clips of other data sets that share no recording with any of the protocol's own.

    Where a bank of them is given, nor samples.

    Raises:
        DatasetMissing: there are none.
    """
    own = [clip for clip in clips if clip.dataset == protocol.dataset]
    others = [clip for clip in clips if clip.dataset != protocol.dataset]
    left = drop_leaks(others, own, bank=bank).kept
    if not left:
        raise DatasetMissing(f"nothing but {protocol.dataset} is there to learn from first")
    return left


def parts_of(
    protocol: Protocol, clips: Sequence[Clip], only_own: bool, bank: ClipBank | None = None
) -> list[Part]:
    """Return what each fold trains on and is tested on.

    Args:
        protocol: says which clips test.
        clips: of all data sets in hand.
        only_own: train on the data set's own other folds alone.
        bank: where given, what has the samples of a test clip does not train either.

    Raises:
        FoldMissing: a fold has no clip.
        ClassMissing: a class has no clip in a fold, or none to train on.
    """
    own = [clip for clip in clips if clip.dataset == protocol.dataset]
    others = [] if only_own else [clip for clip in clips if clip.dataset != protocol.dataset]
    if protocol.at_random:
        own = _dealt_anew(own)
    parts = []
    for fold in protocol.folds:
        split = select_folds(own, [fold])
        if protocol.at_random:
            left = drop_leaks(others, split.test, bank=bank)
            train = (*split.train, *left.kept)
        else:
            left = drop_leaks([*split.train, *others], split.test, bank=bank)
            train = left.kept
        for label in labels_of(split.test):
            if label not in labels_of(train):
                raise ClassMissing(
                    f"every clip of {label} shares a recording with fold {fold}", label, None
                )
        parts.append(Part(fold, train, split.test, len(left.dropped)))
    return parts


def _dealt_anew(clips: Sequence[Clip]) -> list[Clip]:
    """Return clips with their folds shuffled within each class, so that all sizes stay."""
    rng = np.random.default_rng(SPLIT_SEED)
    dealt = list(clips)
    for label in sorted({clip.label for clip in clips}):
        places = [n for n, clip in enumerate(clips) if clip.label == label]
        folds = rng.permutation([clips[n].fold for n in places]).tolist()
        for n, fold in zip(places, folds, strict=True):
            dealt[n] = replace(clips[n], fold=fold)
    return dealt


def own_classes(protocol: Protocol, clips: Sequence[Clip], labels: Sequence[str]) -> list[int]:
    """Return the numbers in ``labels`` of the classes that the data set has.

    Raises:
        ValueError: ``labels`` lacks one.
    """
    names = labels_of(clip for clip in clips if clip.dataset == protocol.dataset)
    return sorted(labels.index(name) for name in names)
