"""Runs a stage: from a shard message to stored artifacts and recorded results.

One plain function, ``run_message``, that all four workers share. Each hands in how to load its
model and how to process one recording; everything around that is here: claiming, fetching, reuse of
earlier results, storing, errors. Artifacts are stored first, then recorded together with what
waits for them (``common.keeper``), so a crash at any point loses nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from common import logs, runs, sharing, stage_metrics
from common.checks import disk
from common.db import make_engine, make_readers, make_sessions
from common.domain import ArtifactKind, Stage
from common.draining import Drain
from common.ends import Dropped, Failed, GivenBack, GivenBackFor, Measures, Succeeded
from common.errors import (
    DiskFull,
    InternalError,
    MessageRefused,
    OutOfMemory,
    PermanentError,
    SoundmillError,
    StaleFence,
    TimeLimitExceeded,
)
from common.keeper import Keeper, transact
from common.messages import ShardMessage, read_shard_message
from common.params import canonical, parse_params
from common.runs import Claim, Reusable, StoredArtifact
from common.scratch import emptied, scratch_folder, sweep_scratch
from common.settings import Settings
from common.stage_io import Phases, StageInput, StageOutput
from common.stage_metrics import Fate
from common.storage import ObjectStore, open_store

log = logs.get_logger(__name__)

KEY_VERSION = "1"  # a part of every idempotency key: change it to forget all earlier results
MOST_PATIENCE_S = 16.0
AFTER_REFUSAL_S = (5.0, 10.0)  # until runs are dispatched again whose message was refused
UNTIL_ROOM_S = (5.0, 10.0)  # the same, where there was no room to work


class LoadedModel(Protocol):
    """What every worker's ``infer.load`` returns has at least these."""

    @property
    def digest(self) -> str: ...

    @property
    def device(self) -> str: ...


Model = TypeVar("Model", bound=LoadedModel)


@dataclass(frozen=True)
class Surroundings:
    """The outside world of a worker process."""

    settings: Settings
    engine: Engine
    sessions: sessionmaker[Session]
    readers: sessionmaker[Session]
    store: ObjectStore
    worker: str  # its name in attempts: host and process
    drain: Drain  # whether it is to stop


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
    process: Callable[[Model, StageInput], StageOutput],
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
            pause_s = random.uniform(*AFTER_REFUSAL_S)  # noqa: S311
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
    run_shard(around, message, load, process)


