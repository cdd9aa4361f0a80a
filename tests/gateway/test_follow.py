"""Server-sent events of jobs, read from the wire as a browser's EventSource reads them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.db import DbNow
from common.domain import JobEventKind, JobState, Scope
from common.jobs import record_event
from common.tables import Job
from services.gateway import follow
from services.gateway.follow import Listener, Look
from tests.gateway.conftest import STACKS, Gateway, problem
from tests.servers import free_port

EMBEDDED = pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True, ids=["embedded"]
)


@dataclass(frozen=True)
class Told:
    """One event. ``id`` is None where it has none; a comment has the name ``:``."""

    name: str
    id: str | None
    data: Any


def parse(lines: Iterator[str]) -> Iterator[Told]:
    """Yield events as the HTML standard has them, and comments."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            yield Told(":", None, line[1:].strip())
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Told(fields["event"], fields.get("id"), json.loads(fields["data"]))
            fields = {}


@contextmanager
def following(
    gateway: Gateway, job_id: str, last_id: str | None = None, **headers: str
) -> Iterator[Iterator[Told]]:
    if last_id is not None:
        headers["Last-Event-ID"] = last_id
    path = f"/v1/jobs/{job_id}/events"
    with gateway.client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        yield parse(answer.iter_lines())


def milestones(told: Iterator[Told]) -> Iterator[Told]:
    return (event for event in told if event.id is not None)


def happen(gateway: Gateway, job_id: str, kind: JobEventKind, **data: Any) -> None:
    with gateway.sessions.begin() as session:
        job = session.get_one(Job, job_id, with_for_update=True)
        if kind is JobEventKind.COMPLETED:
            job.state, job.finished_at = JobState.COMPLETED.value, DbNow()
        record_event(session, job, kind, **data)


@STACKS
def test_a_job_is_followed_from_its_beginning_to_its_end(gateway: Gateway) -> None:
    job_id = gateway.new_job(name="harbour")
    other = gateway.new_job()
    with following(gateway, job_id) as told:
        first = next(milestones(told))
        assert first.name == "job.created"
        assert first.data["type"] == "job.created"
        assert first.data["timestamp"].endswith("Z")
        assert first.data["data"] == {"job_id": job_id, "name": "harbour", "state": "open"}
        happen(gateway, other, JobEventKind.CLOSED)
        happen(gateway, job_id, JobEventKind.SOURCE_DONE, recordings=3)
        second = next(milestones(told))
        assert second.name == "source.done"
        assert second.data["data"]["recordings"] == 3
        happen(gateway, job_id, JobEventKind.COMPLETED)
        rest = list(told)
    assert [event.name for event in rest if event.id] == ["job.completed"]
    assert rest[-1].name == "progress"
    assert rest[-1].data["state"] == "completed"

    with following(gateway, job_id) as told:  # whoever comes late is told all of it
        names = [event.name for event in told]
    assert names == ["job.created", "source.done", "job.completed", "progress"]


