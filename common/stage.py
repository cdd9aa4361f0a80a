"""Runs a stage: from a shard message to stored artifacts and recorded results.

One plain function, ``run_message``, that all four workers share. Each hands in how to load its
model and how to process recordings; everything around that is here and in ``common.shard``:
claiming, fetching, reuse of earlier results, storing, errors. Artifacts are stored first, then
recorded together with what waits for them (``common.keeper``), so a crash at any point loses
nothing.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded

from common import logs, runs, stage_metrics
from common.checks import disk
from common.db import make_engine, make_readers, make_sessions
from common.domain import Stage
from common.draining import Drain
from common.errors import MessageRefused
from common.keeper import Keeper, transact
from common.messages import ShardMessage, read_shard_message
from common.scratch import scratch_folder, sweep_scratch
from common.settings import Settings
from common.shard import Model, ProcessShard, Shard
from common.shard import Surroundings as Surroundings
from common.stage_metrics import Fate
from common.storage import open_store

log = logs.get_logger(__name__)

AFTER_REFUSAL_S = (5.0, 10.0)  # until runs are dispatched again whose message was refused
UNTIL_ROOM_S = (5.0, 10.0)  # the same, where there was no room to work


def open_surroundings(settings: Settings, drain: Drain | None = None) -> Surroundings:
    """Connect to database and object store, and clear what dead processes left in scratch."""
    engine = make_engine(settings)
    sweep_scratch(settings.scratch_dir)
    return Surroundings(
        settings=settings,
        engine=engine,
        sessions=make_sessions(engine),
        readers=make_readers(engine),
        store=open_store(settings),
        worker=f"{os.uname().nodename}:{os.getpid()}",
        drain=drain or Drain(),
    )


def run_message(
    around: Surroundings,
    stage: Stage,
    content: Any,
    load: Callable[[], Model],
    process_shard: ProcessShard[Model],
) -> None:
    """Do what a message asks for; see ``run_shard``.

    What a message names that we cannot follow is dispatched again a little later: a newer worker
    may take it. Of what it does not name, the dispatcher finds that the message is lost.
    """
    try:
        message = read_shard_message(content, stage)
    except MessageRefused as error:
        shard_id = error.shard_id
        log.error("message refused", stage=stage, shard_id=shard_id, detail=str(error))
        stage_metrics.count_message(stage, Fate.REFUSED)
        if shard_id is not None:
            pause_s = random.uniform(*AFTER_REFUSAL_S)  # noqa: S311 (spreads retries, no secret)
            transact(around.sessions, lambda s: runs.return_shard(s, shard_id, pause_s))
        return
    if around.drain.asked:
        transact(around.sessions, lambda s: runs.return_shard(s, message.shard_id))
        return
    short = disk.lack_of_room(around.settings)
    if short is not None:  # begun, each run would fail for it and use up its attempts
        log.error("no room to work: shard given back", shard_id=message.shard_id, detail=short)
        pause_s = random.uniform(*UNTIL_ROOM_S)  # noqa: S311
        transact(around.sessions, lambda s: runs.return_shard(s, message.shard_id, pause_s))
        return
    run_shard(around, message, load, process_shard)


def run_shard(
    around: Surroundings,
    message: ShardMessage,
    load: Callable[[], Model],
    process_shard: ProcessShard[Model],
) -> None:
    """Claim the StageRuns of a shard and run them.

    Args:
        load: Returns the model; called after the claim, so that a model that kills its process is
            noticed. Cached by the caller.
        process_shard: Computes recordings; see ``common.stage_io``.
    """
    settings = around.settings
    with (
        logs.bind(shard_id=message.shard_id),
        scratch_folder(settings.scratch_dir) as scratch,  # where that fails, nothing is claimed
    ):
        claims = transact(
            around.sessions,
            lambda session: runs.claim(session, message.shard_id, around.worker, settings.lease_s),
        )
        if not claims:
            log.info("stale shard ignored", stage=message.stage)
            stage_metrics.count_message(message.stage, Fate.STALE)
            return
        stage_metrics.count_message(message.stage, Fate.TAKEN)
        stage_metrics.count_claims(claims)
        with Keeper(around.sessions, around.readers, settings, around.drain, claims) as keeper:
            shard = Shard(around, keeper, process_shard, list(claims), scratch)
            try:
                shard.run(load)
            except SoftTimeLimitExceeded:
                shard.give_up()
