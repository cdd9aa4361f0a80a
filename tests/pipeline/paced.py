"""Workers of all four stages that take as long as a recording's name says: ``0.3 s, 7.wav``.

    celery -A tests.pipeline.paced:app worker --queues ...

They compute nothing, but enter a phase every few milliseconds as a model does from chunk to chunk.
With a name that begins with ``deaf`` they enter one and do not come back before the time is over;
``bad`` is no audio, ``flaky`` fails in a way that nobody foresaw. Neighbours that begin with
``together`` are worked on at once, for as long as the longest takes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from functools import cache, partial
from itertools import groupby
from typing import Any

from common.broker import make_app
from common.domain import Stage
from common.errors import AudioUnreadable
from common.messages import task_name
from common.settings import get_settings
from common.stage import Surroundings, open_surroundings, run_message
from common.stage_io import AudioFacts, Done, OutputFile, StageInput, StageOutput, each, together
from common.worker import attend
from tests.bench.outputs import OUTPUTS, NoModel

CHUNK_S = 0.02
BEGUN = "begun"  # a file in the folder of what is being worked on

app = make_app(get_settings(), "paced")
drain = attend(app, get_settings(), "paced", *Stage)


def length_of(name: str) -> float:
    """Return the seconds that a recording's name tells."""
    found = re.search(r"([\d.]+) s", name)
    return float(found[1]) if found else 0.0


def process(stage: Stage, _model: NoModel, item: StageInput) -> StageOutput:
    """Take the time that the name says, then leave an artifact."""
    length_s = length_of(item.name)
    (item.scratch / BEGUN).write_text(item.name)
    if item.name.startswith("bad"):
        raise AudioUnreadable(f"{item.name} holds no audio stream")
    if item.name.startswith("flaky"):
        raise RuntimeError("a bug")
    if item.name.startswith("deaf"):
        with item.phases.phase("infer"):
            time.sleep(length_s)
    until = time.monotonic() + length_s
    while time.monotonic() < until:
        with item.phases.phase("infer"):
            time.sleep(CHUNK_S)
    return output_of(stage, item)


def output_of(stage: Stage, item: StageInput) -> StageOutput:
    """Leave the stage's one artifact."""
    kind, name, media_type, content = OUTPUTS[stage]
    path = item.scratch / name
    path.write_bytes(content)
    facts = AudioFacts(duration_s=max(0.1, length_of(item.name)), sample_rate=8_000, channels=1)
    return StageOutput({kind: OutputFile(path, media_type)}, {}, facts)


def process_shard(stage: Stage, model: NoModel, items: Iterable[StageInput]) -> Iterator[Done]:
    """Work on recordings one by one, but at once on neighbours whose names ask for that."""
    for at_once, group in groupby(items, lambda item: item.name.startswith("together")):
        if not at_once:
            yield from each(partial(process, stage))(model, group)
            continue
        batch = list(group)
        with together("infer", {item.phases: 1.0 for item in batch}):
            # stands for one computation over all, which a time limit has to cut off from outside
            time.sleep(max(length_of(item.name) for item in batch))
        yield from (Done(item, output_of(stage, item)) for item in batch)


@cache
def surroundings() -> Surroundings:
    """Connect once per child process, never in the parent."""
    return open_surroundings(get_settings(), drain)


def add_task(stage: Stage) -> None:
    """Make the task of one stage."""

    @app.task(name=task_name(stage))
    def run(message: Any) -> None:
        run_message(surroundings(), stage, message, NoModel, partial(process_shard, stage))


for _stage in Stage:
    add_task(_stage)
