"""Explanations as a part of the classify stage: a recording and its scores in, an artifact out."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.params import ClassifyParams
from common.stage_io import OutputFile, StageInput
from services.classifier.explain.answers import answer
from services.classifier.explain.bundle import Bundle
from services.classifier.explain.methods import check
from services.classifier.explain.windows import best_windows, read_windows
from services.classifier.listening import Heard, LoadedClassifier

FILE_NAME = "explanation.zip"
NOTHING = "nothing was heard, so there is nothing to explain"


def explain(
    loaded: LoadedClassifier, item: StageInput, params: ClassifyParams, heard: Heard
) -> OutputFile:
    """Write explanation.zip into the item's scratch folder.

    Work is bounded: at most ``explain_windows`` windows for each of the labels, however long the
    recording is. Each window is in memory once.

    Raises:
        ParametersInvalid: a method does not fit the weights' architecture, or a label is unknown.
        AudioError: the recording is at fault.
        ArtifactInvalid: the mask cannot be read back.
        OSError: the disk is full.
    """
    config = loaded.config
    check(config, params)
    labels = params.explain_labels or (config.labels[int(np.argmax(heard.tags))],)
    numbers = {
        label: best_windows(
            heard.windows[:, config.labels.index(label)].astype(np.float64), params.explain_windows
        )
        for label in labels
    }
    extracts = read_windows(item, config, {n for found in numbers.values() for n in found})
    missing = [label for label, found in numbers.items() if not found]
    facts: dict[str, Any] = {
        "architecture": config.architecture,
        "weights": loaded.digest,
        "duration_s": heard.facts.duration_s,
        "methods": list(params.explain),
        "labels": list(labels) if len(missing) < len(labels) else [],
        "note": f"{NOTHING}: {', '.join(missing)}" if missing else None,
    }
    path = item.scratch / FILE_NAME
    with Bundle(path, config, facts) as bundle:
        for label, found in numbers.items():
            for number in found:
                with item.phases.phase("infer"):
                    reasons = answer(loaded, extracts[number], label, params.explain)
                with item.phases.phase("encode"):
                    bundle.add(reasons)
    return OutputFile(path, "application/zip")
