"""What workers leave behind that compute nothing: one artifact of a few bytes for each stage."""

from __future__ import annotations

import json
from dataclasses import dataclass

from common.domain import ArtifactKind, Stage
from common.stage_io import AudioFacts

FACTS = AudioFacts(duration_s=0.1, sample_rate=8_000, channels=1)
EVENTS = {
    "version": 1,
    "duration_s": FACTS.duration_s,
    "events": [{"label": "dog", "onset_s": 0.0, "offset_s": 0.1, "confidence": 0.9}],
    "tags": [{"label": "dog", "confidence": 0.9}],
}
OUTPUTS = {  # the one artifact of a stage: kind, file, media type, content
    Stage.SEGMENT: (ArtifactKind.MASK, "mask.npz", "application/zip", b"mask"),
    Stage.CLASSIFY: (
        ArtifactKind.EVENTS,
        "events.json",
        "application/json",
        json.dumps(EVENTS).encode(),
    ),
    Stage.ENHANCE: (ArtifactKind.ENHANCED, "enhanced.flac", "audio/flac", b"enhanced"),
    Stage.RESTORE: (ArtifactKind.RESTORED, "restored.flac", "audio/flac", b"restored"),
}


@dataclass(frozen=True)
class NoModel:
    """Stands where a model would."""

    digest: str = "0" * 64
    device: str = "cpu"
