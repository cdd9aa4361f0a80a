"""Sources: what is stored, what is recorded, what is refused; reading them is the ingester's."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import httpx
import pytest

from common import keys
from common.domain import Scope
from common.sources import (
    ArchiveFormat,
    ArchiveSpec,
    ManifestFormat,
    ManifestSpec,
    PrefixSpec,
    UploadSpec,
    UrlsSpec,
    owned_object,
)
from common.tables import Source, Upload
from tests.gateway.archives import ARCHIVES, CSV, JSONL, MANIFESTS, WAV, zipped
from tests.gateway.conftest import STACKS, Gateway, problem

NAME = "\N{LATIN SMALL LETTER E WITH ACUTE}t\N{LATIN SMALL LETTER E WITH ACUTE}.zip"


def add(gateway: Gateway, job_id: str, **request: Any) -> httpx.Response:
    return gateway.client.post(f"/v1/jobs/{job_id}/sources", **request)


def add_raw(
    gateway: Gateway, job_id: str, data: bytes, media_type: str, **headers: str
) -> httpx.Response:
    headers = {"Content-Type": media_type, **headers}
    return add(gateway, job_id, content=data, headers=headers, params={"name": NAME})


def made(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 201, answer.text
    source: dict[str, Any] = answer.json()
    path = f"/v1/jobs/{source['job_id']}/sources/{source['id']}"
    assert answer.headers["location"] == path
    return source


def spec(gateway: Gateway, source: dict[str, Any]) -> dict[str, Any]:
    with gateway.sessions() as session:
        return session.get_one(Source, source["id"]).spec


def contents(gateway: Gateway, key: str) -> bytes:
    with gateway.store.open(key) as blocks:
        return b"".join(blocks)


def uploaded(gateway: Gateway, data: bytes, name: str = "a.wav", **extra: Any) -> str:
    """Return the id of a complete upload."""
    body = {"name": name, "size_bytes": len(data), **extra}
    upload_id: str = gateway.client.post("/v1/uploads", json=body).json()["id"]
    gateway.client.put(f"/v1/uploads/{upload_id}/parts/1", content=data).raise_for_status()
    gateway.client.post(f"/v1/uploads/{upload_id}/complete").raise_for_status()
    return upload_id


@STACKS
def test_archives_and_manifests_are_stored_whole(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    sources = []
    for data, media_type, found in ARCHIVES.values():
        source = made(add_raw(gateway, job_id, data, media_type))
        assert (source["kind"], source["state"], source["name"]) == ("archive", "pending", NAME)
        archive = ArchiveSpec.model_validate(spec(gateway, source))
        assert (archive.format, archive.all_files) == (found, False)
        assert archive.object_key == f"sources/{job_id}/{source['id']}"
        assert contents(gateway, archive.object_key) == data
        sources.append(source)
    for data, media_type, written in MANIFESTS.values():
        source = made(add_raw(gateway, job_id, data, media_type))
        assert source["kind"] == "manifest"
        manifest = ManifestSpec.model_validate(spec(gateway, source))
        assert manifest.format == written
        assert contents(gateway, manifest.object_key) == data
        sources.append(source)
    page = gateway.get(f"/v1/jobs/{job_id}/sources", params={"limit": 5})
    rest = gateway.get(
        f"/v1/jobs/{job_id}/sources", params={"limit": 50, "cursor": page["next_cursor"]}
    )
    assert page["sources"] + rest["sources"] == sources
    assert rest["next_cursor"] is None
    one = sources[0]
    assert gateway.get(f"/v1/jobs/{job_id}/sources/{one['id']}") == one


@STACKS
def test_a_large_archive_streams(gateway: Gateway) -> None:
    data = zipped() + os.urandom(18 << 20)
    digest = hashlib.sha256(data).hexdigest()
    answer = add(
        gateway,
        gateway.new_job(),
        content=(data[at : at + 100_000] for at in range(0, len(data), 100_000)),
        headers={"Content-Type": "application/zip", "X-Content-SHA256": digest.upper()},
        params={"all_files": "true"},
    )
    archive = ArchiveSpec.model_validate(spec(gateway, made(answer)))
    assert archive.all_files
    assert contents(gateway, archive.object_key) == data


@STACKS
def test_bodies_that_are_refused_leave_nothing(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    archive, jsonl = "application/zip", "application/x-ndjson"
    for data, media_type, status, code in (
        (b"", archive, 422, "archive_unreadable"),
        (b"PK", archive, 422, "archive_unreadable"),
        (bytes(2000), archive, 422, "archive_unreadable"),
        (WAV, "application/octet-stream", 422, "archive_unreadable"),
        (JSONL, archive, 422, "archive_unreadable"),
        (b"", jsonl, 422, "manifest_unreadable"),
        (b" \n ", jsonl, 422, "manifest_unreadable"),
        (zipped(), jsonl, 422, "manifest_unreadable"),
        (b"\0" + JSONL, "text/csv", 422, "manifest_unreadable"),
        (zipped(), "audio/wav", 415, "unsupported_media_type"),
        (zipped(), "", 415, "unsupported_media_type"),
        (zipped() + bytes(20 << 20), archive, 413, "too_large"),
    ):
        problem(add_raw(gateway, job_id, data, media_type), status, code)
    endless = (b"PK\x03\x04" + bytes(1 << 20) for _ in range(21))
    answer = add(gateway, job_id, content=endless, headers={"Content-Type": archive})
    problem(answer, 413, "too_large")
    wrong = {"X-Content-SHA256": "0" * 64}
    problem(add_raw(gateway, job_id, zipped(), archive, **wrong), 422, "hash_mismatch")
    assert gateway.objects() == []
    assert list(gateway.store.list_multiparts(-5)) == []
    assert gateway.get(f"/v1/jobs/{job_id}/sources")["sources"] == []


@STACKS
def test_addresses_and_prefixes(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    items = [
        {
            "url": "https://example.org/a.wav",
            "name": "a/1.wav",
            "custom_id": "one",
            "labels": {"site": "pier 4"},
            "params": {"classify": {"threshold": 0.4}},
            "sha256": "A" * 64,
        },
        {"url": "s3://bucket/key"},
    ]
    source = made(add(gateway, job_id, json={"kind": "urls", "items": items}))
    assert (source["kind"], source["total"], source["name"]) == ("urls", 2, "addresses")
    urls = UrlsSpec.model_validate(spec(gateway, source))
    assert urls.items[0].custom_id == "one"
    assert urls.items[0].sha256 == "a" * 64
    assert urls.items[1].url == "s3://bucket/key"
    source = made(add(gateway, job_id, json={"kind": "prefix", "url": "s3://bucket/2026/"}))
    assert (source["kind"], source["total"], source["name"]) == (
        "prefix",
        None,
        "s3://bucket/2026/",
    )
    assert PrefixSpec.model_validate(spec(gateway, source)).url == "s3://bucket/2026/"
    assert owned_object(spec(gateway, source)) is None


@STACKS
def test_requests_that_are_refused(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    line = {"url": "https://example.org/a.wav"}
    for body in (
        {},
        {"kind": "cake"},
        {"kind": "urls"},
        {"kind": "urls", "items": []},
        {"kind": "urls", "items": [{}]},
        {"kind": "urls", "items": [{**line, "colour": "red"}]},
        {"kind": "urls", "items": [{"url": "x" * 5000}]},
        {"kind": "urls", "items": [{**line, "name": "a\0b"}]},
        {"kind": "urls", "items": [{**line, "labels": {"a": "b\0"}}]},
        {"kind": "urls", "items": [line], "extra": 1},
        {"kind": "urls", "items": [{}] * 100_000},
        {"kind": "prefix"},
        {"kind": "prefix", "url": "https://example.org/"},
        {"kind": "upload", "upload_id": "../x"},
        {"kind": "upload", "upload_id": "0" * 32, "as": "cake"},
        [],
    ):
        document = problem(add(gateway, job_id, json=body), 422, "request_invalid")
        assert len(document["errors"]) <= 20
    for raw in (b"", b"{", b"[" * 100_000, b'{"kind": "urls", "items": [{"url": "\xff"}]}'):
        answer = add(gateway, job_id, content=raw, headers={"Content-Type": "application/json"})
        problem(answer, 422, "request_invalid")
    answer = add(
        gateway, job_id, content=b" " * (33 << 20), headers={"Content-Type": "application/json"}
    )
    problem(answer, 413, "too_large")
    missing = {"kind": "upload", "upload_id": "0" * 32}
    problem(add(gateway, job_id, json=missing), 404, "not_found")


@STACKS
def test_what_no_database_keeps_is_said_so(gateway: Gateway) -> None:
    """Parameters are free in form until they are merged: PostgreSQL keeps no NUL and no NaN."""
    job_id = gateway.new_job()
    for params in ('{"a": "\\u0000"}', '{"\\u0000": 1}', '{"a": NaN}', '{"a": 1e999}'):
        raw = f'{{"kind": "urls", "items": [{{"url": "https://e.org/", "params": {params}}}]}}'
        answer = add(gateway, job_id, content=raw, headers={"Content-Type": "application/json"})
        problem(answer, 422, "request_invalid")


@STACKS
def test_an_upload_becomes_a_source_once(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    digest = hashlib.sha256(WAV).hexdigest()
    upload_id = uploaded(gateway, WAV, sha256=digest)
    use = {
        "kind": "upload",
        "upload_id": upload_id,
        "custom_id": "one",
        "labels": {"site": "pier"},
        "params": {"classify": {"threshold": 0.4}},
    }
    source = made(add(gateway, job_id, json=use))
    assert (source["kind"], source["name"], source["total"]) == ("upload", "a.wav", 1)
    assert UploadSpec.model_validate(spec(gateway, source)) == UploadSpec(
        upload_id=upload_id,
        object_key=f"uploads/{upload_id}",
        name="a.wav",
        size_bytes=len(WAV),
        sha256=digest,
        custom_id="one",
        labels={"site": "pier"},
        params={"classify": {"threshold": 0.4}},
    )
    problem(add(gateway, job_id, json=use), 409, "upload_not_open")
    problem(gateway.client.delete(f"/v1/uploads/{upload_id}"), 409, "upload_not_open")
    assert gateway.get(f"/v1/uploads/{upload_id}")["state"] == "used"
    assert contents(gateway, f"uploads/{upload_id}") == WAV


@STACKS
def test_an_upload_may_be_an_archive_or_a_manifest(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    upload_id = uploaded(gateway, zipped(), "a.zip")
    use = {"kind": "upload", "upload_id": upload_id}
    for wrong, code in (
        ({"as": "manifest"}, "manifest_unreadable"),
        ({"as": "archive", "format": "tar"}, "archive_unreadable"),
        ({"params": {"cake": {}}}, "parameters_invalid"),
    ):
        problem(add(gateway, job_id, json={**use, **wrong}), 422, code)
    right = {"as": "archive", "format": "zip", "all_files": True}
    source = made(add(gateway, job_id, json={**use, **right}))
    assert ArchiveSpec.model_validate(spec(gateway, source)) == ArchiveSpec(
        object_key=f"uploads/{upload_id}", format=ArchiveFormat.ZIP, all_files=True
    )
    upload_id = uploaded(gateway, CSV, "a.csv")
    use = {"kind": "upload", "upload_id": upload_id, "as": "manifest"}
    source = made(add(gateway, job_id, json=use))
    assert ManifestSpec.model_validate(spec(gateway, source)) == ManifestSpec(
        object_key=f"uploads/{upload_id}", format=ManifestFormat.CSV
    )


@STACKS
def test_an_upload_that_is_not_complete_is_no_source(gateway: Gateway) -> None:
    body = {"name": "a.wav", "size_bytes": 9}
    upload_id = gateway.client.post("/v1/uploads", json=body).json()["id"]
    use = {"kind": "upload", "upload_id": upload_id}
    problem(add(gateway, gateway.new_job(), json=use), 409, "upload_not_open")
    with gateway.sessions() as session:
        assert session.get_one(Upload, upload_id).state == "open"


@STACKS
def test_the_same_request_adds_one_source(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    upload_id = uploaded(gateway, WAV)
    requests: list[dict[str, Any]] = [
        {"content": zipped(), "headers": {"Content-Type": "application/zip"}},
        {"content": CSV, "headers": {"Content-Type": "text/csv"}},
        {"json": {"kind": "upload", "upload_id": upload_id}, "headers": {}},
    ]
    for number, request in enumerate(requests):
        request["headers"]["Idempotency-Key"] = f"key-{number}"
        first = made(add(gateway, job_id, **request))
        again = add(gateway, job_id, **request)
        assert made(again) == first
        assert again.headers["idempotency-replayed"] == "true"
    assert len(gateway.objects()) == 3
    gateway.client.post(f"/v1/jobs/{job_id}/close").raise_for_status()
    assert add(gateway, job_id, **requests[0]).status_code == 201
    other = {**requests[0], "content": zipped() + b"x"}
    problem(add(gateway, job_id, **other), 422, "idempotency_key_reused")
    assert len(gateway.objects()) == 3


@STACKS
def test_a_job_that_takes_nothing_more(gateway: Gateway) -> None:
    upload_id = uploaded(gateway, WAV)
    job_id = gateway.new_job()
    gateway.client.post(f"/v1/jobs/{job_id}/close").raise_for_status()
    problem(add_raw(gateway, job_id, zipped(), "application/zip"), 409, "conflict")
    problem(add_raw(gateway, job_id, CSV, "text/csv"), 409, "conflict")
    for body in (
        {"kind": "prefix", "url": "s3://a/b"},
        {"kind": "upload", "upload_id": upload_id},
    ):
        problem(add(gateway, job_id, json=body), 409, "conflict")
    assert gateway.get(f"/v1/uploads/{upload_id}")["state"] == "complete"
    assert gateway.objects() == [f"uploads/{upload_id}"]


@STACKS
def test_one_key_never_sees_the_sources_of_another(gateway: Gateway) -> None:
    with gateway.sessions.begin() as session:
        pair = [keys.make(session, name, [Scope.SUBMIT, Scope.READ]) for name in ("a", "b")]
    mine, others = ({"Authorization": f"Bearer {key.secret}"} for key in pair)
    job_id = gateway.client.post("/v1/jobs", json={}, headers=mine).json()["id"]
    path = f"/v1/jobs/{job_id}/sources"
    body = {"kind": "prefix", "url": "s3://a/b"}
    source = made(gateway.client.post(path, json=body, headers=mine))
    problem(gateway.client.post(path, json=body, headers=others), 404, "not_found")
    problem(gateway.client.get(path, headers=others), 404, "not_found")
    problem(gateway.client.get(f"{path}/{source['id']}", headers=others), 404, "not_found")
    foreign = {"kind": "upload", "upload_id": uploaded(gateway, WAV)}
    problem(gateway.client.post(path, json=foreign, headers=mine), 404, "not_found")
    other_job = gateway.new_job()
    problem(gateway.client.get(f"/v1/jobs/{other_job}/sources/{source['id']}"), 404, "not_found")


@STACKS
def test_a_sender_that_goes_away_leaves_nothing(gateway: Gateway) -> None:
    job_id = gateway.new_job()

    class Gone(Exception):
        pass

    def half() -> Any:
        yield zipped()
        yield os.urandom(9 << 20)
        raise Gone

    with pytest.raises(Gone):
        add(gateway, job_id, content=half(), headers={"Content-Type": "application/zip"})
    for _ in range(200):  # until the gateway has noticed
        if gateway.get("/health") and not list(gateway.store.list_multiparts(-5)):
            break
    assert gateway.objects() == []
    assert gateway.get(f"/v1/jobs/{job_id}/sources")["sources"] == []
