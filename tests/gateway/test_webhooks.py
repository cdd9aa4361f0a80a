"""Webhooks over the API: who may have them, what is refused, how they are tested and looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook as Verifier

from common.domain import Scope
from common.settings import Settings
from services.dispatcher.webhooks import Deliverer
from services.gateway.webhooks import MOST_WEBHOOKS
from tests.gateway.conftest import STACKS, Gateway, problem, running
from tests.receiver import Receiver, receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
EMBEDDED = pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True, ids=["embedded"]
)


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as here:
        yield here


@pytest.fixture
def gateway(gateway_settings: Settings, hook: Receiver) -> Iterator[Gateway]:
    """A gateway that may reach the receiver on the loopback address."""
    allowed = {"egress_allow": hook.authority, "webhook_retries_s": (0.0,)}
    with running(gateway_settings.model_copy(update=allowed)) as found:
        yield found


def add(gateway: Gateway, url: str, **request: Any) -> dict[str, Any]:
    answer = gateway.client.post("/v1/webhooks", json={"url": url, **request})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/webhooks/{made['id']}"
    return made


@STACKS
def test_a_webhook_from_its_making_to_its_end(gateway: Gateway, hook: Receiver) -> None:
    made = add(gateway, hook.url, kinds=["job.closed", "job.created"])
    assert made["kinds"] == ["job.closed", "job.created"]
    assert made["disabled_at"] is None
    secret = made.pop("secret")
    assert gateway.get(f"/v1/webhooks/{made['id']}") == made
    assert gateway.get("/v1/webhooks") == {"webhooks": [made]}
    assert secret not in repr(gateway.log)

    job_id = gateway.new_job(name="harbour")
    gateway.client.post(f"/v1/jobs/{job_id}/close").raise_for_status()
    gateway.client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()  # of a kind not asked for
    deliveries = gateway.get(f"/v1/webhooks/{made['id']}/deliveries")["deliveries"]
    assert [
        (found["kind"], found["state"], found["attempts"], found["job_id"]) for found in deliveries
    ] == [("job.closed", "pending", 0, job_id), ("job.created", "pending", 0, job_id)]

    with closing(Deliverer(gateway.settings)) as deliverer:
        assert deliverer.turn() == 2
        deliverer.finish(30.0)
    messages = [Verifier(secret).verify(got.body, got.headers) for got in hook.received]
    assert {message["type"] for message in messages} == {"job.created", "job.closed"}
    path = f"/v1/webhooks/{made['id']}/deliveries"
    first = gateway.get(path, params={"limit": 1, "state": "delivered"})
    rest = gateway.get(path, params={"cursor": first["next_cursor"]})
    assert rest["next_cursor"] is None
    seen = [*first["deliveries"], *rest["deliveries"]]
    assert [(found["kind"], found["status_code"]) for found in seen] == [
        ("job.closed", 204),
        ("job.created", 204),
    ]
    assert {got.headers["webhook-id"] for got in hook.received} == {found["id"] for found in seen}
    assert all(found["delivered_at"] and found["next_attempt_at"] is None for found in seen)
    assert gateway.get(path, params={"state": "failed"})["deliveries"] == []

    assert gateway.client.delete(f"/v1/webhooks/{made['id']}").status_code == 204
    problem(gateway.client.get(f"/v1/webhooks/{made['id']}"), 404, "not_found")
    problem(gateway.client.get(path), 404, "not_found")
    problem(gateway.client.delete(f"/v1/webhooks/{made['id']}"), 404, "not_found")
    gateway.new_job()


@STACKS
def test_a_message_to_test_it_is_sent_at_once(gateway: Gateway, hook: Receiver) -> None:
    made = add(gateway, hook.url, secret=SECRET)
    assert made["secret"] == SECRET
    path = f"/v1/webhooks/{made['id']}/test"
    answer = gateway.client.post(path).json()
    assert answer == {"delivered": True, "status_code": 204, "error": None}
    (received,) = hook.received
    message = Verifier(SECRET).verify(received.body, received.headers)
    assert message["type"] == "webhook.test"
    assert message["data"] == {"webhook_id": made["id"]}
    hook.answer = lambda received: 500
    answer = gateway.client.post(path).json()
    assert answer == {"delivered": False, "status_code": 500, "error": "answered with 500"}
    problem(gateway.client.post("/v1/webhooks/nothing/test"), 404, "not_found")


@EMBEDDED
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/hook",
        "http://[::1]/hook",
        "https://10.0.0.8/hook",
        "https://169.254.169.254/latest/meta-data",
        "http://[::ffff:192.168.0.1]/",
        "ftp://example.com/hook",
        "file:///etc/passwd",
        "https://user:secret@example.com/",
        "https://",
        "no url",
        "https://example.com/\u0000",
    ],
)
def test_private_addresses_are_refused(gateway: Gateway, url: str) -> None:
    problem(gateway.client.post("/v1/webhooks", json={"url": url}), 422, "url_forbidden")
    assert gateway.get("/v1/webhooks") == {"webhooks": []}


@EMBEDDED
@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"url": 7},
        {"url": ""},
        {"url": "https://example.com/" + "x" * 2048},
        {"url": "https://example.com", "kinds": ["job.exploded"]},
        {"url": "https://example.com", "secret": "guess"},
        {"url": "https://example.com", "secret": "whsec_" + "A" * 8},
        {"url": "https://example.com", "secret": "whsec_*&^%"},
        {"url": "https://example.com", "colour": "red"},
        [],
    ],
)
def test_what_is_no_webhook_is_refused(gateway: Gateway, request_: Any) -> None:
    problem(gateway.client.post("/v1/webhooks", json=request_), 422, "request_invalid")


@EMBEDDED
def test_bounds(gateway: Gateway) -> None:
    huge = b'{"url": "' + b"x" * 100_000
    problem(gateway.client.post("/v1/webhooks", content=huge), 413, "too_large")
    for number in range(MOST_WEBHOOKS):
        made = add(gateway, f"https://example.com/{number}")
    one_more = {"url": "https://example.com/more"}
    problem(gateway.client.post("/v1/webhooks", json=one_more), 409, "conflict")
    path = f"/v1/webhooks/{made['id']}/deliveries"
    problem(gateway.client.get(path, params={"cursor": "no"}), 422, "cursor_invalid")
    problem(gateway.client.get(path, params={"limit": 0}), 422, "request_invalid")


@STACKS
def test_a_request_that_is_sent_twice_adds_one_webhook(gateway: Gateway) -> None:
    def post(url: str) -> httpx.Response:
        headers = {"Idempotency-Key": "mine"}
        return gateway.client.post("/v1/webhooks", json={"url": url}, headers=headers)

    first, again = post("https://example.com/a"), post("https://example.com/a")
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    problem(post("https://example.com/b"), 422, "idempotency_key_reused")
    assert len(gateway.get("/v1/webhooks")["webhooks"]) == 1


@STACKS
def test_one_key_never_sees_the_webhooks_of_another(gateway_with_keys: Gateway) -> None:
    gateway = gateway_with_keys
    mine, theirs = (gateway.new_key([Scope.SUBMIT, Scope.READ]) for _ in range(2))
    only_read = gateway.new_key([Scope.READ])
    answer = gateway.client.post("/v1/webhooks", json={"url": "https://example.com"}, headers=mine)
    path = f"/v1/webhooks/{answer.json()['id']}"
    assert gateway.client.get(path, headers=mine).status_code == 200
    assert gateway.client.get("/v1/webhooks", headers=theirs).json() == {"webhooks": []}
    for call, where in (
        (gateway.client.get, path),
        (gateway.client.get, f"{path}/deliveries"),
        (gateway.client.post, f"{path}/test"),
        (gateway.client.delete, path),
    ):
        problem(call(where, headers=theirs), 404, "not_found")
    problem(gateway.client.delete(path, headers=only_read), 403, "scope_missing")

    gateway.client.post("/v1/jobs", json={}, headers=theirs).raise_for_status()
    assert gateway.client.get(f"{path}/deliveries", headers=mine).json()["deliveries"] == []
    gateway.client.post("/v1/jobs", json={}, headers=mine).raise_for_status()
    assert len(gateway.client.get(f"{path}/deliveries", headers=mine).json()["deliveries"]) == 1
