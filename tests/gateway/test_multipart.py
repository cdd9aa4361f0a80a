"""Uploads in parts: resumable, by the gateway and straight into the store."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from common import keys
from common.db import DbNow
from common.domain import Scope
from common.tables import Upload
from services.gateway.parts import AIMED_PARTS, part_bytes_of
from tests.gateway.conftest import STACKS, Gateway, problem

MIB = 1 << 20
DATA = os.urandom(17 * MIB + 5)
PART = 8 * MIB


def part_of(number: int) -> bytes:
    return DATA[(number - 1) * PART : number * PART]


def start(gateway: Gateway, **extra: Any) -> str:
    answer = gateway.client.post(
        "/v1/uploads",
        json={"name": "night.wav", "size_bytes": len(DATA), **extra},
    )
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/uploads/{answer.json()['id']}"
    return answer.json()["id"]


def put(
    gateway: Gateway, upload_id: str, number: int, data: bytes | None = None, **options: Any
) -> httpx.Response:
    content = part_of(number) if data is None else data
    path = f"/v1/uploads/{upload_id}/parts/{number}"
    return gateway.client.put(path, content=content, **options)


def complete(gateway: Gateway, upload_id: str, **options: Any) -> httpx.Response:
    return gateway.client.post(f"/v1/uploads/{upload_id}/complete", **options)


def contents(gateway: Gateway, key: str) -> bytes:
    with gateway.store.open(key) as blocks:
        return b"".join(blocks)


def nothing_left(gateway: Gateway) -> bool:
    return not gateway.objects() and not list(gateway.store.list_multiparts(-5))


@STACKS
def test_an_interrupted_upload_goes_on_where_it_was(gateway: Gateway) -> None:
    upload_id = start(gateway)
    upload = gateway.get(f"/v1/uploads/{upload_id}")
    assert (upload["state"], upload["parts"], upload["part_bytes"]) == ("open", 3, PART)
    assert upload["received"] == []
    sent = put(gateway, upload_id, 2).json()
    assert (sent["number"], sent["size_bytes"]) == (2, PART)
    assert gateway.get(f"/v1/uploads/{upload_id}")["received"] == [sent]
    document = problem(complete(gateway, upload_id), 409, "upload_incomplete")
    assert (document["missing"], document["missing_count"]) == ([1, 3], 2)
    for number in (3, 1):
        digest = hashlib.sha256(part_of(number)).hexdigest()
        answer = put(gateway, upload_id, number, headers={"X-Content-SHA256": digest})
        assert answer.status_code == 200, answer.text
    for _ in range(2):
        answer = complete(gateway, upload_id)
        assert (answer.status_code, answer.json()["state"]) == (200, "complete")
    assert contents(gateway, f"uploads/{upload_id}") == DATA
    assert gateway.get(f"/v1/uploads/{upload_id}")["received"] == []
    problem(put(gateway, upload_id, 1), 409, "upload_not_open")
    assert list(gateway.store.list_multiparts(-5)) == []


@STACKS
def test_parts_go_where_the_links_say(gateway: Gateway) -> None:
    upload_id = start(gateway)
    links = gateway.get(f"/v1/uploads/{upload_id}/parts")["parts"]
    assert [(link["number"], link["size_bytes"]) for link in links] == [
        (1, PART),
        (2, PART),
        (3, MIB + 5),
    ]
    direct = gateway.settings.store_url.startswith("s3:")
    tags = []
    for link in links:
        assert link["url"].startswith("http://" if direct else "/v1/uploads/")
        assert (link["expires_at"] is not None) == direct
        answer = httpx.put(
            httpx.URL(gateway.url).join(link["url"]), content=part_of(link["number"]), timeout=30
        )
        assert answer.status_code == 200
        tags.append(answer.headers["etag"] if direct else answer.json()["etag"])
    named = [{"number": number, "etag": tag} for number, tag in enumerate(tags, start=1)]
    problem(complete(gateway, upload_id, json={"parts": named[::-1]}), 422, "parts_order_wrong")
    problem(complete(gateway, upload_id, json={"parts": named[:2]}), 422, "parts_order_wrong")
    wrong = [*named[:2], {"number": 3, "etag": "other"}]
    document = problem(complete(gateway, upload_id, json={"parts": wrong}), 409, "part_etag_wrong")
    assert document["parts"] == [3]
    assert complete(gateway, upload_id, json={"parts": named}).json()["state"] == "complete"
    assert contents(gateway, f"uploads/{upload_id}") == DATA


@STACKS
def test_some_links(gateway: Gateway) -> None:
    upload_id = start(gateway)
    path = f"/v1/uploads/{upload_id}/parts"
    for query, numbers in (
        ({"from": 2}, [2, 3]),
        ({"from": 1, "to": 1}, [1]),
        ({"from": 3, "to": 2}, []),
        ({"to": 1 << 30}, [1, 2, 3]),
    ):
        links = gateway.get(path, params=query)["parts"]
        assert [link["number"] for link in links] == numbers
    problem(gateway.client.get(path, params={"from": 4}), 422, "part_number_invalid")
    problem(gateway.client.get(path, params={"from": 0}), 422, "request_invalid")


@STACKS
def test_a_part_that_is_wrong_does_not_arrive(gateway: Gateway) -> None:
    upload_id = start(gateway)
    problem(put(gateway, upload_id, 1, b"short"), 422, "part_size_wrong")
    problem(put(gateway, upload_id, 3, part_of(3) + b"x"), 422, "part_size_wrong")
    problem(put(gateway, upload_id, 4, b"x"), 422, "part_number_invalid")
    problem(put(gateway, upload_id, 0, b"x"), 422, "request_invalid")
    wrong = {"X-Content-SHA256": "0" * 64}
    document = problem(put(gateway, upload_id, 3, headers=wrong), 422, "hash_mismatch")
    assert hashlib.sha256(part_of(3)).hexdigest() in document["detail"]
    chunked = gateway.client.put(f"/v1/uploads/{upload_id}/parts/3", content=iter([part_of(3)]))
    problem(chunked, 411, "length_required")
    both = {"Content-Length": str(len(part_of(3))), "Transfer-Encoding": "chunked"}
    problem(put(gateway, upload_id, 3, headers=both), 411, "length_required")
    assert gateway.get(f"/v1/uploads/{upload_id}")["received"] == []


@STACKS
def test_abort_removes_what_has_arrived(gateway: Gateway) -> None:
    for end in (lambda _: None, lambda upload_id: complete(gateway, upload_id)):
        upload_id = start(gateway)
        for number in (1, 2, 3):
            put(gateway, upload_id, number)
        end(upload_id)
        assert gateway.client.delete(f"/v1/uploads/{upload_id}").status_code == 204
        assert nothing_left(gateway)
        problem(put(gateway, upload_id, 1), 404, "not_found")
        problem(complete(gateway, upload_id), 404, "not_found")
        for path in ("", "/parts"):
            answer = gateway.client.get(f"/v1/uploads/{upload_id}{path}")
            problem(answer, 404, "not_found")
        problem(gateway.client.delete(f"/v1/uploads/{upload_id}"), 404, "not_found")


@STACKS
def test_time_that_is_over(gateway: Gateway) -> None:
    upload_id = start(gateway)
    with gateway.sessions.begin() as session:
        session.execute(update(Upload).values(expires_at=DbNow() - 1.0))
    problem(put(gateway, upload_id, 1), 410, "upload_expired")
    problem(complete(gateway, upload_id), 410, "upload_expired")


@STACKS
def test_a_gateway_killed_while_it_completes(gateway: Gateway) -> None:
    """The store has put the object together, the database does not know yet."""
    upload_id = start(gateway)
    for number in (1, 2, 3):
        put(gateway, upload_id, number)
    with gateway.sessions() as session:
        upload = session.get_one(Upload, upload_id)
    key, store_id = upload.object_key, upload.store_id
    gateway.store.complete_multipart(key, store_id, gateway.store.list_parts(key, store_id))
    assert gateway.get(f"/v1/uploads/{upload_id}")["state"] == "open"
    assert complete(gateway, upload_id).json()["state"] == "complete"
    assert contents(gateway, key) == DATA


@STACKS
def test_an_upload_that_is_aborted_in_the_store(gateway: Gateway) -> None:
    upload_id = start(gateway)
    with gateway.sessions() as session:
        upload = session.get_one(Upload, upload_id)
    gateway.store.abort_multipart(upload.object_key, upload.store_id)
    problem(complete(gateway, upload_id), 404, "not_found")
    problem(put(gateway, upload_id, 3), 404, "not_found")


@STACKS
def test_the_same_request_begins_one_upload(gateway: Gateway) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {"name": "a.wav", "size_bytes": 9}
    first, second = (
        gateway.client.post("/v1/uploads", json=body, headers=headers) for _ in range(2)
    )
    assert first.json() == second.json()
    assert second.headers["idempotency-replayed"] == "true"
    assert len(list(gateway.store.list_multiparts(-5))) == 1
    other = gateway.client.post("/v1/uploads", json={**body, "size_bytes": 8}, headers=headers)
    problem(other, 422, "idempotency_key_reused")
    assert len(list(gateway.store.list_multiparts(-5))) == 1


@STACKS
def test_uploads_that_cannot_begin(gateway: Gateway) -> None:
    for change, status, code in (
        ({"size_bytes": 0}, 422, "request_invalid"),
        ({"size_bytes": -1}, 422, "request_invalid"),
        ({"size_bytes": 1 << 80}, 422, "request_invalid"),
        ({"size_bytes": (20 << 20) + 1}, 413, "too_large"),
        ({"name": "a\0b"}, 422, "request_invalid"),
        ({"name": ""}, 422, "request_invalid"),
        ({"sha256": "xyz"}, 422, "request_invalid"),
        ({"part_bytes": 1}, 422, "request_invalid"),
        ({"name": "x" * (2 << 20)}, 413, "too_large"),
    ):
        body = {"name": "a.wav", "size_bytes": 9, **change}
        problem(gateway.client.post("/v1/uploads", json=body), status, code)
    for raw in (b"", b"[]", b"{", b"[" * 100_000, b'"\xff"', b"null"):
        problem(gateway.client.post("/v1/uploads", content=raw), 422, "request_invalid")
    assert nothing_left(gateway)


@STACKS
def test_one_key_never_sees_the_uploads_of_another(gateway: Gateway) -> None:
    with gateway.sessions.begin() as session:
        made = [keys.make(session, name, [Scope.SUBMIT, Scope.READ]) for name in ("a", "b")]
    mine, others = ({"Authorization": f"Bearer {key.secret}"} for key in made)
    body = {"name": "a.wav", "size_bytes": 9}
    answer = gateway.client.post("/v1/uploads", json=body, headers=mine)
    path = f"/v1/uploads/{answer.json()['id']}"
    problem(gateway.client.get(path, headers=others), 404, "not_found")
    problem(gateway.client.delete(path, headers=others), 404, "not_found")
    answer = gateway.client.put(f"{path}/parts/1", content=b"x" * 9, headers=others)
    problem(answer, 404, "not_found")
    assert gateway.client.get(path, headers=mine).json()["state"] == "open"


@STACKS
def test_uploads_that_are_not_there(gateway: Gateway) -> None:
    calls: list[Callable[[str], httpx.Response]] = [
        lambda name: gateway.client.get(f"/v1/uploads/{name}"),
        lambda name: gateway.client.get(f"/v1/uploads/{name}/parts"),
        lambda name: gateway.client.put(f"/v1/uploads/{name}/parts/1", content=b"x"),
        lambda name: gateway.client.post(f"/v1/uploads/{name}/complete"),
        lambda name: gateway.client.delete(f"/v1/uploads/{name}"),
    ]
    for call in calls:
        problem(call("nope"), 404, "not_found")


@pytest.mark.parametrize("size", [1, PART, PART + 1, 10 << 30, 50 * 1024**3])
def test_parts_are_few_and_large_enough_for_any_store(size: int) -> None:
    part_bytes = part_bytes_of(size)
    assert part_bytes >= 5 * MIB
    assert -(-size // part_bytes) <= AIMED_PARTS
    assert part_bytes <= 64 * MIB
