"""The transitions of a StageRun, on SQLite and PostgreSQL."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from common import garbage, runs, sharing
from common.db import DbNow
from common.domain import ArtifactKind, JobState, Outcome, Priority, RunState, Stage
from common.ends import End, Failed, GivenBack, GivenBackFor, Measures, Succeeded, end_runs
from common.errors import AudioUnreadable, OutOfMemory, SoundmillError, StoreUnavailable
from common.runs import Claim, Reusable, StoredArtifact
from common.settings import Settings
from common.stage_io import AudioFacts
from common.tables import Artifact, Attempt, Garbage, Job, Recording, StageRun
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


def well(claim: Claim, key: str = "k" * 64) -> Succeeded:
    mask = StoredArtifact(ArtifactKind.MASK, "artifacts/mask", "application/zip", 3, "0" * 64)
    return Succeeded(
        claim,
        key,
        Reusable((mask,), {"regions": 2}, FACTS),
        Measures(phases={"decode": 0.5}, audio_s=7.5, device="cpu"),
        took_s=2.0,
        ago_s=1.0,
    )


def end(sessions: sessionmaker[Session], settings: Settings, *ends: End) -> set[str]:
    with sessions.begin() as session:
        return set(end_runs(session, ends, settings).stale)


def test_success_releases_what_waits_for_it_and_records_everything(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job()
    [claim] = claim_next(sessions, settings, job_id, Stage.SEGMENT)
    end(sessions, settings, well(claim))
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
    end(sessions, settings, well(classify))
    assert states(sessions, job_id)[Stage.RESTORE] == [RunState.READY]


def test_permanent_failure_fails_at_once_and_skips_what_builds_on_it(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job()
    [claim] = claim_next(sessions, settings, job_id, Stage.SEGMENT)
    end(sessions, settings, Failed(claim, AudioUnreadable("no audio stream")))
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
    error: SoundmillError,
    attempts: int,
) -> None:
    job_id = make_job(stages={Stage.SEGMENT})
    pauses = []
    for _ in range(attempts):
        [claim] = claim_next(sessions, settings, job_id, Stage.SEGMENT)
        end(sessions, settings, Failed(claim, error))
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
    stale = {old.stage_run_id}
    assert end(sessions, settings, well(old)) == stale
    assert end(sessions, settings, Failed(old, AudioUnreadable("late"))) == stale
    assert end(sessions, settings, GivenBack(old, GivenBackFor.WORKER_STOPPING)) == stale
    with sessions() as session:
        assert runs.held(session, [old]) == set()
        assert runs.held(session, [new]) == stale
    assert states(sessions, job_id)[Stage.SEGMENT] == [RunState.RUNNING]
    with sessions() as session:
        assert session.scalars(select(Artifact)).all() == []
    end(sessions, settings, well(new))
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
    end(sessions, settings, well(claims[0]))
    with sessions.begin() as session:
        runs.renew(session, claims, 100.0)
    with sessions() as session:
        ended = session.get_one(StageRun, claims[0].stage_run_id)
        run = session.get(StageRun, claims[1].stage_run_id)
        now = session.scalar(select(DbNow()))
    assert ended.lease_expires_at is None
    assert run is not None
    assert run.lease_expires_at == pytest.approx(now + 100.0, abs=2.0)


def test_what_is_known_of_a_key(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    """Results to reuse, runs elsewhere that work on it, and removal under way."""
    done, here, there = (make_job(stages={Stage.SEGMENT}) for _ in range(3))
    [claim] = claim_next(sessions, settings, done, Stage.SEGMENT)
    end(sessions, settings, well(claim, "a" * 64))
    [mine] = claim_next(sessions, settings, here, Stage.SEGMENT)
    [theirs] = claim_next(sessions, settings, there, Stage.SEGMENT)
    own = {mine.stage_run_id}
    with sessions.begin() as session:
        assert sharing.begin(session, {theirs.stage_run_id: "b" * 64}, [theirs]) == {
            theirs.stage_run_id
        }
        garbage.discard(session, ["c" * 64])
    with sessions.begin() as session:
        found = sharing.prospects(session, ["a" * 64, "b" * 64, "c" * 64, "d" * 64], own)
        assert found == {
            "a" * 64: sharing.Prospect(claim.stage_run_id, False, False),
            "b" * 64: sharing.Prospect(None, True, False),
            "c" * 64: sharing.Prospect(None, False, True),
            "d" * 64: sharing.Prospect(None, False, False),
        }
        [result] = sharing.reusable(session, [claim.stage_run_id]).values()
        assert (result.result, result.audio) == ({"regions": 2}, FACTS)
        assert [a.object_key for a in result.artifacts] == ["artifacts/mask"]
        assert sharing.begin(session, {mine.stage_run_id: "b" * 64}, [mine]) == set()
        assert sharing.begin(session, {mine.stage_run_id: "a" * 64}, [mine]) == own


def test_one_stale_end_costs_the_others_of_its_group_nothing(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job(5)
    claims = claim_next(sessions, settings, job_id, Stage.SEGMENT)
    with sessions.begin() as session:
        session.execute(
            update(StageRun)
            .where(StageRun.id == claims[1].stage_run_id)
            .values(state=RunState.CANCELLED.value)
        )
    ends: list[End] = [well(claim, f"{n}" * 64) for n, claim in enumerate(claims[:3])]
    ends.append(Failed(claims[3], AudioUnreadable("bad")))
    ends.append(GivenBack(claims[4], GivenBackFor.SAME_WORK_ELSEWHERE, 5.0))
    assert end(sessions, settings, *ends) == {claims[1].stage_run_id}
    found = states(sessions, job_id)
    ok, cancelled, failed = RunState.SUCCEEDED, RunState.CANCELLED, RunState.FAILED
    assert found[Stage.SEGMENT] == [ok, cancelled, ok, failed, RunState.READY]
    ready, blocked, skipped = RunState.READY, RunState.BLOCKED, RunState.SKIPPED
    assert found[Stage.CLASSIFY] == [ready, blocked, ready, skipped, blocked]
    with sessions() as session:
        assert session.scalars(select(Garbage.key)).all() == ["1" * 64]  # perhaps nobody's
        attempt = session.scalars(
            select(Attempt).where(Attempt.stage_run_id == claims[0].stage_run_id)
        ).one()
        assert attempt.started_at is not None
        assert attempt.finished_at == pytest.approx(attempt.started_at + 2.0)
        run = session.get_one(StageRun, claims[0].stage_run_id)
        assert run.finished_at == pytest.approx((attempt.finished_at or 0.0) + 1.0)


def test_giving_back_costs_nothing(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job(stages={Stage.SEGMENT})
    [claim] = claim_next(sessions, settings, job_id, Stage.SEGMENT)
    end(sessions, settings, GivenBack(claim, GivenBackFor.SHARD_OUT_OF_TIME))
    [again] = claim_next(sessions, settings, job_id, Stage.SEGMENT)
    assert (again.failures, again.fence) == (0, 2)


def test_who_comes_back_in_smaller_shards_keeps_to_it(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job(3, stages={Stage.SEGMENT})
    claims = claim_next(sessions, settings, job_id, Stage.SEGMENT)
    reason = GivenBackFor.SHARD_OUT_OF_TIME
    measures = Measures(phases={"infer": 4.0}, device="cpu")
    backs = [GivenBack(c, reason, shard_limit=2, measures=measures) for c in claims]
    end(sessions, settings, *backs)
    with sessions() as session:
        assert set(session.scalars(select(Attempt.infer_s))) == {4.0}
    again = claim_next(sessions, settings, job_id, Stage.SEGMENT)
    assert len(again) == 2
    end(sessions, settings, *(GivenBack(claim, GivenBackFor.WORKER_STOPPING) for claim in again))
    assert len(claim_next(sessions, settings, job_id, Stage.SEGMENT)) == 2


def test_nothing_of_an_ended_job_is_claimed(
    sessions: sessionmaker[Session], settings: Settings, make_job: MakeJob
) -> None:
    job_id = make_job(stages={Stage.SEGMENT})
    with sessions.begin() as session:
        shard = take_shard(session, job_id, Stage.SEGMENT, Priority.BULK, settings)
        assert shard is not None
        session.get_one(Job, job_id).state = JobState.CANCELLED.value
    with sessions.begin() as session:
        assert runs.claim(session, shard.id, "worker-1", 30.0) == []