@STACKS
def test_who_comes_back_is_told_what_it_missed(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    with following(gateway, job_id) as told:
        last = next(milestones(told)).id
    happen(gateway, job_id, JobEventKind.PAUSED)
    happen(gateway, job_id, JobEventKind.RESUMED)
    happen(gateway, job_id, JobEventKind.COMPLETED)
    with following(gateway, job_id, last) as told:
        missed = list(milestones(told))
    assert [event.name for event in missed] == ["job.paused", "job.resumed", "job.completed"]
    ids = [int(event.id or 0) for event in missed]
    assert ids == sorted(ids)
    headers = {"Last-Event-ID": missed[-1].id or ""}
    answer = gateway.client.get(f"/v1/jobs/{job_id}/events", headers=headers)
    assert (answer.status_code, answer.content) == (204, b"")


@STACKS
def test_progress_is_told_whenever_it_changes(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    with following(gateway, job_id) as told:
        progress = (event for event in told if event.name == "progress")
        assert next(progress).data["recordings"] == 0
        gateway.upload(job_id)
        event = next(progress)
        assert event.data["recordings"] == 1
        assert event.id is None
        with gateway.sessions.begin() as session:
            job = session.get_one(Job, job_id)
            job.counts, job.audio_s_total = {"segment": {"running": 1}}, 60.0
            job.audio_s_done, job.rate, job.counted_at = 20.0, 4.0, DbNow()
        event = next(progress)
        assert event.data["counts"] == {"segment": {"running": 1}}
        assert (event.data["audio_s_left"], event.data["eta_s"]) == (40.0, 10.0)


@EMBEDDED
def test_pages_of_events_are_all_told_in_order(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "EVENTS_AT_ONCE", 10)
    job_id = gateway.new_job()
    for number in range(35):
        happen(gateway, job_id, JobEventKind.SOURCE_DONE, number=number)
    happen(gateway, job_id, JobEventKind.COMPLETED)
    with following(gateway, job_id) as told:
        events = list(milestones(told))
    assert [event.data["data"].get("number") for event in events] == [None, *range(35), None]


@EMBEDDED
def test_many_follow_one_job_at_the_cost_of_one(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    look_at = follow._look_at

    def counting(*arguments: Any) -> Look:
        looks.append(1)
        return look_at(*arguments)

    monkeypatch.setattr(follow, "_look_at", counting)
    job_id = gateway.new_job()
    listening = threading.Barrier(9)
    heard: list[list[str]] = []

    def listen() -> None:
        with following(gateway, job_id) as told:
            first = next(milestones(told)).name
            listening.wait(30)
            heard.append([first, *(event.name for event in milestones(told))])

    threads = [threading.Thread(target=listen) for _ in range(8)]
    for thread in threads:
        thread.start()
    listening.wait(30)
    before = len(looks)
    happen(gateway, job_id, JobEventKind.COMPLETED)
    for thread in threads:
        thread.join()
    assert heard == [["job.created", "job.completed"]] * 8
    assert len(looks) - before < 8


@EMBEDDED
def test_what_is_refused(gateway: Gateway) -> None:
    problem(gateway.client.get("/v1/jobs/nothing/events"), 404, "not_found")
    job_id = gateway.new_job()
    for last_id in ("-1", "x", "1.5", str(1 << 63), "9" * 100):
        answer = gateway.client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last_id})
        problem(answer, 422, "request_invalid")


@STACKS
def test_one_key_does_not_follow_the_jobs_of_another(gateway_with_keys: Gateway) -> None:
    gateway = gateway_with_keys
    mine, theirs = (gateway.new_key([Scope.SUBMIT, Scope.READ]) for _ in range(2))
    job_id = gateway.client.post("/v1/jobs", json={}, headers=mine).json()["id"]
    path = f"/v1/jobs/{job_id}/events"
    problem(gateway.client.get(path, headers=theirs), 404, "not_found")
    problem(gateway.client.get(path), 401, "key_missing")
    with following(gateway, job_id, **mine) as told:
        assert next(told).name == "job.created"


@EMBEDDED
def test_a_key_follows_a_bounded_number_of_jobs(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "MOST_PER_OWNER", 2)
    job_id = gateway.new_job()
    path = f"/v1/jobs/{job_id}/events"
    with following(gateway, job_id) as one, following(gateway, job_id) as two:
        next(one), next(two)
        answer = gateway.client.get(path)
        problem(answer, 429, "too_many_streams")
        assert int(answer.headers["retry-after"]) > 0
    while True:  # those who went away are noticed
        with gateway.client.stream("GET", path) as answer:
            if answer.status_code == 200:
                break
        time.sleep(0.01)


@EMBEDDED
def test_a_stream_of_a_job_that_is_deleted_ends(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    with following(gateway, job_id) as told:
        next(told)
        with gateway.sessions.begin() as session:
            session.get_one(Job, job_id).deleted_at = 1.0
        list(told)


@EMBEDDED
def test_a_quiet_stream_is_kept_alive_and_ends_in_time(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(follow, "STREAM_S", 0.5)
    job_id = gateway.new_job()
    with following(gateway, job_id) as told:
        events = list(told)
    assert Told(":", None, "ping") in events
    assert [event.name for event in events if event.id] == ["job.created"]


def test_a_client_that_reads_nothing_is_cut_off() -> None:
    listener = Listener(None, "job", 0)
    for number in range(1, follow.MOST_WAITING + 2):
        assert not listener.ended
        listener.offer(Look(((number, b"x"),), b"progress", more=False, complete=False))
    assert listener.ended


def test_streams_do_not_hold_up_the_end_of_the_process(tmp_path: Path) -> None:
    """They end whole, before anybody's patience does."""
    port = free_port()
    environment = {
        **os.environ,
        "SOUNDMILL_HOME": str(tmp_path),
        "SOUNDMILL_PORT": str(port),
        "SOUNDMILL_EMBEDDED": "true",
    }
    subprocess.run([sys.executable, "-m", "common.migrate"], env=environment, check=True)
    command = [sys.executable, "-m", "services.gateway"]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        try:
            while True:
                assert process.poll() is None
                try:
                    client.get("/health")
                    break
                except httpx.ConnectError:
                    time.sleep(0.05)
            job_id = client.post("/v1/jobs", json={}).json()["id"]
            with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
                told = parse(answer.iter_lines())
                assert next(told).name == "job.created"
                process.send_signal(signal.SIGTERM)
                list(told)
            process.wait()
        finally:
            process.kill()
