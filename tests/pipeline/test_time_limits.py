"""A real worker's time limit: of a shard with one that hangs, it alone fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from common.domain import TERMINAL_STATES, RunState, Stage
from common.ends import GivenBackFor
from common.errors import TimeLimitExceeded
from common.settings import Settings
from common.tables import Attempt, StageRun
from tests.pipeline.conftest import NamedJob, states
from tests.pipeline.fleet import Fleet, until
from tests.servers import RedisServer

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def settings(database_url: str, redis_server: RedisServer, tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path,
        database_url=SecretStr(database_url),
        redis_url=SecretStr(redis_server.url),
        shard_audio_s=1_000.0,
        dispatch_interval_s=0.05,
        retry_backoff_s=0.05,
        max_attempts=2,
        soft_time_limit_s=4,  # a loaded machine holds innocents up, too
        hard_time_limit_s=600,  # never met
    )


@pytest.mark.parametrize("name", ["{} s, {}.wav", "together, {} s, {}.wav"])
def test_of_a_shard_only_the_one_that_hangs_fails(
    processes: Fleet, sessions: sessionmaker[Session], named_job: NamedJob, name: str
) -> None:
    hangs = 2
    lengths = [600 if n == hangs else 0.01 for n in range(5)]
    job_id = named_job([name.format(length, n) for n, length in enumerate(lengths)])
    processes.dispatcher()
    worker = processes.paced("worker", Stage.SEGMENT)
    child = worker.child.pid

    def ended() -> list[RunState]:
        found = states(sessions, job_id)[Stage.SEGMENT]
        return found if all(state in TERMINAL_STATES for state in found) else []

    expected = [RunState.FAILED if n == hangs else RunState.SUCCEEDED for n in range(5)]
    assert until(ended, worker.log.read_text) == expected
    with sessions() as session:
        runs = session.scalars(
            select(StageRun)
            .where(StageRun.stage == Stage.SEGMENT.value)
            .order_by(StageRun.position)
        ).all()
        attempts = session.scalars(select(Attempt).order_by(Attempt.number)).all()
    assert runs[hangs].error_code == TimeLimitExceeded.code
    assert [(run.failures, run.crashes) for run in runs] == [
        (2, 0) if n == hangs else (0, 0) for n in range(5)
    ]
    assert worker.child.pid == child  # no time limit has killed it
    beside = {a.error_code for a in attempts if a.stage_run_id != runs[hangs].id}
    assert beside == {None, GivenBackFor.SHARD_OUT_OF_TIME.value}
    worker.stop()
