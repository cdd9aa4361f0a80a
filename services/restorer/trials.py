"""Fixed trials of the recogniser: stretches with an event, and without it. Higher is surer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.datasets import ClipBank, Split, in_split
from common.features import ANALYSIS_RATE_HZ
from common.labels import LABELS
from common.soundscapes import PlacedEvent, soundscapes_of
from services.restorer.config import REGION_MARGIN_S
from services.restorer.data import MAX_EVENTS, label_levels
from services.restorer.listen import probabilities
from services.restorer.losses import PRESENT_DB
from services.restorer.model import Recogniser


@dataclass(frozen=True)
class Trials:
    """Probabilities (n,) that the recogniser gave to a label.

    ``present``: the event is there, loud enough to count. ``removed``: the same stretch without
    any event. ``stranger``: another label that does not sound there.
    """

    present: np.ndarray
    removed: np.ndarray
    stranger: np.ndarray

    def missed(self, threshold: float) -> float:
        """Return the share of present events below the threshold; lower is better."""
        return float(np.mean(self.present < threshold))

    def wrong(self, threshold: float) -> float:
        """Return the share of absent ones at or above it, both kinds equal; lower is better."""
        return float((self.removed >= threshold).mean() + (self.stranger >= threshold).mean()) / 2

    def best_threshold(self) -> float:
        """Return the threshold with the least sum of both shares."""
        candidates = np.round(np.linspace(0.02, 0.98, 97), 2)
        return float(min(candidates, key=lambda t: self.missed(t) + self.wrong(t)))


def stretch_of(event: PlacedEvent) -> slice:
    """Return the samples of an event with its margins, at 32 kHz."""
    start = max(0, int((event.onset_s - REGION_MARGIN_S) * ANALYSIS_RATE_HZ))
    return slice(start, int((event.offset_s + REGION_MARGIN_S) * ANALYSIS_RATE_HZ))


def hearing_trials(
    recogniser: Recogniser, bank: ClipBank, n_soundscapes: int, seed: int, split: Split
) -> Trials:
    """Return trials on fixed soundscapes of a split.

    Args:
        recogniser: in eval mode.
        bank: holds the clips of the split.
        n_soundscapes: each gives as many trials as it has loud events.
        seed: which soundscapes.
        split: "validation" or "test".
    """
    present, removed, stranger = [], [], []
    rng = np.random.default_rng(seed)
    clips = in_split(bank.clips, split)
    scapes = soundscapes_of(bank, clips, n_soundscapes, seed, max_events=MAX_EVENTS)
    for scape in scapes:
        sounding = {event.label for event in scape.events} | {scape.background_label}
        strangers = [label for label in LABELS if label not in sounding]
        for event in scape.events:
            part, index = stretch_of(event), LABELS.index(event.label)
            if label_levels(scape.events, scape.mixture, part)[index] < PRESENT_DB:
                continue
            scores = probabilities(recogniser, scape.mixture[part])
            present.append(scores[index])
            stranger.append(scores[LABELS.index(strangers[rng.integers(len(strangers))])])
            removed.append(probabilities(recogniser, scape.background[part])[index])
    return Trials(np.array(present), np.array(removed), np.array(stranger))
