"""The transitions of a StageRun, on SQLite and PostgreSQL."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from common import runs
from common.db import Artifact, Attempt, DbNow, Recording, StageRun
from common.domain import ArtifactKind, Outcome, Priority, RunState, Stage
from common.errors import AudioUnreadable, OutOfMemory, StaleFence, StoreUnavailable
from common.runs import Claim, Measures, StoredArtifact
from common.settings import Settings
from common.stage_io import AudioFacts
from services.dispatcher.shards import take_shard
from tests.pipeline.conftest import MakeJob, states

FACTS = AudioFacts(duration_s=7.5, sample_rate=48_000, channels=2)


def claim_next(
    sessions: sessionmaker[Session], settings: Settings, job_id: str, stage: Stage
) -> list[Claim]:
    with sessions.begin() as session:
        shard = take_shard(session, job_id, stage, Priority.BULK, settings)
    assert shard is not None
    with sessions.begin() as session:
        return runs.claim(session, shard.id, "worker-1", settings.lease_s)


def end_well(sessions: sessionmaker[Session], claim: Claim, key: str = "k" * 64) -> None:
    mask = StoredArtifact(ArtifactKind.MASK, "artifacts/mask", "application/zip", 3, "0" * 64)
    with sessions.begin() as session:
        runs.succeed(
            session,
            claim,
            key=key,
            artifacts=[mask],
            result={"regions": 2},
            audio=FACTS,
            measures=Measures(phases={"decode": 0.5}, audio_s=7.5, device="cpu"),
        )


def test_success_releases_what_waits_for_it_and_records_everything(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job()
    [claim] = claim_next(sessions, settings, job_id, Stage.SEGMENT)
    end_well(sessions, claim)
    assert states(sessions, job_id) == {
        Stage.SEGMENT: [RunState.SUCCEEDED],
        Stage.CLASSIFY: [RunState.READY],
        Stage.ENHANCE: [RunState.READY],
        Stage.RESTORE: [RunState.BLOCKED],
    }
    with sessions() as session:
        recording = session.scalars(select(Recording)).one()
        assert (recording.duration_s, recording.sample_rate, recording.channels) == (7.5, 48_000, 2)
        assert set(session.scalars(select(StageRun.audio_s))) == {7.5}
        attempt = session.scalars(select(Attempt)).one()
        assert (attempt.outcome, attempt.number, attempt.decode_s) == (Outcome.SUCCEEDED, 1, 0.5)
        assert session.scalars(select(Artifact)).one().object_key == "artifacts/mask"

    [classify] = claim_next(sessions, settings, job_id, Stage.CLASSIFY)
    end_well(sessions, classify)
    assert states(sessions, job_id)[Stage.RESTORE] == [RunState.READY]


def test_permanent_failure_fails_at_once_and_skips_what_builds_on_it(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job()
    [claim] = claim_next(sessions, settings, job_id, Stage.SEGMENT)
    with sessions.begin() as session:
        runs.fail(session, claim, AudioUnreadable("no audio stream"), Measures(), settings)
    assert states(sessions, job_id) == {
        Stage.SEGMENT: [RunState.FAILED],
        Stage.CLASSIFY: [RunState.SKIPPED],
        Stage.ENHANCE: [RunState.SKIPPED],
        Stage.RESTORE: [RunState.SKIPPED],
    }
    with sessions() as session:
        failed = session.get(StageRun, claim.stage_run_id)
        assert failed is not None
        assert (failed.error_code, failed.error_detail) == ("audio_unreadable", "no audio stream")


@pytest.mark.parametrize(
    ("error", "attempts"), [(OutOfMemory("full"), 3), (StoreUnavailable("down"), 10)]
)
def test_transient_failure_is_tried_again_with_growing_pauses_then_fails(
    sessions: sessionmaker[Session],
    settings: Settings,
    make_job: MakeJob,
    error: Exception,
    attempts: int,
) -> None:
    job_id = make_job(stages={Stage.SEGMENT})
    pauses = []
    for _ in range(attempts):
        [claim] = claim_next(sessions, settings, job_id, Stage.SEGMENT)
        with sessions.begin() as session:
            runs.fail(session, claim, error, Measures(), settings)
        with sessions.begin() as session:
            run = session.get(StageRun, claim.stage_run_id)
            assert run is not None
            pauses.append(run.next_attempt_at - (session.scalar(select(DbNow())) or 0.0))
            run.next_attempt_at = 0.0
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.FAILED]
    expected = [min(60.0, 2.0 * 2.0**n) for n in range(attempts - 1)]
    assert pauses[:-1] == pytest.approx(expected, abs=1.0)
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(Attempt)) == attempts


def test_a_stale_fence_changes_nothing(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job(stages={Stage.SEGMENT})
    [old] = claim_next(sessions, settings, job_id, Stage.SEGMENT)
    with sessions.begin() as session:  # the lease expired and the run was taken back
        session.execute(update(StageRun).values(state=RunState.READY.value, shard_id=None))
    [new] = claim_next(sessions, settings, job_id, Stage.SEGMENT)
    assert new.fence == old.fence + 1
    with pytest.raises(StaleFence):
        end_well(sessions, old)
    with pytest.raises(StaleFence), sessions.begin() as session:
        runs.fail(session, old, AudioUnreadable("late"), Measures(), settings)
    with pytest.raises(StaleFence), sessions.begin() as session:
        runs.start(session, old)
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.RUNNING]
    with sessions() as session:
        assert session.scalars(select(Artifact)).all() == []
    end_well(sessions, new)
    with sessions() as session:
        assert len(session.scalars(select(Artifact)).all()) == 1


def test_a_message_delivered_twice_claims_once(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job(3, stages={Stage.SEGMENT})
    with sessions.begin() as session:
        shard = take_shard(session, job_id, Stage.SEGMENT, Priority.BULK, settings)
    assert shard is not None
    with sessions.begin() as session:
        first = runs.claim(session, shard.id, "worker-1", 30.0)
    with sessions.begin() as session:
        second = runs.claim(session, shard.id, "worker-2", 30.0)
    assert [claim.name for claim in first] == ["0.wav", "1.wav", "2.wav"]
    assert second == []


def test_renewing_moves_only_leases_still_held(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job(2, stages={Stage.SEGMENT})
    claims = claim_next(sessions, settings, job_id, Stage.SEGMENT)
    end_well(sessions, claims[0])
    with sessions.begin() as session:
        held = runs.renew(session, claims, 100.0)
    assert held == {claims[1].stage_run_id}
    with sessions() as session:
        run = session.get(StageRun, claims[1].stage_run_id)
        now = session.scalar(select(DbNow()))
    assert run is not None
    assert run.lease_expires_at == pytest.approx(now + 100.0, abs=2.0)


def test_earlier_results_are_found_by_their_key(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    [claim] = claim_next(sessions, settings, make_job(), Stage.SEGMENT)
    with sessions() as session:
        assert runs.find_reusable(session, "k" * 64) is None
    end_well(sessions, claim)
    with sessions() as session:
        found = runs.find_reusable(session, "k" * 64)
        assert found is not None
        assert (found.result, found.audio) == ({"regions": 2}, FACTS)
        assert [a.object_key for a in found.artifacts] == ["artifacts/mask"]
        assert runs.find_reusable(session, "l" * 64) is None


def test_giving_back_costs_nothing(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job(stages={Stage.SEGMENT})
    [claim] = claim_next(sessions, settings, job_id, Stage.SEGMENT)
    with sessions.begin() as session:
        runs.give_back(session, claim, "time_limit_exceeded")
    [again] = claim_next(sessions, settings, job_id, Stage.SEGMENT)
    assert (again.failures, again.fence) == (0, 2)
