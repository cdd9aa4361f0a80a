"""Calibration: what is fitted after training so that a confidence of 0.8 is right in 8 of 10 cases.

Fitted on logits of sounds that the model has not been trained on. Leaves out how such logits come
about (``predictions``, protocols) and how calibrated they are (``scoring``).

Sources: Guo et al. 2017, "On calibration of modern neural networks", for the temperature; Platt
1999, "Probabilistic outputs for support vector machines", for the shift beside it that sigmoids
have, since training mixes several sounds and what is listened to often holds one or none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logsumexp

from common.domain import Event
from common.soundscapes import Soundscape
from services.classifier.config import Config
from services.classifier.evaluation.scoring import Counts, match_events, match_seconds, truth_of
from services.classifier.events import find_events
from services.classifier.model import Classifier

Array = npt.NDArray[np.floating[Any]]

LARGEST_TEMPERATURE = 20.0
SCENE_SEED = 7
"""Of the soundscapes that are fitted on; those that are judged have another."""
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(2, 19))
"""From 0.1 to 0.9: those that an event's threshold is chosen from."""


class OneSided(ValueError):
    """Labels are all there or all not: what logits mean cannot be told from them."""


@dataclass(frozen=True)
class Scale:
    """Logits become ``(logit + shift) / temperature``; before a softmax a shift does nothing."""

    temperature: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True)
class HeardScene:
    """A soundscape as a model heard it: logits (K, T) of its segments, and its true events."""

    logits: Array
    events: tuple[Event, ...]
    duration_s: float


def fit_clips(logits: Array, present: npt.NDArray[Any], multi_label: bool) -> Scale:
    """Return what makes logits of clips probabilities: the scale of the least loss.

    The loss is the mean negative log-likelihood, of a softmax or, with ``multi_label``, of one
    sigmoid per label; lower is better.

    Args:
        logits: (N, K).
        present: (N, K) in [0, 1], whether clip n has label k; without ``multi_label`` one each.
        multi_label: as in the config.

    Raises:
        OneSided: with ``multi_label``, labels that are all there or all not.
        ValueError: no clips, shapes that differ, or logits that are not finite.
    """
    if multi_label:
        return fit_sigmoids(logits, present)
    _check(logits, present)
    x, truth = logits.astype(np.float64), present.astype(np.float64)

    def loss(log_temperature: float) -> float:
        scaled = x / np.exp(log_temperature)
        likelihood = scaled - logsumexp(scaled, axis=1, keepdims=True)
        return -float((truth * likelihood).sum(axis=1).mean())

    widest = float(np.log(LARGEST_TEMPERATURE))
    found = minimize_scalar(loss, bounds=(-widest, widest), method="bounded")
    return Scale(float(np.exp(found.x)))


def fit_sigmoids(logits: Array, present: npt.NDArray[Any]) -> Scale:
    """Return what makes logits probabilities, by the least binary cross-entropy.

    Args:
        logits: any shape; all labels, clips and segments together.
        present: the same shape, in [0, 1]: whether the label is there.

    Raises:
        OneSided: labels that are all there or all not.
        ValueError: no logits, shapes that differ, or logits that are not finite.
    """
    _check(logits, present)
    x, truth = logits.astype(np.float64).ravel(), present.astype(np.float64).ravel()
    if not 0.0 < truth.mean() < 1.0:
        raise OneSided("logits with their label and logits without are both needed")

    def loss_and_slope(fit: Array) -> tuple[float, Array]:
        log_scale, offset = fit
        scaled = np.exp(log_scale) * x + offset
        error = expit(scaled) - truth
        slope = np.array([(error * (scaled - offset)).mean(), error.mean()])
        return float(_cross_entropy(scaled, truth).mean()), slope

    widest = float(np.log(LARGEST_TEMPERATURE))
    found = minimize(
        loss_and_slope,
        [0.0, 0.0],
        jac=True,
        method="L-BFGS-B",
        bounds=[(-widest, widest), (None, None)],
    )
    temperature = float(np.exp(-found.x[0]))
    return Scale(temperature, float(found.x[1]) * temperature)


@torch.inference_mode()
def hear_scenes(
    model: Classifier, scenes: Iterable[Soundscape], device: str = "cpu"
) -> list[HeardScene]:
    """Return what a model, in eval mode on ``device``, hears in soundscapes, without a mask."""
    heard = []
    for scene in scenes:
        waveform = torch.from_numpy(scene.mixture)[None].to(device)
        logits = model(model.features(waveform)).segments[0].float().cpu().numpy()
        duration_s = len(scene.mixture) / scene.sample_rate
        heard.append(HeardScene(logits, tuple(truth_of(scene)), duration_s))
    return heard


def activity_of(
    scene: HeardScene, labels: Sequence[str], segment_s: float
) -> npt.NDArray[np.bool_]:
    """Return (K, T) whether a label sounds for at least half of a segment."""
    active = np.zeros(scene.logits.shape, np.bool_)
    for event in scene.events:
        if event.label in labels:
            start, stop = (round(edge_s / segment_s) for edge_s in (event.onset_s, event.offset_s))
            active[labels.index(event.label), start:stop] = True
    return active


def best_threshold(heard: Sequence[HeardScene], config: Config) -> float:
    """Return the event threshold with the highest sum of the F1 of events and of seconds.

    Args:
        heard: soundscapes that the model has not been trained on.
        config: with the calibration of segments already fitted.
    """
    probabilities = [
        expit((scene.logits + config.segment_shift) / config.segment_temperature) for scene in heard
    ]

    def quality(threshold: float) -> float:
        events, seconds = Counts(), Counts()
        for scene, scores in zip(heard, probabilities, strict=True):
            found = [
                event
                for label, row in zip(config.labels, scores, strict=True)
                for event in find_events(
                    row, label, [], threshold, config.segment_s, scene.duration_s
                )
            ]
            events += match_events(found, scene.events)
            seconds += match_seconds(found, scene.events, scene.duration_s)
        return events.f1 + seconds.f1

    return max(THRESHOLDS, key=quality)


def with_segments_fitted(config: Config, heard: Sequence[HeardScene]) -> Config:
    """Return a config with all that is fitted on soundscapes.

    Args:
        config: its labels are those of the soundscapes' logits.
        heard: soundscapes, each as a model heard it that has not been trained on its sounds.

    Raises:
        OneSided: the soundscapes hold no event of the labels, or nothing else.
    """
    active = [activity_of(scene, config.labels, config.segment_s) for scene in heard]
    fitted = fit_sigmoids(
        np.concatenate([scene.logits.ravel() for scene in heard]),
        np.concatenate([part.ravel() for part in active]),
    )
    config = replace(
        config,
        segment_temperature=round(fitted.temperature, 4),
        segment_shift=round(fitted.shift, 4),
    )
    return replace(config, event_threshold=best_threshold(heard, config))


def _cross_entropy(logits: Array, truth: Array) -> Array:
    """Return -log of the probability that sigmoids of logits give the truth, elementwise."""
    return np.logaddexp(0.0, logits) - truth * logits


def _check(logits: Array, present: npt.NDArray[Any]) -> None:
    if logits.shape != present.shape or logits.size == 0:
        raise ValueError(f"logits {logits.shape} and labels {present.shape} do not fit")
    if not np.isfinite(logits).all():
        raise ValueError("logits that are not finite cannot be calibrated")
