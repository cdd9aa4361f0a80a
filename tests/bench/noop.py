"""Workers that compute nothing: what remains is the cost of everything around a model.

    celery -A tests.bench.noop:app worker --queues ...

One process serves all four stages through the ordinary task interface: the same app, messages and
``run_shard`` as the real workers. Each stage leaves one artifact of a few bytes; the input is
fetched and never decoded.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from common.broker import make_app
from common.domain import Priority, Stage, queue_name
from common.messages import task_name
from common.settings import get_settings
from common.stage import Surroundings, open_surroundings, run_message
from common.stage_io import OutputFile, StageInput, StageOutput
from common.worker import attend
from tests.bench.outputs import FACTS, OUTPUTS, NoModel

QUEUES = [queue_name(stage, priority) for priority in Priority for stage in Stage]

app = make_app(get_settings(), "noop")
drain = attend(app, get_settings(), "noop", *Stage)


def process(stage: Stage, _model: NoModel, item: StageInput) -> StageOutput:
    """Leave the stage's one artifact."""
    kind, name, media_type, content = OUTPUTS[stage]
    path = item.scratch / name
    path.write_bytes(content)
    return StageOutput({kind: OutputFile(path, media_type)}, {}, FACTS)


@cache
def surroundings() -> Surroundings:
    """Connect once per child process, never in the parent."""
    return open_surroundings(get_settings(), drain)


def add_task(stage: Stage) -> None:
    """Make the task of one stage."""

    @app.task(name=task_name(stage))
    def run(message: Any) -> None:
        run_message(surroundings(), stage, message, NoModel, partial(process, stage))


for _stage in Stage:
    add_task(_stage)
