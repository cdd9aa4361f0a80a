"""Every way in, from HTTP to recordings: gateway and ingester agree on what a source is."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from common.settings import Settings
from services.ingester.loop import Ingester
from tests.gateway.conftest import STACKS, Gateway
from tests.ingester.conftest import wav

SOUNDS = {f"{number}.wav": wav(seed=number) for number in range(3)}


@pytest.fixture
def imports(tmp_path: Path) -> Path:
    """A folder that addresses may lie in, with the sounds."""
    folder = tmp_path / "imports"
    folder.mkdir()
    for name, data in SOUNDS.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def gateway_settings(gateway_settings: Settings, imports: Path) -> Settings:
    return gateway_settings.model_copy(update={"import_roots": str(imports)})


@pytest.fixture
def read(gateway: Gateway) -> Iterator[Callable[[], None]]:
    """Let an ingester read all sources that wait."""
    ingester = Ingester(gateway.settings)

    def all_of_them() -> None:
        ingester.turn()
        while ingester._readings:
            for thread in list(ingester._readings):
                thread.join()
            ingester.turn()

    yield all_of_them
    ingester.close()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in SOUNDS.items():
            archive.writestr(name, data)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in SOUNDS.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def post(gateway: Gateway, job_id: str, **request: Any) -> dict[str, Any]:
    answer = gateway.client.post(f"/v1/jobs/{job_id}/sources", **request)
    assert answer.status_code == 201, answer.text
    source: dict[str, Any] = answer.json()
    return source


def upload(gateway: Gateway, name: str, data: bytes, **extra: Any) -> str:
    body = {"name": name, "size_bytes": len(data), **extra}
    upload_id: str = gateway.client.post("/v1/uploads", json=body).json()["id"]
    gateway.client.put(f"/v1/uploads/{upload_id}/parts/1", content=data).raise_for_status()
    gateway.client.post(f"/v1/uploads/{upload_id}/complete").raise_for_status()
    return upload_id


def source(gateway: Gateway, job_id: str, found: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = gateway.get(f"/v1/jobs/{job_id}/sources/{found['id']}")
    return shown


@STACKS
def test_the_same_recordings_whichever_way(
    gateway: Gateway, imports: Path, read: Callable[[], None]
) -> None:
    lines = [
        {"url": f"file://{imports}/{name}", "name": name, "custom_id": f"id-{name}"}
        for name in SOUNDS
    ]
    jsonl = "".join(json.dumps(line) + "\n" for line in lines)
    csv = "url,name,custom_id\n" + "".join(
        f"{line['url']},{line['name']},{line['custom_id']}\n" for line in lines
    )
    packed = zstandard.compress(tarred())
    archive, manifest = upload(gateway, "a.zip", zipped()), upload(gateway, "a.csv", csv.encode())
    ways: list[dict[str, Any]] = [
        {"content": zipped(), "headers": {"Content-Type": "application/zip"}},
        {"content": packed, "headers": {"Content-Type": "application/zstd"}},
        {"content": jsonl, "headers": {"Content-Type": "application/x-ndjson"}},
        {"content": csv, "headers": {"Content-Type": "text/csv"}},
        {"json": {"kind": "urls", "items": lines}},
        {"json": {"kind": "prefix", "url": f"file://{imports}"}},
        {"json": {"kind": "upload", "upload_id": archive, "as": "archive"}},
        {"json": {"kind": "upload", "upload_id": manifest, "as": "manifest"}},
    ]
    jobs = [gateway.new_job() for _ in ways]
    made = [post(gateway, job_id, **way) for job_id, way in zip(jobs, ways, strict=True)]
    read()
    hashes = {hashlib.sha256(data).hexdigest() for data in SOUNDS.values()}
    for job_id, found in zip(jobs, made, strict=True):
        shown = source(gateway, job_id, found)
        assert (shown["state"], shown["recordings"], shown["rejected"]) == ("done", 3, 0), shown
        recordings = gateway.get(f"/v1/jobs/{job_id}/recordings")["recordings"]
        assert {recording["sha256"] for recording in recordings} == hashes
        assert sorted(r["name"].rpartition("/")[2] for r in recordings) == sorted(SOUNDS)
    assert len(gateway.objects()) == 3 * len(ways)  # neither archives nor manifests are kept


@STACKS
def test_a_large_file_becomes_a_recording(gateway: Gateway, read: Callable[[], None]) -> None:
    job_id = gateway.new_job()
    data = wav(frames=4_000_000)
    digest = hashlib.sha256(data).hexdigest()
    upload_id = upload(gateway, "night.wav", data, sha256=digest)
    body = {"kind": "upload", "upload_id": upload_id, "custom_id": "night", "labels": {"a": "b"}}
    found = post(gateway, job_id, json=body)
    wrong = upload(gateway, "other.wav", SOUNDS["0.wav"], sha256=digest)
    refused = post(gateway, job_id, json={"kind": "upload", "upload_id": wrong})
    read()
    assert source(gateway, job_id, found)["recordings"] == 1
    assert source(gateway, job_id, refused)["rejected"] == 1
    (recording,) = gateway.get(f"/v1/jobs/{job_id}/recordings")["recordings"]
    assert (recording["name"], recording["sha256"]) == ("night.wav", digest)
    assert recording["custom_id"] == "night"
    assert gateway.objects() == [f"uploads/{upload_id}"]
