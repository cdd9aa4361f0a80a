"""Runs a stage: from a shard message to stored artifacts and recorded results.

One plain function, ``run_shard``, that all four workers share. Each hands in how to load its model
and how to process one recording; everything around that is here: claiming, leases, fetching,
reuse of earlier results, storing, recording, errors. Artifacts are stored first, then one
transaction records them and releases what waits for them, so a crash at any point loses nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import psutil
from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from common import logs, runs
from common.db import make_engine, make_sessions
from common.domain import ArtifactKind, Outcome, Stage
from common.errors import (
    DiskFull,
    InternalError,
    OutOfMemory,
    SoundmillError,
    StaleFence,
    TimeLimitExceeded,
)
from common.messages import ShardMessage
from common.params import canonical, parse_params
from common.runs import Claim, Measures, StoredArtifact
from common.settings import Settings
from common.stage_io import Phases, StageInput, StageOutput
from common.storage import ObjectStore, open_store

log = logs.get_logger(__name__)

KEY_VERSION = "1"  # a part of every idempotency key: change it to forget all earlier results
LEASE_RENEWALS = 3  # times a lease is renewed before it would expire
RETRY_PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # before a transaction is tried again


class LoadedModel(Protocol):
    """What every worker's ``infer.load`` returns has at least these."""

    @property
    def digest(self) -> str: ...

    @property
    def device(self) -> str: ...


Model = TypeVar("Model", bound=LoadedModel)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Surroundings:
    """The outside world of a worker process."""

    settings: Settings
    engine: Engine
    sessions: sessionmaker[Session]
    store: ObjectStore
    worker: str  # its name in attempts: host and process


def open_surroundings(settings: Settings) -> Surroundings:
    """Connect to database and object store, and clear what dead processes left in scratch."""
    engine = make_engine(settings)
    sweep_scratch(settings.scratch_dir)
    return Surroundings(
        settings=settings,
        engine=engine,
        sessions=make_sessions(engine),
        store=open_store(settings),
        worker=f"{os.uname().nodename}:{os.getpid()}",
    )


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
    claims = _transact(
        around,
        lambda session: runs.claim(session, message.shard_id, around.worker, settings.lease_s),
    )
    if not claims:
        log.info("stale shard ignored", shard_id=message.shard_id, stage=message.stage)
        return
    waiting = list(claims)
    with _leases(around, waiting):
        try:
            while waiting:
                claim = waiting[0]
                with logs.bind(
                    job_id=claim.job_id,
                    recording_id=claim.recording_id,
                    stage_run_id=claim.stage_run_id,
                    attempt=claim.fence,
                ):
                    _run_claim(around, claim, load, process)
                del waiting[0]
        except SoftTimeLimitExceeded:
            _give_up(around, waiting)


def _run_claim(
    around: Surroundings,
    claim: Claim,
    load: Callable[[], Model],
    process: Callable[[Model, StageInput], StageOutput],
) -> None:
    phases = Phases()
    model: Model | None = None
    try:
        _transact(around, lambda session: runs.start(session, claim))
        model = load()
        _run_model(around, claim, model, process, phases)
    except StaleFence as error:
        log.warning("result discarded", reason=str(error))
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        known = as_soundmill_error(error)
        log.warning("attempt failed", code=known.code, detail=str(known), exc_info=error)
        measures = _measures(model, phases)
        try:
            _transact(
                around, lambda session: runs.fail(session, claim, known, measures, around.settings)
            )
        except StaleFence as stale:
            log.warning("failure discarded", reason=str(stale))


