"""What the sweeper removes that no job holds: results, uploads, request keys."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from common import garbage
from common.db import DbNow
from common.domain import RunState, Stage, UploadState
from common.settings import Settings
from common.storage import ObjectStore
from common.storage.base import StoredPart
from common.tables import IdempotencyKey, StageRun, Upload
from services.dispatcher.sweeper import Sweeper
from tests.gateway.conftest import STACKS
from tests.pipeline.conftest import MakeJob
from tests.pipeline.swept import Sessions, keys, put, result_key, rows, sweep

AGO_S = 1_000.0


@pytest.fixture
def settings(database_url: str, store_options: dict[str, Any], tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, database_url=SecretStr(database_url), **store_options)


@pytest.fixture
def sweeper(settings: Settings, sessions: Sessions, store: ObjectStore) -> Iterator[Sweeper]:
    store.prepare()
    with closing(Sweeper(settings)) as sweeper:
        yield sweeper


@STACKS
def test_results_stay_while_a_run_uses_them(
    sweeper: Sweeper, sessions: Sessions, store: ObjectStore, make_job: MakeJob
) -> None:
    key = "d" * 64
    stored = put(store, result_key(key))
    make_job(1, stages={Stage.SEGMENT})

    def look(state: RunState) -> set[str]:
        with sessions.begin() as session:
            session.execute(update(StageRun).values(state=state.value, idempotency_key=key))
            garbage.discard(session, {key})
        sweep(sweeper)
        assert "garbage" not in rows(sessions)
        return keys(store)

    assert look(RunState.RUNNING) == {stored}
    assert look(RunState.SUCCEEDED) == {stored}
    assert look(RunState.CANCELLED) == set()


@STACKS
def test_results_that_are_stored_again_while_they_are_removed_are_looked_at_again(
    sweeper: Sweeper,
    sessions: Sessions,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a worker does whose run was cancelled while it stored: see decision 0009."""
    key = "e" * 64
    put(store, result_key(key))
    with sessions.begin() as session:
        garbage.discard(session, {key})
    delete = sweeper.store.delete

    def delete_and_store_again(object_key: str) -> None:
        delete(object_key)
        put(store, object_key)
        with sessions.begin() as session:
            garbage.discard(session, {key})
            assert garbage.being_removed(session, {key, "f" * 64}) == {key}

    monkeypatch.setattr(sweeper.store, "delete", delete_and_store_again)
    assert sweeper.remove_results()
    assert keys(store) == {result_key(key)}
    monkeypatch.setattr(sweeper.store, "delete", delete)
    sweep(sweeper)
    assert keys(store) == set()
    assert rows(sessions) == {}


@STACKS
def test_uploads_go_when_their_time_is_over(
    sweeper: Sweeper, sessions: Sessions, store: ObjectStore
) -> None:
    with sessions.begin() as session:
        for state in UploadState:
            for due, expires_at in (("over", DbNow() - 1.0), ("not-yet", DbNow() + AGO_S)):
                key = f"uploads/{state}-{due}"
                store_id = store.start_multipart(key, "audio/wav", 5 << 20)
                etag = store.put_part(key, store_id, 1, io.BytesIO(b"part"), 4)
                if state is UploadState.ABORTED:
                    store.abort_multipart(key, store_id)
                elif state is not UploadState.OPEN:
                    store.complete_multipart(key, store_id, [StoredPart(1, 4, etag)])
                session.add(
                    Upload(
                        name="x",
                        object_key=key,
                        store_id=store_id,
                        size_bytes=5,
                        part_bytes=5 << 20,
                        state=state.value,
                        expires_at=expires_at,
                    )
                )
    sweep(sweeper)
    with sessions() as session:
        left = set(session.scalars(select(Upload.object_key)))
    assert left == {f"uploads/{state}-not-yet" for state in UploadState}
    assert keys(store) == {
        "uploads/complete-not-yet",
        "uploads/used-not-yet",
        "uploads/used-over",  # the bytes of a recording now
    }
    assert [part.key for part in store.list_multiparts(-AGO_S)] == ["uploads/open-not-yet"]


@STACKS
def test_uploads_in_parts_that_nobody_knows_are_aborted(
    settings: Settings, sessions: Sessions, store: ObjectStore
) -> None:
    store.prepare()
    store.start_multipart("recordings/left", "audio/wav", 5 << 20)
    with closing(Sweeper(settings)) as sweeper:
        sweep(sweeper)
        assert [part.key for part in store.list_multiparts(-AGO_S)] == ["recordings/left"]
    old = settings.model_copy(update={"upload_ttl_s": -1e6})
    with closing(Sweeper(old)) as sweeper:
        sweep(sweeper)
    assert not list(store.list_multiparts(-AGO_S))


@STACKS
def test_old_request_keys_are_forgotten(
    sweeper: Sweeper, settings: Settings, sessions: Sessions
) -> None:
    ttl_s = settings.idempotency_ttl_s
    with sessions.begin() as session:
        for owner, key, age_s in (("", "old", ttl_s + 9), ("", "new", 9), ("k", "old", 9)):
            session.add(
                IdempotencyKey(
                    owner=owner,
                    key=key,
                    fingerprint="f",
                    resource="r",
                    created_at=DbNow() - age_s,
                )
            )
    sweep(sweeper)
    with sessions() as session:
        left = session.execute(select(IdempotencyKey.owner, IdempotencyKey.key)).all()
    assert {tuple(row) for row in left} == {("", "new"), ("k", "old")}
