"""Deliveries to a real HTTP server, checked by the verifier of Standard Webhooks itself."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker
from standardwebhooks import Webhook as Verifier

from common.db import DbNow
from common.domain import DeliveryState, JobEventKind
from common.jobs import record_event
from common.settings import Settings
from common.tables import ApiKey, Job, Webhook, WebhookDelivery
from common.webhooks import Answer, new_secret
from services.dispatcher.webhooks import CLAIM_MARGIN_S, Deliverer
from tests.pipeline.conftest import MakeJob
from tests.receiver import Received, Receiver, receiver

Sessions = sessionmaker[Session]
LONG_S = 60.0
RETRIES_S = (100.0, 1_000.0)


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as here:
        yield here


@pytest.fixture
def settings(database_url: str, tmp_path: Path, hook: Receiver) -> Settings:
    return Settings(
        home=tmp_path,
        database_url=SecretStr(database_url),
        egress_allow=hook.authority,
        webhook_retries_s=RETRIES_S,
    )


@pytest.fixture
def deliverer(settings: Settings, sessions: Sessions) -> Iterator[Deliverer]:
    with closing(Deliverer(settings)) as deliverer:
        yield deliverer


def add_webhook(sessions: Sessions, url: str, **values: Any) -> str:
    with sessions.begin() as session:
        webhook = Webhook(url=url, secret=new_secret(), **{"kinds": [], **values})
        session.add(webhook)
        session.flush()
        return webhook.id


def happen(sessions: Sessions, job_id: str, kind: JobEventKind, **data: Any) -> None:
    with sessions.begin() as session:
        record_event(session, session.get_one(Job, job_id), kind, **data)


def deliver(deliverer: Deliverer) -> None:
    """Send everything that is due, and what becomes due at once."""
    while deliverer.turn():
        deliverer.finish(LONG_S)


def deliveries(sessions: Sessions) -> list[WebhookDelivery]:
    with sessions() as session:
        order = (WebhookDelivery.webhook_id, WebhookDelivery.event_id)
        return list(session.scalars(select(WebhookDelivery).order_by(*order)))


def make_due(sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.execute(update(WebhookDelivery).values(next_attempt_at=0.0))


def pause_s(sessions: Sessions) -> float:
    """Return how long the only delivery waits for its next attempt."""
    with sessions() as session:
        left = session.scalar(select(WebhookDelivery.next_attempt_at - DbNow()))
    assert left is not None
    return left


def test_an_event_arrives_signed(
    sessions: Sessions, deliverer: Deliverer, hook: Receiver, make_job: MakeJob
) -> None:
    webhook_id = add_webhook(sessions, hook.url)
    job_id = make_job(1)
    happen(sessions, job_id, JobEventKind.SOURCE_DONE, recordings=3)
    deliver(deliverer)
    (received,) = hook.received
    with sessions() as session:
        secret = session.get_one(Webhook, webhook_id).secret
    message = Verifier(secret).verify(received.body, received.headers)
    assert message["type"] == "source.done"
    assert message["data"] == {
        "job_id": job_id,
        "name": "test",
        "state": "closed",
        "recordings": 3,
    }
    assert message["timestamp"].endswith("Z")
    assert received.headers["content-type"] == "application/json"
    (delivery,) = deliveries(sessions)
    assert delivery.state == DeliveryState.DELIVERED
    assert (delivery.status_code, delivery.error, delivery.attempts) == (204, None, 1)
    assert delivery.delivered_at is not None
    assert received.headers["webhook-id"] == delivery.id
    make_due(sessions)
    deliver(deliverer)
    assert len(hook.received) == 1


@pytest.mark.parametrize("status", [500, 503, 307])
def test_what_may_help_later_is_sent_again_under_the_same_id_until_it_is_given_up(
    sessions: Sessions, deliverer: Deliverer, hook: Receiver, make_job: MakeJob, status: int
) -> None:
    add_webhook(sessions, hook.url)
    hook.answer = lambda received: status
    happen(sessions, make_job(1), JobEventKind.COMPLETED)
    for number, retry_s in enumerate(RETRIES_S, start=1):
        deliver(deliverer)
        (delivery,) = deliveries(sessions)
        assert (delivery.state, delivery.attempts) == (DeliveryState.PENDING, number)
        assert (delivery.status_code, delivery.error) == (status, f"answered with {status}")
        assert 0.9 * retry_s < pause_s(sessions) <= 1.2 * retry_s
        make_due(sessions)
    deliver(deliverer)
    (delivery,) = deliveries(sessions)
    assert (delivery.state, delivery.attempts) == (DeliveryState.FAILED, 3)
    assert len(hook.received) == 3
    assert len({received.headers["webhook-id"] for received in hook.received}) == 1
    assert {received.path for received in hook.received} == {"/hook"}  # redirects lead nowhere


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_refusal_ends_a_delivery(
    sessions: Sessions, deliverer: Deliverer, hook: Receiver, make_job: MakeJob
) -> None:
    webhook_id = add_webhook(sessions, hook.url)
    hook.answer = lambda received: 404
    job_id = make_job(1)
    happen(sessions, job_id, JobEventKind.COMPLETED)
    deliver(deliverer)
    (delivery,) = deliveries(sessions)
    assert (delivery.state, delivery.status_code) == (DeliveryState.FAILED, 404)
    with sessions() as session:
        assert session.get_one(Webhook, webhook_id).disabled_at is None


def test_a_webhook_that_is_gone_is_told_nothing_more(
    sessions: Sessions, deliverer: Deliverer, hook: Receiver, make_job: MakeJob
) -> None:
    webhook_id = add_webhook(sessions, hook.url)
    hook.answer = lambda received: 410
    job_id = make_job(1)
    for kind in (JobEventKind.CREATED, JobEventKind.CLOSED, JobEventKind.COMPLETED):
        happen(sessions, job_id, kind)
    with sessions.begin() as session:  # two of the three are not due yet
        first = session.scalars(select(WebhookDelivery.id)).first()
        session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.id != first)
            .values(next_attempt_at=DbNow() + LONG_S)
        )
    deliver(deliverer)
    happen(sessions, job_id, JobEventKind.RETRIED)
    make_due(sessions)
    deliver(deliverer)
    assert len(hook.received) == 1
    assert [delivery.state for delivery in deliveries(sessions)] == [DeliveryState.FAILED] * 3
    with sessions() as session:
        assert session.get_one(Webhook, webhook_id).disabled_at is not None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("url", "state", "code"),
    [
        ("http://127.0.0.1:9/", DeliveryState.FAILED, "url_forbidden"),
        ("http://localhost:9/", DeliveryState.FAILED, "url_forbidden"),
        ("ftp://example.com/", DeliveryState.FAILED, "url_forbidden"),
        ("https://nowhere.invalid/", DeliveryState.PENDING, "url_unreachable"),
    ],
)
def test_private_addresses_are_not_called(
    sessions: Sessions,
    deliverer: Deliverer,
    make_job: MakeJob,
    url: str,
    state: DeliveryState,
    code: str,
) -> None:
    add_webhook(sessions, url)
    happen(sessions, make_job(1), JobEventKind.COMPLETED)
    deliver(deliverer)
    (delivery,) = deliveries(sessions)
    assert (delivery.state, delivery.status_code) == (state, None)
    assert delivery.error is not None
    assert delivery.error.startswith(f"{code}: ")


def test_only_the_owners_webhooks_are_told_and_only_what_they_asked_for(
    sessions: Sessions, deliverer: Deliverer, hook: Receiver, make_job: MakeJob
) -> None:
    with sessions.begin() as session:
        key = ApiKey(name="other", hash="0" * 64, scopes=["submit"])
        session.add(key)
        session.flush()
        owner = key.id
    add_webhook(sessions, f"{hook.url}/all")
    add_webhook(sessions, f"{hook.url}/ends", kinds=[JobEventKind.COMPLETED.value])
    add_webhook(sessions, f"{hook.url}/theirs", owner=owner)
    add_webhook(sessions, f"{hook.url}/disabled", disabled_at=1.0)
    job_id = make_job(1)
    happen(sessions, job_id, JobEventKind.CLOSED)
    happen(sessions, job_id, JobEventKind.COMPLETED)
    deliver(deliverer)
    told = Counter(received.path for received in hook.received)
    assert told == {"/hook/all": 2, "/hook/ends": 1}


def test_what_a_killed_process_was_sending_is_sent_again_once_its_claim_is_over(
    settings: Settings, sessions: Sessions, hook: Receiver, make_job: MakeJob
) -> None:
    add_webhook(sessions, hook.url)
    happen(sessions, make_job(1), JobEventKind.COMPLETED)
    with closing(Deliverer(settings)) as killed, closing(Deliverer(settings)) as deliverer:
        (claimed,) = killed._claim()
        deliver(deliverer)
        assert not hook.received
        assert pause_s(sessions) <= settings.webhook_timeout_s + CLAIM_MARGIN_S
        make_due(sessions)
        deliver(deliverer)
        (received,) = hook.received
        assert received.headers["webhook-id"] == claimed.delivery_id
        # What the first process may yet have to say changes nothing
        killed._record(claimed, Answer(404, "late"))
    (delivery,) = deliveries(sessions)
    assert (delivery.state, delivery.attempts) == (DeliveryState.DELIVERED, 2)


def test_two_processes_send_each_event_once(
    settings: Settings, sessions: Sessions, hook: Receiver, make_job: MakeJob
) -> None:
    job_id = make_job(1)
    for number in range(4):
        add_webhook(sessions, f"{hook.url}/{number}")
    for _ in range(10):
        happen(sessions, job_id, JobEventKind.RETRIED)
    with closing(Deliverer(settings)) as one, closing(Deliverer(settings)) as two:
        threads = [threading.Thread(target=deliver, args=(part,)) for part in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        deliver(one)
    sent = Counter(received.headers["webhook-id"] for received in hook.received)
    assert len(sent) == 40
    assert set(sent.values()) == {1}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_webhook_that_hangs_holds_up_no_other(
    sessions: Sessions, deliverer: Deliverer, hook: Receiver, make_job: MakeJob
) -> None:
    let_go = threading.Event()

    def answer(received: Received) -> int:
        if received.path == "/hook/slow":
            let_go.wait(LONG_S)
        return 204

    hook.answer = answer
    add_webhook(sessions, f"{hook.url}/slow")
    add_webhook(sessions, f"{hook.url}/fast")
    job_id = make_job(1)
    for _ in range(40):
        happen(sessions, job_id, JobEventKind.RETRIED)
    stop = threading.Event()
    thread = threading.Thread(target=deliverer.run, args=(stop,))
    thread.start()
    try:
        fast = 0
        while fast < 40:  # hangs with the webhook if it is held up by it
            fast = sum(received.path == "/hook/fast" for received in list(hook.received))
            time.sleep(0.01)
    finally:
        let_go.set()
        stop.set()
        thread.join()
    deliver(deliverer)
    assert Counter(received.path for received in hook.received) == {
        "/hook/slow": 40,
        "/hook/fast": 40,
    }