def run_shard(
    around: Surroundings,
    message: ShardMessage,
    load: Callable[[], Model],
    process: Callable[[Model, StageInput], StageOutput],
) -> None:
    """Claim the StageRuns of a shard and run them one after the other.

    Args:
        load: Returns the model; called after the claim, so that a model that kills its process is
            noticed. Cached by the caller.
        process: Computes one recording; see ``common.stage_io``.
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
            shard = _Shard(around, keeper, process, list(claims), scratch)
            try:
                shard.run(load)
            except SoftTimeLimitExceeded:
                shard.give_up()


class _Shard(Generic[Model]):
    """One walk through the claims of a shard, all of one stage."""

    def __init__(
        self,
        around: Surroundings,
        keeper: Keeper,
        process: Callable[[Model, StageInput], StageOutput],
        waiting: list[Claim],
        scratch: Path,
    ) -> None:
        self.around = around
        self.keeper = keeper
        self.process = process
        self.waiting = waiting  # the first is being worked on
        self.scratch = scratch
        self.found: dict[str, Reusable] = {}  # results by idempotency key
        self.measured = Measures()  # by the run that the time limit ended

    def run(self, load: Callable[[], Model]) -> None:
        """Work on all claims, or fail them when there is no model to do it with."""
        began = time.monotonic()
        try:
            model = load()
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            for claim in self._each():
                self._fail(claim, error, Measures())
            return
        took_s = time.monotonic() - began
        stage_metrics.note_model(self.waiting[0].stage, model.digest, model.device, took_s)
        keys = self._keys(model)
        left = self._left_to_others(keys)
        for claim in self._each():
            run_id = claim.stage_run_id
            if run_id in left:
                pause_s = pause_before_again(claim)
                self.keeper.end(GivenBack(claim, GivenBackFor.SAME_WORK_ELSEWHERE, pause_s))
            elif run_id in keys:
                self._run_claim(claim, keys[run_id], model)

    def give_up(self) -> None:
        """Fail the run that met the time limit and give back those that had not begun."""
        current, *rest = self.waiting
        error = TimeLimitExceeded(f"not done after {self.around.settings.soft_time_limit_s} s")
        self.keeper.end(Failed(current, error, self.measured))
        for claim in rest:
            self.keeper.end(GivenBack(claim, GivenBackFor.SHARD_OUT_OF_TIME))

    def _each(self) -> Iterator[Claim]:
        while self.waiting:
            claim = self.waiting[0]
            with logs.bind(**claim.ids):
                yield claim
            del self.waiting[0]

    def _keys(self, model: Model) -> dict[str, str]:
        """Return the idempotency keys of the claims by run; fail those with bad parameters."""
        keys = {}
        for claim in self.waiting:
            try:
                params = canonical(parse_params(claim.params).of(claim.stage))
            except PermanentError as error:
                with logs.bind(**claim.ids):
                    self._fail(claim, error, Measures())
                continue
            keys[claim.stage_run_id] = idempotency_key(
                claim.stage, claim.sha256, model.digest, params, claim.upstream_keys
            )
        return keys

    def _left_to_others(self, keys: dict[str, str]) -> set[str]:
        """Note the keys in the database, look for earlier results; return the runs to give back.

        First the keys are committed, then others are looked for, so that of two that do the same
        at least one sees the other: see decision 0009.
        """
        claims = [claim for claim in self.waiting if claim.stage_run_id in keys]
        begun = transact(self.around.sessions, lambda session: sharing.begin(session, keys, claims))
        mine = {claim.stage_run_id for claim in claims}
        with self.around.readers() as session:
            known = sharing.prospects(session, {keys[run_id] for run_id in begun}, mine)
            earlier = {p.succeeded for p in known.values() if p.succeeded is not None}
            results = sharing.reusable(session, earlier)
        for key, prospect in known.items():
            if prospect.succeeded in results:
                self.found[key] = results[prospect.succeeded]
        return (mine - begun) | {
            run_id
            for run_id in begun
            if known[keys[run_id]].being_removed
            or (known[keys[run_id]].elsewhere and keys[run_id] not in self.found)
        }

    def _run_claim(self, claim: Claim, key: str, model: Model) -> None:
        try:
            self.keeper.start(claim)
        except StaleFence as error:
            log.warning("not begun", reason=str(error))
            return
        earlier = self.found.get(key)
        if earlier is not None:
            measures = Measures(model_digest=model.digest, device=model.device)
            self.keeper.end(Succeeded(claim, key, earlier, measures, reused=True))
            log.info("earlier result reused")
            return
        phases = Phases(partial(self.keeper.check, claim))
        try:
            self._compute(claim, key, model, phases)
        except StaleFence as error:
            log.warning("result discarded", reason=str(error))
            self.keeper.end(Dropped(claim, key))
        except SoftTimeLimitExceeded:
            self.measured = _measures(claim.stage, model, phases)
            raise
        except Exception as error:
            self._fail(claim, error, _measures(claim.stage, model, phases))

    def _compute(self, claim: Claim, key: str, model: Model, phases: Phases) -> None:
        store = self.around.store
        with emptied(self.scratch / "in") as inputs, emptied(self.scratch / "out") as outputs:
            with phases.phase("download"):
                audio_path = _local(store, claim.object_key, inputs / "input")
                upstream = {
                    artifact.kind: _local(
                        store, artifact.object_key, inputs / f"upstream-{artifact.kind}"
                    )
                    for artifact in claim.upstream
                }
            params = parse_params(claim.params).of(claim.stage)
            item = StageInput(claim.name, audio_path, params, upstream, outputs, phases)
            output = self.process(model, item)
            with phases.phase("upload"):
                artifacts = [
                    _store_artifact(store, key, kind, file.path, file.media_type)
                    for kind, file in output.files.items()
                ]
        result = Reusable(tuple(artifacts), output.result, output.audio)
        measures = _measures(claim.stage, model, phases, output)
        self.keeper.end(Succeeded(claim, key, result, measures))
        self.found[key] = result
        log.info("stage run succeeded", stage=claim.stage, audio_s=output.audio.duration_s)

    def _fail(self, claim: Claim, error: Exception, measures: Measures) -> None:
        known = as_soundmill_error(error)
        log.warning("attempt failed", code=known.code, detail=str(known), exc_info=error)
        self.keeper.end(Failed(claim, known, measures))


def pause_before_again(claim: Claim) -> float:
    """Return how long to leave work that is done elsewhere: longer each time, never the same."""
    longest = min(MOST_PATIENCE_S, 2.0**claim.fence)
    return random.uniform(longest / 2, longest)  # noqa: S311


def idempotency_key(
    stage: Stage, sha256: str, model_digest: str, params: str, upstream: Sequence[str]
) -> str:
    """Return the key under which a result may be reused: 64 hexadecimal digits.

    Equal keys mean equal input bytes, stage, weights, parameters, and equal keys of everything the
    stage builds on.
    """
    parts = [KEY_VERSION, sha256, stage.value, model_digest, params, *upstream]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def as_soundmill_error(error: Exception) -> SoundmillError:
    """Return the error of our tree that fits any exception."""
    if isinstance(error, SoundmillError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull("the disk of the worker is full")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemory("the worker ran out of memory")
    return InternalError(f"{type(error).__name__}: {error}")


def _measures(
    stage: Stage, model: LoadedModel, phases: Phases, output: StageOutput | None = None
) -> Measures:
    return Measures(
        phases=dict(phases.seconds),
        audio_s=output.audio.duration_s if output else None,
        batch_size=output.batch_size if output else None,
        device=model.device,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        device_memory_bytes=stage_metrics.device_peak_bytes(stage, model.device),
        model_digest=model.digest,
    )


def _local(store: ObjectStore, key: str, path: Path) -> Path:
    """Return a local file with the object's bytes: the store's own when it has one."""
    own = store.local_path(key)
    if own is not None:
        return own
    store.fetch(key, path)
    return path


def _store_artifact(
    store: ObjectStore, key: str, kind: ArtifactKind, path: Path, media_type: str
) -> StoredArtifact:
    stored = store.put_file(f"artifacts/{key[:2]}/{key}/{path.name}", path, media_type)
    return StoredArtifact(
        kind=kind,
        object_key=stored.key,
        media_type=media_type,
        size_bytes=stored.size_bytes,
        sha256=stored.sha256,
    )
