"""Workers that compute nothing: what remains is the cost of everything around a model.

    celery -A tests.bench.noop:app worker --queues ...

One process serves all four stages through the ordinary task interface: the same app, messages and
``run_shard`` as the real workers. Each stage leaves one artifact of a few bytes; the input is
fetched and never decoded.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np

from common.broker import make_app
from common.domain import ArtifactKind, Priority, Stage, queue_name
from common.messages import task_name
from common.params import ClassifyParams
from common.settings import get_settings
from common.stage import Surroundings, open_surroundings, run_message
from common.stage_io import OutputFile, StageInput, StageOutput, each
from common.vectors import VectorWriter
from common.worker import attend
from tests.bench.outputs import FACTS, OUTPUTS, NoModel

QUEUES = [queue_name(stage, priority) for priority in Priority for stage in Stage]

app = make_app(get_settings(), "noop")
drain = attend(app, get_settings(), "noop", *Stage)


def process(stage: Stage, _model: NoModel, item: StageInput) -> StageOutput:
    """Leave the stage's one artifact, and vectors where they are asked for."""
    kind, name, media_type, content = OUTPUTS[stage]
    path = item.scratch / name
    path.write_bytes(content)
    files = {kind: OutputFile(path, media_type)}
    if isinstance(item.params, ClassifyParams) and item.params.embeddings:
        vectors = item.scratch / "vectors.npz"
        with VectorWriter(vectors, NoModel.digest, 1, FACTS.duration_s) as writer:
            writer.append(np.ones((1, 1), np.float32))
        files[ArtifactKind.VECTORS] = OutputFile(vectors, "application/zip")
    return StageOutput(files, {}, FACTS)


@cache
def surroundings() -> Surroundings:
    """Connect once per child process, never in the parent."""
    return open_surroundings(get_settings(), drain)


def add_task(stage: Stage) -> None:
    """Make the task of one stage."""

    @app.task(name=task_name(stage))
    def run(message: Any) -> None:
        run_message(surroundings(), stage, message, NoModel, each(partial(process, stage)))


for _stage in Stage:
    add_task(_stage)
