"""The dispatcher's process: all of its parts work, and it ends when it is asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from common.domain import JobEventKind, JobState
from common.jobs import record_event
from common.settings import Settings
from common.tables import Job, Webhook
from common.webhooks import new_secret
from tests.pipeline.conftest import MakeJob
from tests.receiver import Receiver, receiver
from tests.servers import RedisServer


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as here:
        yield here


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_it_dispatches_tells_and_sweeps(
    settings: Settings,
    sessions: sessionmaker[Session],
    make_job: MakeJob,
    redis_server: RedisServer,
    hook: Receiver,
    tmp_path: Path,
) -> None:
    empty, deleted = make_job(0), make_job(2)
    with sessions.begin() as session:
        session.add(Webhook(url=hook.url, secret=new_secret(), kinds=["job.completed"]))
        session.flush()
        record_event(session, session.get_one(Job, deleted), JobEventKind.CREATED)
        session.get_one(Job, deleted).deleted_at = 1.0
    environment = {
        **os.environ,
        "SOUNDMILL_HOME": str(tmp_path),
        "SOUNDMILL_DATABASE_URL": settings.database_url.get_secret_value(),
        "SOUNDMILL_REDIS_URL": redis_server.url,
        "SOUNDMILL_EGRESS_ALLOW": hook.authority,
    }
    command = [sys.executable, "-m", "services.dispatcher"]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            jobs = [empty, deleted]
            while jobs != [empty] or not hook.received:
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.05)
                with sessions() as session:
                    jobs = list(session.scalars(select(Job.id)))
            process.send_signal(signal.SIGTERM)
            assert process.wait() == 0
        finally:
            process.kill()
    with sessions() as session:
        assert session.get_one(Job, empty).state == JobState.COMPLETED