def _run_model(
    around: Surroundings,
    claim: Claim,
    model: Model,
    process: Callable[[Model, StageInput], StageOutput],
    phases: Phases,
) -> None:
    params = parse_params(claim.params).of(claim.stage)
    with around.sessions() as session:
        upstream = runs.upstream_artifacts(session, claim)
        key = idempotency_key(
            claim.stage,
            claim.sha256,
            model.digest,
            canonical(params),
            runs.upstream_keys(session, claim),
        )
        earlier = runs.find_reusable(session, key)
    if earlier is not None:
        _transact(
            around,
            lambda session: runs.succeed(
                session,
                claim,
                key=key,
                artifacts=earlier.artifacts,
                result=earlier.result,
                audio=earlier.audio,
                measures=Measures(model_digest=model.digest, device=model.device),
                outcome=Outcome.REUSED,
            ),
        )
        log.info("earlier result reused")
        return
    with scratch_folder(around.settings.scratch_dir) as scratch:
        with phases.phase("download"):
            audio_path = _local(around.store, claim.object_key, scratch / "input")
            inputs = {
                artifact.kind: _local(
                    around.store, artifact.object_key, scratch / f"upstream-{artifact.kind}"
                )
                for artifact in upstream
            }
        outputs = scratch / "outputs"
        outputs.mkdir()
        item = StageInput(claim.name, audio_path, params, inputs, outputs, phases)
        output = process(model, item)
        with phases.phase("upload"):
            artifacts = [
                _store_artifact(around.store, key, kind, file.path, file.media_type)
                for kind, file in output.files.items()
            ]
    measures = _measures(model, phases, output)
    _transact(
        around,
        lambda session: runs.succeed(
            session,
            claim,
            key=key,
            artifacts=artifacts,
            result=output.result,
            audio=output.audio,
            measures=measures,
        ),
    )
    log.info("stage run succeeded", stage=claim.stage, audio_s=output.audio.duration_s)


def idempotency_key(
    stage: Stage, sha256: str, model_digest: str, params: str, upstream: list[str]
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


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """Make a private folder under ``root`` and remove it afterwards, whatever happens."""
    folder = root / f"{os.getpid()}-{os.urandom(8).hex()}"
    folder.mkdir(parents=True, mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_scratch(root: Path) -> None:
    """Remove the scratch folders of processes that no longer run on this machine."""
    if not root.is_dir():
        return
    for folder in root.iterdir():
        pid = folder.name.partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _leases(around: Surroundings, waiting: list[Claim]) -> Iterator[None]:
    """Renew the leases of ``waiting`` from a thread while the block runs."""
    done = threading.Event()

    def renew_often() -> None:
        while not done.wait(around.settings.lease_s / LEASE_RENEWALS):
            try:
                with around.sessions.begin() as session:
                    runs.renew(session, list(waiting), around.settings.lease_s)
            except DBAPIError as error:
                log.warning("lease not renewed", detail=str(error.orig))

    thread = threading.Thread(target=renew_often, name="leases", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _give_up(around: Surroundings, waiting: list[Claim]) -> None:
    """Fail the run that met the time limit and give back those that had not begun."""
    current, *rest = waiting
    settings = around.settings
    error = TimeLimitExceeded(f"not done after {settings.soft_time_limit_s} s")
    ends = [partial(runs.fail, claim=current, error=error, measures=Measures(), settings=settings)]
    ends += [partial(runs.give_back, claim=claim, reason=error.code) for claim in rest]
    for end in ends:
        try:
            _transact(around, end)
        except StaleFence as stale:
            log.warning("time limit not recorded", reason=str(stale))


def _transact(around: Surroundings, work: Callable[[Session], Result]) -> Result:
    """Run one transaction; try again when the database drops the connection or is busy."""
    for pause_s in RETRY_PAUSES_S:
        try:
            with around.sessions.begin() as session:
                return work(session)
        except DBAPIError as error:
            log.warning("database transaction tried again", detail=str(error.orig))
            time.sleep(pause_s)
    with around.sessions.begin() as session:
        return work(session)


def _measures(
    model: LoadedModel | None, phases: Phases, output: StageOutput | None = None
) -> Measures:
    return Measures(
        phases=dict(phases.seconds),
        audio_s=output.audio.duration_s if output else None,
        batch_size=output.batch_size if output else None,
        device=model.device if model else None,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        model_digest=model.digest if model else None,
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
