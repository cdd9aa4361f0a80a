"""Every call of the typed client against a running gateway: what one sends, the other takes."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.api import AsyncGateway, result_calls
from client.api.asynchronous import Method
from client.api.records import Job
from client.commands.process import read_params
from client.errors import Problem
from common.domain import ArtifactKind, JobState, Priority, RunState, Stage
from tests.gateway.conftest import STACKS, Gateway

WAV = b"RIFF" + bytes(100)
PARTS = bytes(9 << 20)  # in parts of 8 MiB: two


class Noting(AsyncGateway):
    """Notes which of its methods were used."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.used: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        if isinstance(vars(AsyncGateway).get(name), Method):
            self.used.add(name)
        return super().__getattribute__(name)


async def all_of(items: Any) -> list[Any]:
    return [item async for item in items]


@STACKS
def test_every_call(gateway: Gateway, tmp_path: Path) -> None:
    async def talk() -> None:
        async with Noting(gateway.url) as client:
            job = await jobs(client)
            await recordings(client, job)
            await sources(client, job)
            await parts(client, job)
            await results(client, job)
            await webhooks(client)
            await client.delete_job(job.id)
            with pytest.raises(Problem) as caught:
                await client.job(job.id)
            assert caught.value.code == "not_found"
            calls = {
                name for name, value in vars(AsyncGateway).items() if isinstance(value, Method)
            }
            assert client.used == calls

    async def jobs(client: Noting) -> Job:
        deadline_at = datetime.now(UTC) + timedelta(days=1)
        job = await client.create_job(
            "harbour",
            priority=Priority.INTERACTIVE,
            stages=[Stage.CLASSIFY],
            params={"classify": {"threshold": 0.25}},
            deadline_at=deadline_at,
            retention_s=3600.0,
            idempotency_key="harbour",
        )
        again = await client.create_job(
            "harbour",
            priority=Priority.INTERACTIVE,
            stages=[Stage.CLASSIFY],
            params={"classify": {"threshold": 0.25}},
            deadline_at=deadline_at,
            retention_s=3600.0,
            idempotency_key="harbour",
        )
        assert again.id == job.id
        assert job.stages == [Stage.SEGMENT, Stage.CLASSIFY]
        assert (job.deadline_at, job.retention_s) == (deadline_at, 3600.0)
        changed = await client.change_job(job.id, name="port", deadline_at=None)
        assert (changed.name, changed.deadline_at) == ("port", None)
        assert (await client.job_metrics(job.id)).stages[Stage.SEGMENT].recordings_done == 0
        assert (await client.pause_job(job.id)).paused
        assert not (await client.resume_job(job.id)).paused
        found = await all_of(client.jobs(name="port", state=JobState.OPEN))
        assert [one.id for one in found] == [job.id]
        return job

    async def recordings(client: Noting, job: Job) -> None:
        sent = await client.upload(
            job.id,
            "dog.wav",
            lambda: [WAV],
            custom_id="d-1",
            labels={"site": "north"},
            params={"classify": {"top_k": 2}},
            idempotency_key="dog",
        )
        assert (sent.custom_id, sent.labels) == ("d-1", {"site": "north"})
        assert (await client.recording(sent.id)).sha256 == sent.sha256
        with pytest.raises(Problem) as caught:
            await client.upload(job.id, "x.wav", lambda: [WAV], sha256="0" * 64)
        assert caught.value.code == "hash_mismatch"
        for filters in ({"custom_id": "d-1"}, {"name": "do"}, {"state": RunState.READY}):
            found = await all_of(client.recordings(job.id, **filters))
            assert [one.id for one in found] == [sent.id]
        await asyncio.to_thread(gateway.succeed, sent.id, Stage.SEGMENT)
        await asyncio.to_thread(gateway.succeed, sent.id, Stage.CLASSIFY)

    async def sources(client: Noting, job: Job) -> None:
        item = {"url": "https://example.com/a.wav", "labels": {"site": "south"}}
        urls = await client.add_urls(job.id, [item])
        prefix = await client.add_prefix(job.id, "s3://bucket/a/")
        line = json.dumps(item).encode()
        manifest = await client.send_source(job.id, "m", lambda: [line], "application/x-ndjson")
        found = await all_of(client.sources(job.id))
        assert [one.id for one in found] == [urls.id, prefix.id, manifest.id]
        assert (await client.source(job.id, urls.id)).total == 1
        assert await all_of(client.rejections(job.id, error_code="url_forbidden")) == []

    async def parts(client: Noting, job: Job) -> None:
        upload = await client.create_upload("long.wav", len(PARTS))
        addresses = await client.part_addresses(upload.id, 1, upload.parts)
        assert [part.number for part in addresses] == [1, 2]
        for part in addresses:
            start = (part.number - 1) * upload.part_bytes
            await client.put_part(part, lambda: [PARTS[start : start + part.size_bytes]])  # noqa: B023
        state = await client.upload_state(upload.id)
        assert [part.size_bytes for part in state.received] == [8 << 20, 1 << 20]
        assert (await client.complete_upload(upload.id)).state == "complete"
        source = await client.add_upload(job.id, upload.id, "recording", custom_id="l-1")
        assert source.kind == "upload"
        other = await client.create_upload("other.wav", 10)
        await client.abort_upload(other.id)

    async def results(client: Noting, job: Job) -> None:
        (recording,) = await all_of(client.recordings(job.id))
        assert {artifact.kind for artifact in recording.artifacts} == {
            ArtifactKind.MASK,
            ArtifactKind.EVENTS,
        }
        await client.download(recording.id, "artifacts/mask", tmp_path / "mask.npz")
        assert (tmp_path / "mask.npz").read_bytes() == b"mask" * 100
        table = b"".join(await all_of(client.export(job.id, "events.csv")))
        assert b"siren" in table
        archive = b"".join(await all_of(client.export(job.id, "artifacts.zip", kind=["mask"])))
        assert archive.startswith(b"PK")
        found = await client.search(job.id, "barking dogs")
        assert [hit.recording_id for hit in found.hits] == [recording.id]
        assert [guess.label for guess in found.guesses] == ["dog"]
        assert (await client.text("the dog, not the rain")).excluded == ["rain"]
        with pytest.raises(Problem, match="embeddings"):
            await client.similar(recording.id, 0.5, 1.5, everywhere=True, limit=3)
        assert (await client.retry_job(job.id)).retried == 0
        await client.close_job(job.id)
        kinds = []
        async with aclosing(client.events(job.id)) as job_events:
            async for event in job_events:
                kinds.append(event.kind)
                if event.kind == "job.closed":
                    break
        assert kinds[0] == "job.created"
        await client.cancel_job(job.id)

    async def webhooks(client: Noting) -> None:
        url = "https://example.com/hook"
        made = await client.create_webhook(url, kinds=["job.completed"])
        assert (made.secret or "").startswith("whsec_")
        assert (await client.webhook(made.id)).secret is None
        assert [one.id for one in await all_of(client.webhooks())] == [made.id]
        assert await all_of(client.deliveries(made.id)) == []
        tested = await client.test_webhook(made.id)
        assert tested.delivered is False
        await client.delete_webhook(made.id)

    asyncio.run(talk())


def test_a_text_that_no_utf_8_can_hold_is_sent_as_far_as_it_can_be() -> None:
    """A shell gives what is no UTF-8 as halves of surrogate pairs."""
    text, sent = "\udced\udca0 dog \ud83d\udc15", "\ufffd\ufffd dog \U0001f415"
    for call in (result_calls.search("job", text), result_calls.text(text)):
        assert httpx.QueryParams(call.params)["text"] == sent
        assert str(httpx.QueryParams(call.params))
    assert read_params(None, [text, "dog"])["restore"]["remove"] == [sent, "dog"]
