"""A weights file judged on a data set: which clips count, and how well their labels are found."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soxr

from common.datasets import (
    Clip,
    ClipBank,
    exclude_leaks,
    folds_of,
    labels_of,
    load_clips,
    renamed,
    split_of,
)
from common.datasets.clips import RENAMED
from common.errors import DatasetInvalid, FoldMissing
from services.classifier.calibration import Scale
from services.classifier.evaluation.pictures import evaluation_picture, tags_picture
from services.classifier.evaluation.predictions import Array, Predictions, predict, predictions_of
from services.classifier.evaluation.reports import percent
from services.classifier.evaluation.scoring import (
    ClipScores,
    TagScores,
    score_clips,
    score_tags,
)
from services.classifier.listening import LoadedClassifier

BAND_LIMIT_RATE_HZ = 8_000
TAG_THRESHOLD = 0.5


@dataclass(frozen=True)
class Known:
    """Clips that fit the weights, and how many labels of which name were left out."""

    clips: list[Clip]
    left_out: dict[str, int]


def known_only(clips: Sequence[Clip], labels: Sequence[str], skip: bool) -> Known:
    """Return clips under the labels that the weights know, renamed where that makes them known.

    Args:
        clips: of a data set.
        labels: what the weights know.
        skip: leave out what they do not know: such labels, and clips that have no other.

    Raises:
        DatasetInvalid: there are some and ``skip`` is not set; names them.
    """
    names = {old: new for old, new in RENAMED.items() if old not in labels and new in labels}
    clips = renamed(clips, names)
    unknown = Counter(label for clip in clips for label in clip.labels if label not in labels)
    if unknown and not skip:
        raise DatasetInvalid(
            f"the weights do not know {', '.join(sorted(unknown))}; "
            "--skip-unknown leaves these labels out"
        )
    kept = []
    for clip in clips:
        left = tuple(label for label in clip.labels if label in labels)
        if left:
            kept.append(replace(clip, label=left[0], labels=left))
    return Known(kept, dict(sorted(unknown.items())))


def held_out(data: Path) -> list[Clip]:
    """Return the test split of the three sets that the shipped models share."""
    return [clip for clip in exclude_leaks(load_clips(data)) if split_of(clip) == "test"]


def in_folds(clips: Sequence[Clip], folds: Sequence[int]) -> list[Clip]:
    """Return the clips of some folds, or all where none is named.

    Raises:
        FoldMissing: a fold has no clip.
    """
    missing = sorted(set(folds) - set(folds_of(clips)))
    if missing:
        known = ", ".join(map(str, folds_of(clips)))
        raise FoldMissing(f"there is no clip in fold {missing[0]}; there are folds {known}")
    return [clip for clip in clips if not folds or clip.fold in folds]


def classes_by_set(clips: Sequence[Clip], labels: Sequence[str]) -> dict[str, list[int]]:
    """Return by data set the numbers in ``labels`` of the classes that it has."""
    return {
        name: sorted(
            labels.index(label) for label in labels_of(c for c in clips if c.dataset == name)
        )
        for name in sorted({clip.dataset for clip in clips})
    }


def band_limited(rate_hz: int) -> Callable[[Array], Array]:
    """Return a function that takes everything above 4 kHz out of a waveform."""

    def change(waveform: Array) -> Array:
        narrow = soxr.resample(waveform, rate_hz, BAND_LIMIT_RATE_HZ)
        wide = soxr.resample(narrow, BAND_LIMIT_RATE_HZ, rate_hz)[: len(waveform)]
        result: Array = wide if len(wide) else waveform
        return result

    return change


@dataclass(frozen=True)
class Throughput:
    """How fast clips were heard that had been decoded before: features included, in batches."""

    clips: int
    audio_s: float
    processor_s: float
    rtf: float  # seconds of computing per second of audio; lower is better


@dataclass(frozen=True)
class Heard:
    """What the weights say about clips, calibrated as they are."""

    predictions: Predictions
    confidence: Array  # (N, K) in [0, 1]
    throughput: Throughput


def hear(
    loaded: LoadedClassifier,
    bank: ClipBank,
    clips: Sequence[Clip],
    change: Callable[[Array], Array] = lambda waveform: waveform,
) -> Heard:
    """Listen to whole clips, each changed first."""
    config = loaded.config
    started_s = time.process_time()
    logits = predict(loaded.model, bank, clips, loaded.device, change)
    processor_s = time.process_time() - started_s
    audio_s = sum(bank.n_samples(clip) for clip in clips) / bank.sample_rate
    predictions = predictions_of(clips, logits, config.labels, config.multi_label)
    return Heard(
        predictions,
        predictions.confidence(Scale(config.temperature, config.shift)),
        Throughput(len(clips), audio_s, processor_s, processor_s / audio_s),
    )


@dataclass(frozen=True)
class Scores:
    """Measures by data set; with several sets, "all" are their clips together."""

    clips: dict[str, ClipScores]  # of sets whose clips have one label each
    tags: dict[str, TagScores]  # of the others


def score_by_set(
    heard: Heard, clips: Sequence[Clip], classes: Mapping[str, Sequence[int]], threshold: float
) -> Scores:
    """Return the measures of every data set.

    Args:
        heard: of the clips.
        clips: in the same order.
        classes: by data set, the numbers of all classes it has, also in folds not judged here.
        threshold: from which confidence on one of several labels counts as found.
    """
    sets = np.array([clip.dataset for clip in clips])
    names = sorted(set(sets.tolist()))
    rows = {name: sets == name for name in names}
    if len(names) > 1:
        rows["all"] = np.ones(len(clips), np.bool_)
    union = sorted({k for name in names for k in classes[name]})
    scores = Scores({}, {})
    for name, chosen in rows.items():
        confidence, present = heard.confidence[chosen], heard.predictions.present[chosen]
        labels = heard.predictions.labels
        if (present.sum(axis=1) == 1).all():
            truth, among = heard.predictions.truth[chosen], classes.get(name, union)
            scores.clips[name] = score_clips(confidence, truth, labels, among)
        else:
            scores.tags[name] = score_tags(confidence, present, labels, threshold)
    return scores


def draw(path: Path, title: str, scores: Scores) -> None:
    """Draw the last entry of the scores into a PNG: the one data set, or all together."""
    if scores.tags:
        of_tags = list(scores.tags.values())[-1]
        bars = {c.label: [c.f1] for c in of_tags.classes}
        title = f"{title}: mAP {percent(of_tags.mean_ap)} %"
        tags_picture(path, title, of_tags.counts, of_tags.calibration, bars, "F1 by class")
        return
    of_clips = list(scores.clips.values())[-1]
    evaluation_picture(
        path,
        f"{title}: accuracy {percent(of_clips.accuracy)} % of {of_clips.n} clips",
        of_clips.confusion,
        of_clips.calibration,
        {c.label: [c.f1] for c in of_clips.classes},
        "F1 by class",
    )
