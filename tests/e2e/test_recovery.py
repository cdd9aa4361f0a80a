"""Nothing is lost when workers are killed and Redis forgets everything in the middle of a job."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import redis
import soundfile

from common.domain import SERVICE_OF, STAGE_NEEDS, ArtifactKind, Stage
from tests.e2e.conftest import TERMINAL, Stack, kill_tree

KINDS = len(set(ArtifactKind) - {ArtifactKind.EXPLANATION, ArtifactKind.VECTORS})  # not on request


@pytest.fixture(scope="module")
def stack_settings() -> dict[str, str]:
    return {
        "lease_s": "3",
        "lost_message_grace_s": "2",
        "shard_audio_s": "12",
        "max_crashes_alone": "10",
    }


def make_recordings(folder: Path, number: int, seed: int) -> list[Path]:
    """Write short recordings of noise with a loud burst in it, no two alike."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    paths = []
    for index in range(number):
        samples = 0.02 * rng.standard_normal(16_000 * 4)
        onset = int(rng.integers(8_000, 40_000))
        samples[onset : onset + 8_000] += 0.4 * np.sin(np.arange(8_000) * (0.1 + 0.02 * index))
        paths.append(folder / f"{index:03d}.wav")
        soundfile.write(paths[-1], samples.clip(-1, 1), 16_000)
    return paths


def check_nothing_lost_nothing_doubled(stack: Stack, job_id: str, recordings: int) -> None:
    """Every run succeeded once; every artifact is there once; no success is unaccounted for."""
    runs = stack.rows("SELECT id, state, fence FROM stage_run WHERE job_id = ?", job_id)
    assert len(runs) == recordings * len(Stage)
    assert Counter(state for _, state, _ in runs) == {"succeeded": len(runs)}
    attempts = stack.rows(
        "SELECT a.stage_run_id, a.number, a.outcome FROM attempt a"
        " JOIN stage_run r ON r.id = a.stage_run_id WHERE r.job_id = ?",
        job_id,
    )
    successes = Counter(run for run, _, outcome in attempts if outcome in ("succeeded", "reused"))
    assert successes == {run: 1 for run, _, _ in runs}
    assert "running" not in {outcome for _, _, outcome in attempts}
    # Attempts are numbered without gaps up to the fence: none ran unnoticed.
    numbers: dict[str, list[int]] = {}
    for run, number, _ in attempts:
        numbers.setdefault(run, []).append(number)
    assert {run: sorted(found) for run, found in numbers.items()} == {
        run: list(range(1, fence + 1)) for run, _, fence in runs
    }
    artifacts = stack.rows(
        "SELECT a.recording_id, a.kind, a.object_key, a.size_bytes FROM artifact a"
        " JOIN recording r ON r.id = a.recording_id WHERE r.job_id = ?",
        job_id,
    )
    assert len(artifacts) == recordings * KINDS
    assert len({(recording, kind) for recording, kind, _, _ in artifacts}) == len(artifacts)
    objects = stack.home.folder / "objects"
    for _, _, key, size_bytes in artifacts:
        assert (objects / key).stat().st_size == size_bytes
    assert list((stack.home.folder / "scratch").iterdir()) == []


def test_each_worker_is_killed_in_the_middle_of_a_job(stack: Stack, tmp_path: Path) -> None:
    number = 24
    job_id = stack.submit(make_recordings(tmp_path / "a", number, seed=1))
    for stage in STAGE_NEEDS:
        worker = stack.until(
            lambda stage=stage: stack.rows(
                "SELECT a.worker FROM attempt a JOIN stage_run r ON r.id = a.stage_run_id"
                " WHERE r.job_id = ? AND r.stage = ? AND r.state = 'running'"
                " AND a.outcome = 'running' AND a.started_at IS NOT NULL",
                job_id,
                stage.value,
            )
        )
        state = stack.home.read_state()
        assert state is not None
        kill_tree(state.processes[f"{SERVICE_OF[stage]}-1"])
        kill_tree(int(worker[0][0].rpartition(":")[2]))
    job = stack.wait(job_id)
    assert job["counts"] == {stage.value: {"succeeded": number} for stage in STAGE_NEEDS}
    check_nothing_lost_nothing_doubled(stack, job_id, number)
    lost = stack.rows(
        "SELECT DISTINCT r.stage FROM attempt a JOIN stage_run r ON r.id = a.stage_run_id"
        " WHERE r.job_id = ? AND a.outcome = 'lost'",
        job_id,
    )
    assert {stage for (stage,) in lost} == set(Stage)


def test_redis_is_restarted_empty_in_the_middle_of_a_job(stack: Stack, tmp_path: Path) -> None:
    number = 24
    job_id = stack.submit(make_recordings(tmp_path / "b", number, seed=2))
    stack.until(
        lambda: stack.rows(
            "SELECT 1 FROM stage_run WHERE job_id = ? AND stage = 'classify'"
            " AND state = 'succeeded'",
            job_id,
        )
    )
    state = stack.home.read_state()
    assert state is not None
    folder = Path(state.socket_dir) if state.socket_dir else stack.home.broker
    with redis.Redis(unix_socket_path=str(folder / "redis.sock")) as connection:
        connection.flushall()
    kill_tree(state.processes["redis"])
    unfinished = stack.rows(
        "SELECT 1 FROM stage_run WHERE job_id = ? AND state NOT IN"
        f" ({','.join(repr(s) for s in sorted(TERMINAL))})",
        job_id,
    )
    assert unfinished, "the job was over before Redis was killed: make it longer"
    job = stack.wait(job_id)
    assert job["counts"] == {stage.value: {"succeeded": number} for stage in STAGE_NEEDS}
    check_nothing_lost_nothing_doubled(stack, job_id, number)
