"""One walk through the claims of a shard: fetching, computing, reusing, storing, and how each ends.

A model takes the recordings as it has use for them and may compute several together; each keeps its
own claim, time, folders and errors.
"""

from __future__ import annotations

import errno
import hashlib
import random
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from common import logs, sharing, stage_metrics
from common.domain import ArtifactKind, Stage
from common.draining import Drain
from common.ends import Dropped, Failed, GivenBack, GivenBackFor, Measures, Succeeded
from common.errors import (
    DiskFull,
    InternalError,
    OutOfMemory,
    PermanentError,
    SoundmillError,
    StaleFence,
    TimeLimitExceeded,
)
from common.keeper import Keeper, transact
from common.params import canonical, parse_params
from common.runs import Claim, Reusable, StoredArtifact, halved
from common.scratch import emptied
from common.settings import Settings
from common.stage_io import Done, Phases, StageInput, StageOutput
from common.storage import ObjectStore

log = logs.get_logger(__name__)

KEY_VERSION = "1"  # a part of every idempotency key: change it to forget all earlier results
MOST_PATIENCE_S = 16.0


class LoadedModel(Protocol):
    """What every worker's ``infer.load`` returns has at least these."""

    @property
    def digest(self) -> str: ...

    @property
    def device(self) -> str: ...


Model = TypeVar("Model", bound=LoadedModel)
ProcessShard = Callable[[Model, Iterable[StageInput]], Iterator[Done]]
"""Takes recordings when it has use for them; yields each once, with what became of it."""


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


@dataclass(frozen=True)
class _Work:
    """A claim that was begun. ``folders`` removes what its folders hold when it is closed."""

    claim: Claim
    key: str
    model: LoadedModel
    phases: Phases
    folders: ExitStack

    def measures(self, output: StageOutput | None = None) -> Measures:
        """Return what was measured so far, or in all where there is an output."""
        stage, model = self.claim.stage, self.model
        return Measures(
            phases=dict(self.phases.seconds),
            audio_s=output.audio.duration_s if output else None,
            batch_size=output.batch_size if output else None,
            device=model.device,
            peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            device_memory_bytes=stage_metrics.device_peak_bytes(stage, model.device),
            model_digest=model.digest,
        )


