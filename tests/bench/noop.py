"""Workers that compute nothing: what remains is the cost of everything around a model.

    celery -A tests.bench.noop:app worker --queues ...

One process serves all four stages through the ordinary task interface: the same app, messages and
``run_shard`` as the real workers. Each stage leaves one artifact of a few bytes; the input is
fetched and never decoded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from celery.signals import setup_logging

from common import logs
from common.broker import make_app
from common.domain import ArtifactKind, Priority, Stage, queue_name
from common.messages import ShardMessage, task_name
from common.settings import get_settings
from common.stage import Surroundings, open_surroundings, run_shard
from common.stage_io import AudioFacts, OutputFile, StageInput, StageOutput

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
QUEUES = [queue_name(stage, priority) for priority in Priority for stage in Stage]

app = make_app(get_settings(), "noop")


@dataclass(frozen=True)
class NoModel:
    """Stands where a model would."""

    digest: str = "0" * 64
    device: str = "cpu"


def process(stage: Stage, _model: NoModel, item: StageInput) -> StageOutput:
    """Leave the stage's one artifact."""
    kind, name, media_type, content = OUTPUTS[stage]
    path = item.scratch / name
    path.write_bytes(content)
    return StageOutput({kind: OutputFile(path, media_type)}, {}, FACTS)


@setup_logging.connect
def _configure_logs(**_: Any) -> None:
    logs.configure(get_settings(), "noop")


@cache
def surroundings() -> Surroundings:
    """Connect once per child process, never in the parent."""
    return open_surroundings(get_settings())


def run(message: dict[str, Any]) -> None:
    """Run one shard of whatever stage it is."""
    shard = ShardMessage.model_validate(message)
    run_shard(surroundings(), shard, NoModel, partial(process, shard.stage))


for _stage in Stage:
    app.task(name=task_name(_stage))(run)
