"""The gateway's HTTP API as typed calls: ``Gateway``, and ``AsyncGateway`` for asyncio.

    with Gateway("http://127.0.0.1:8420") as gateway:
        job = gateway.create_job("harbour")
        gateway.upload(job.id, "siren.wav", lambda: [Path("siren.wav").read_bytes()])
        gateway.close_job(job.id)

    async with AsyncGateway("https://mill.example", key="sm_...") as gateway:
        async for job in gateway.jobs(state=JobState.OPEN):
            print(job.name, job.eta_s)

What a call sends and what its answer means is said once, without doing it, in the
modules ``*_calls``; ``sync`` and ``asynchronous`` send it.
``tries`` says what is sent again when the gateway does not answer, or asks to come back later:
whatever only looks, and whatever the gateway recognises as the same (``Idempotency-Key``).
"""

from __future__ import annotations

from client.api.asynchronous import AsyncGateway
from client.api.metrics import JobMetrics, StageMetrics
from client.api.records import (
    Alike,
    Artifact,
    Delivery,
    Estimate,
    Found,
    Guess,
    Hit,
    Job,
    JobError,
    JobEvent,
    PartAddress,
    ReceivedPart,
    Recording,
    Rejection,
    Retried,
    Run,
    Similar,
    Source,
    Tested,
    Understood,
    Upload,
    Webhook,
)
from client.api.sync import Gateway

__all__ = [
    "Alike",
    "Artifact",
    "AsyncGateway",
    "Delivery",
    "Estimate",
    "Found",
    "Gateway",
    "Guess",
    "Hit",
    "Job",
    "JobError",
    "JobEvent",
    "JobMetrics",
    "PartAddress",
    "ReceivedPart",
    "Recording",
    "Rejection",
    "Retried",
    "Run",
    "Similar",
    "Source",
    "StageMetrics",
    "Tested",
    "Understood",
    "Upload",
    "Webhook",
]