class Shard(Generic[Model]):
    """One walk through the claims of a shard, all of one stage."""

    def __init__(
        self,
        around: Surroundings,
        keeper: Keeper,
        process_shard: ProcessShard[Model],
        waiting: list[Claim],
        scratch: Path,
    ) -> None:
        self.around = around
        self.keeper = keeper
        self.process_shard = process_shard
        self.n_claims = len(waiting)
        self.waiting = waiting  # not begun
        self.at_work: dict[Path, _Work] = {}  # by the folder where the model leaves its output
        self.scratch = scratch
        self.found: dict[str, Reusable] = {}  # results by idempotency key
        self.has_begun = False  # any one

    def run(self, load: Callable[[], Model]) -> None:
        """Work on all claims, or fail them when there is no model to do it with."""
        began = time.monotonic()
        try:
            model = load()
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            for claim in self.waiting:
                self._fail(claim, error, Measures())
            return
        took_s = time.monotonic() - began
        stage_metrics.note_model(self.waiting[0].stage, model.digest, model.device, took_s)
        keys = self._keys(model)
        left = self._left_to_others(keys)
        for claim in self.waiting:
            if claim.stage_run_id in left:
                pause_s = pause_before_again(claim)
                self.keeper.end(GivenBack(claim, GivenBackFor.SAME_WORK_ELSEWHERE, pause_s))
        self.waiting = [c for c in self.waiting if c.stage_run_id in keys.keys() - left]
        while self.waiting:
            n_waiting = len(self.waiting)
            try:
                for done in self.process_shard(model, self._inputs(keys, model)):
                    self._finish(done)
                if self.at_work or len(self.waiting) == n_waiting:
                    raise RuntimeError("the model left recordings out")
            except SoftTimeLimitExceeded:
                raise
            except Exception as error:  # of none of them alone
                if len(self.waiting) == n_waiting:
                    self._fail(self.waiting.pop(0), error, Measures())
                for folder in list(self.at_work):
                    self._end(folder, error)

    def give_up(self) -> None:
        """End everything when the time limit was met: fail what took the time, give back the rest.

        Where it is not known which of those at work took it, they come back in halves, as from a
        worker that was killed, until it is alone. There is an end to that: of a shard that runs out
        of time, something has ended before, is failed, or comes back in a smaller one.
        """
        if self.waiting and not self.has_begun:  # the model took all the time
            self.keeper.end(Failed(self.waiting.pop(0), self._out_of_time()))
        guilty = self._guilty()
        n_suspects = len(self.at_work) if guilty is None else 0
        for work in self.at_work.values():
            with work.folders, logs.bind(**work.claim.ids):
                self._end_out_of_time(work, work is guilty, n_suspects)
        begun = [work.claim for work in self.at_work.values()]
        for claim in self.waiting:
            if claim not in begun:
                self.keeper.end(GivenBack(claim, GivenBackFor.SHARD_OUT_OF_TIME))

    def _guilty(self) -> _Work | None:
        """Return what took the time, None where that is not known.

        More than half of it can only have been one's own; in a shard of one, whose else?
        """
        half_s = self.around.settings.soft_time_limit_s / 2
        for work in self.at_work.values():
            if self.n_claims == 1 or self.keeper.spent(work.claim).alone_s > half_s:
                return work
        return None

    def _end_out_of_time(self, work: _Work, is_guilty: bool, n_suspects: int) -> None:
        """End one at work when the time limit was met. ``n_suspects``: 0 where one is guilty."""
        if is_guilty:
            self._fail(work.claim, self._out_of_time(), work.measures())
            return
        log.warning("given back: its shard is out of time", suspects=n_suspects)
        reason, limit = GivenBackFor.SHARD_OUT_OF_TIME, halved(n_suspects) if n_suspects else None
        back = GivenBack(work.claim, reason, shard_limit=limit, measures=work.measures())
        self.keeper.end(back)

    def _out_of_time(self) -> TimeLimitExceeded:
        return TimeLimitExceeded(f"not done after {self.around.settings.soft_time_limit_s} s")

    def _keys(self, model: Model) -> dict[str, str]:
        """Return the idempotency keys of the claims by run; fail those with bad parameters."""
        keys = {}
        for claim in self.waiting:
            try:
                params = canonical(parse_params(claim.params).of(claim.stage))
            except PermanentError as error:
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

    def _inputs(self, keys: dict[str, str], model: Model) -> Iterator[StageInput]:
        """Begin claims one by one, as the model asks for them.

        One that does the same as another at work is left for later: it reuses the result.
        """
        for claim in list(self.waiting):
            key = keys[claim.stage_run_id]
            if any(work.key == key for work in self.at_work.values()):
                continue
            with logs.bind(**claim.ids):
                item = self._begin(claim, key, model)
                self.waiting.remove(claim)
                if item is not None:
                    yield item

    def _begin(self, claim: Claim, key: str, model: Model) -> StageInput | None:
        """Fetch what a recording needs; None where that ends it or its result is known already."""
        try:
            self.keeper.start(claim)
        except StaleFence as error:
            log.warning("not begun", reason=str(error))
            return None
        self.has_begun = True
        earlier = self.found.get(key)
        if earlier is not None:
            measures = Measures(model_digest=model.digest, device=model.device)
            self.keeper.end(Succeeded(claim, key, earlier, measures, reused=True))
            log.info("earlier result reused")
            return None
        number = next(n for n in count() if self.scratch / f"out-{n}" not in self.at_work)
        folder = self.scratch / f"out-{number}"
        folders = ExitStack()
        phases = Phases(partial(self.keeper.check, claim), partial(self.keeper.turn, claim))
        self.at_work[folder] = _Work(claim, key, model, phases, folders)
        try:
            folders.enter_context(emptied(folder))
            inputs = folders.enter_context(emptied(self.scratch / f"in-{number}"))
            return self._fetched(claim, inputs, folder, phases)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            self._end(folder, error)
            return None

    def _fetched(self, claim: Claim, inputs: Path, folder: Path, phases: Phases) -> StageInput:
        store = self.around.store
        with phases.phase("download"):
            audio_path = _local(store, claim.object_key, inputs / "input")
            upstream = {
                artifact.kind: _local(
                    store, artifact.object_key, inputs / f"upstream-{artifact.kind}"
                )
                for artifact in claim.upstream
            }
        params = parse_params(claim.params).of(claim.stage)
        return StageInput(claim.name, audio_path, params, upstream, folder, phases)

    def _finish(self, done: Done) -> None:
        """Store what the model made of a recording, or note its error."""
        folder, output = done.item.scratch, done.outcome
        work = self.at_work[folder]
        claim, key = work.claim, work.key
        with logs.bind(**claim.ids):
            try:
                if isinstance(output, Exception):
                    raise output
                with work.phases.phase("upload"):
                    artifacts = [
                        _store_artifact(self.around.store, key, kind, file.path, file.media_type)
                        for kind, file in output.files.items()
                    ]
            except SoftTimeLimitExceeded:
                raise
            except Exception as error:
                self._end(folder, error)
                return
            result = Reusable(tuple(artifacts), output.result, output.audio)
            self.keeper.end(Succeeded(claim, key, result, work.measures(output)))
            self.found[key] = result
            log.info("stage run succeeded", stage=claim.stage, audio_s=output.audio.duration_s)
            del self.at_work[folder]
            work.folders.close()

    def _end(self, folder: Path, error: Exception) -> None:
        """End what was at work in a folder with an error."""
        work = self.at_work[folder]
        with work.folders, logs.bind(**work.claim.ids):
            if isinstance(error, StaleFence):
                log.warning("result discarded", reason=str(error))
                self.keeper.end(Dropped(work.claim, work.key))
            else:
                self._fail(work.claim, error, work.measures())
        del self.at_work[folder]

    def _fail(self, claim: Claim, error: Exception, measures: Measures) -> None:
        known = as_soundmill_error(error)
        with logs.bind(**claim.ids):
            log.warning("attempt failed", code=known.code, detail=str(known), exc_info=error)
        self.keeper.end(Failed(claim, known, measures))


def pause_before_again(claim: Claim) -> float:
    """Return how long to leave work that is done elsewhere: longer each time, never the same."""
    longest = min(MOST_PATIENCE_S, 2.0**claim.fence)
    return random.uniform(longest / 2, longest)  # noqa: S311 (spreads retries, no secret)


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
