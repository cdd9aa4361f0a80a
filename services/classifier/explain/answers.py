"""One label in one window, explained by every method that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.params import ExplainMethod
from services.classifier.explain.attributions import grad_cam, integrated_gradients
from services.classifier.explain.question import FloatArray, Question, Relevance
from services.classifier.explain.regions import (
    BoolArray,
    RelevantRegion,
    most_relevant,
    regions_of,
)
from services.classifier.explain.relevance import lrp
from services.classifier.explain.resynthesis import resynthesised
from services.classifier.explain.rollout import attention_rollout
from services.classifier.explain.stages import StageMaps, feature_maps
from services.classifier.explain.windows import Extract
from services.classifier.listening import LoadedClassifier

MAPS: dict[ExplainMethod, Callable[[Question], Relevance]] = {
    "integrated_gradients": integrated_gradients,
    "grad_cam": grad_cam,
    "lrp": lrp,
    "attention_rollout": attention_rollout,
}
"""The methods that make a map of relevance per bin; feature maps are of another kind."""


@dataclass(frozen=True)
class Reason:
    """What one method found.

    ``chosen`` (F, T) are the most relevant bins, ``regions`` where they lie, ``audio`` (m,) how
    they sound, at the recording's rate. ``confidence_alone`` is the label's where only they are
    heard and the quiet background elsewhere, ``confidence_without`` the other way round.
    """

    method: ExplainMethod
    relevance: Relevance
    chosen: BoolArray
    regions: tuple[RelevantRegion, ...]
    audio: FloatArray
    confidence_alone: float
    confidence_without: float


@dataclass(frozen=True)
class Answer:
    """Why a label was heard in a window. ``logmel`` (F, T); ``stages`` empty if not asked for."""

    label: str
    extract: Extract
    confidence: float
    logit: float
    logmel: FloatArray
    reasons: tuple[Reason, ...]
    stages: tuple[StageMaps, ...]


def answer(
    loaded: LoadedClassifier, extract: Extract, label: str, methods: Sequence[ExplainMethod]
) -> Answer:
    """Return why ``label`` was heard in a window, by methods that fit the architecture."""
    question = question_of(loaded, extract, label)
    with torch.no_grad():
        logit = float(question.logits(question.logmel, question.cells))
    reasons = [
        _reason(question, extract, method, MAPS[method](question))
        for method in methods
        if method in MAPS
    ]
    stages = feature_maps(question) if "feature_maps" in methods else []
    return Answer(
        label=label,
        extract=extract,
        confidence=float(question.probabilities(question.logmel)[0]),
        logit=logit,
        logmel=question.logmel[0].cpu().numpy(),
        reasons=tuple(reasons),
        stages=tuple(stages),
    )


def question_of(loaded: LoadedClassifier, extract: Extract, label: str) -> Question:
    """Return what is to be explained, on the classifier's device."""
    waveform = torch.from_numpy(extract.heard)[None].to(loaded.device)
    cells: Tensor | None = None
    if extract.cells is not None:
        cells = torch.from_numpy(np.asarray(extract.cells))[None].to(loaded.device)
    with torch.no_grad():
        logmel = loaded.model.features(waveform)
    return Question(loaded.model, logmel, cells, loaded.config.labels.index(label))


def _reason(
    question: Question, extract: Extract, method: ExplainMethod, relevance: Relevance
) -> Reason:
    config = question.model.config
    chosen = most_relevant(relevance.values)
    audio = resynthesised(extract.recorded, extract.recorded_rate, chosen, config)
    bins = torch.from_numpy(chosen).to(question.logmel.device)
    background = question.background()
    alone, without = question.probabilities(
        torch.cat(
            [
                torch.where(bins, question.logmel, background),
                torch.where(bins, background, question.logmel),
            ]
        )
    ).tolist()
    regions = regions_of(relevance.values, chosen, extract.start_s, extract.stop_s, config)
    return Reason(method, relevance, chosen, tuple(regions), audio, alone, without)
