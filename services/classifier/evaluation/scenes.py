"""Events judged on soundscapes, whose events are known to the sample."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from common.features import ANALYSIS_RATE_HZ, LogMel
from common.masks import MASK_BANDS, MASK_F_MAX_HZ, MASK_HOP_S, MaskWriter
from common.params import ClassifyParams
from common.resample import resample_blocks
from common.soundscapes import Soundscape
from common.stage_io import StageInput
from services.classifier.evaluation.predictions import Array
from services.classifier.evaluation.scoring import Counts, match_events, match_seconds, truth_of
from services.classifier.infer import events_in
from services.classifier.listening import LoadedClassifier, listen

MASK_N_FFT = 2048


@dataclass(frozen=True)
class SceneScores:
    """F1 of events (200 ms collar) and of seconds, over all soundscapes; higher is better."""

    n: int
    event_f1: float
    second_f1: float


def oracle_mask(scene: Soundscape) -> Array:
    """Return the true foreground mask of a soundscape on the mask's grid, (128, T) in [0, 1]."""
    hop = round(MASK_HOP_S * ANALYSIS_RATE_HZ)
    front_end = LogMel(ANALYSIS_RATE_HZ, MASK_N_FFT, hop, MASK_BANDS, f_max=MASK_F_MAX_HZ)

    def power(waveform: Array) -> Array:
        # at the rate of the mask: on another its hop may be no whole number of samples
        parts = resample_blocks([waveform[None]], scene.sample_rate, ANALYSIS_RATE_HZ)
        heard = torch.from_numpy(np.concatenate(list(parts), axis=1))
        result: Array = front_end.power(heard)[0].numpy()
        return result

    front = power(scene.mixture - scene.background)
    ratio: Array = np.sqrt(front / (front + power(scene.background) + 1e-9))
    return ratio


def score_scenes(
    loaded: LoadedClassifier, scenes: Sequence[Soundscape], masked: bool
) -> SceneScores:
    """Return the scores of soundscapes heard with the true mask, or with none."""
    events, seconds = Counts(), Counts()
    with tempfile.TemporaryDirectory() as folder:
        audio, mask = Path(folder) / "scene.wav", Path(folder) / "mask.npz"
        for scene in scenes:
            soundfile.write(audio, scene.mixture, scene.sample_rate, subtype="FLOAT")
            with MaskWriter(mask) as writer:
                writer.append(oracle_mask(scene).astype(np.float32))
            item = StageInput("scene", audio, ClassifyParams(), {}, Path(folder))
            heard = listen(loaded, item, mask if masked else None)
            found, truth = events_in(heard, loaded.config, []), truth_of(scene)
            events += match_events(found, truth)
            seconds += match_seconds(found, truth, heard.facts.duration_s)
    return SceneScores(len(scenes), events.f1, seconds.f1)
