"""Manifests, URL lists, prefixes and uploads become recordings; what is wrong costs one line."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from minio import Minio

from common.db import new_id
from common.domain import SourceKind, SourceState
from services.ingester import taking
from tests.ingester.conftest import EMBEDDED, STACKS, Bench, wav
from tests.servers import S3Server

DATA = wav(seed=9)


class Site(BaseHTTPRequestHandler):
    """Answers by path; counts how often each was asked for."""

    asked: dict[str, int]

    def do_GET(self) -> None:
        count = self.asked[self.path] = self.asked.get(self.path, 0) + 1
        status, length = 200, len(DATA)
        if self.path == "/missing.wav":
            status = 404
        elif self.path == "/broken.wav" or (self.path == "/shaky.wav" and count == 1):
            status = 503
        elif self.path == "/short.wav":
            length += 10
        self.send_response(302 if self.path == "/inside.wav" else status)
        self.send_header("Location", "http://169.254.169.254/")
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(DATA)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    Site.asked = {}
    ThreadingHTTPServer.request_queue_size = 64
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def imports(tmp_path: Path) -> Path:
    folder = tmp_path / "imports"
    (folder / "sub").mkdir(parents=True)
    (folder / "a b#ü.wav").write_bytes(DATA)
    (folder / "sub" / "one.wav").write_bytes(wav(seed=1))
    (folder / "sub" / ".hidden.wav").write_bytes(DATA)
    (folder / "notes.txt").write_text("no audio")
    (folder / "link.wav").symlink_to("/etc/passwd")
    (folder / "out").symlink_to("/etc")
    os.mkfifo(folder / "pipe.wav")
    (tmp_path / "secret.wav").write_bytes(DATA)
    return folder


def jsonl(*lines: dict[str, Any] | str) -> bytes:
    return "\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines).encode()


@STACKS
def test_a_line_may_describe_its_recording(bench: Bench, imports: Path) -> None:
    line = {
        "url": f"{imports.as_uri()}/sub/one.wav",
        "name": "first",
        "custom_id": "id 1",
        "labels": {"site": "north", "ö": ""},
        "params": {"classify": {"threshold": 0.9}},
        "sha256": sha256(wav(seed=1)).hexdigest().upper(),
    }
    other = {"url": f"{imports.as_uri()}/a%20b%23%C3%BC.wav"}
    job_id = bench.job()
    source_id = bench.stored(
        job_id, SourceKind.MANIFEST, b"\xef\xbb\xbf" + jsonl(line, "", other), format="jsonl"
    )
    bench.read()
    assert bench.row(source_id).state == SourceState.DONE.value
    first, second = bench.recordings(source_id)
    assert (first.name, first.custom_id, first.labels) == ("first", "id 1", line["labels"])
    assert first.params is not None
    assert first.params["classify"] == {"threshold": 0.9, "top_k": 5}
    assert first.params["segment"] == bench.job_of(source_id).params["segment"]
    assert (second.name, second.custom_id, second.labels, second.params) == (
        "a b#ü.wav", None, None, None,
    )  # fmt: skip
    assert bench.objects()[second.object_key] == DATA
    bench.nothing_left_behind()


@EMBEDDED
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_says_the_same(bench: Bench, imports: Path, delimiter: str) -> None:
    text = io.StringIO()
    rows = csv.writer(text, delimiter=delimiter)
    rows.writerow(["url", "custom_id", "label.site", "params", "name"])
    url = f"{imports.as_uri()}/sub/one.wav"
    rows.writerow([url, "1", 'north, "east"', '{"classify":\n {"threshold": 0.9}}', ""])
    rows.writerow([url, "2", "", "", "two"])
    rows.writerow(["", "", "", "", ""])
    rows.writerow([url, "3", "", "{", ""])
    rows.writerow([url, "4", "", '{"classify": {"threshold": 9}}', "four"])
    source_id = bench.stored(
        bench.job(), SourceKind.MANIFEST, text.getvalue().encode(), format="csv"
    )
    bench.read()
    first, second = bench.recordings(source_id)
    assert first.params is not None
    assert first.params["classify"]["threshold"] == 0.9
    assert (first.custom_id, first.name) == ("1", "one.wav")
    assert first.labels == {"site": 'north, "east"'}
    assert (second.custom_id, second.labels, second.name) == ("2", None, "two")
    codes = [row.error_code for row in bench.rejection_rows(source_id)]
    assert codes == ["line_invalid", "params_invalid"]


@STACKS
def test_a_wrong_line_costs_only_itself(bench: Bench, imports: Path, site: str) -> None:
    root = imports.as_uri()
    good = f"{root}/sub/one.wav"
    lines: list[tuple[dict[str, Any] | str, str | None]] = [
        ({"url": good, "custom_id": "1"}, None),
        ("no JSON", "line_invalid"),
        ('{"url": "x", "unknown": 1}', "line_invalid"),
        ('{"url": 5}', "line_invalid"),
        ('{"url": "\\u0000"}', "line_invalid"),
        ("[" * 5_000, "line_invalid"),
        ('{"url": "' + "x" * 200_000 + '"}', "line_invalid"),
        ({"url": good, "labels": {"x": "y" * 2_000}}, "line_invalid"),
        ({"url": good, "sha256": "12"}, "line_invalid"),
        ({"url": good, "sha256": "0" * 64}, "hash_mismatch"),
        ({"url": good, "params": {"classify": {"threshold": 2}}}, "params_invalid"),
        ({"url": good, "params": {"unknown": {}}}, "params_invalid"),
        ({"url": good, "custom_id": "1"}, "custom_id_taken"),
        ({"url": f"{root}/none.wav"}, "url_status"),
        ({"url": f"{root}/link.wav"}, "url_forbidden"),
        ({"url": f"{root}/out/passwd"}, "url_forbidden"),
        ({"url": f"{root}/pipe.wav"}, "url_forbidden"),
        ({"url": f"{root}/sub"}, "url_forbidden"),
        ({"url": f"{root}/../secret.wav"}, "url_forbidden"),
        ({"url": f"{root}/%2e%2e/secret.wav"}, "url_forbidden"),
        ({"url": "file:///etc/passwd"}, "url_forbidden"),
        ({"url": "file://host/etc/passwd"}, "url_forbidden"),
        ({"url": f"{root}x/secret.wav"}, "url_forbidden"),
        ({"url": "s3://elsewhere/key.wav"}, "url_forbidden"),
        ({"url": "ftp://example.org/a.wav"}, "url_forbidden"),
        ({"url": "http://10.0.0.1/a.wav"}, "url_forbidden"),
        ({"url": f"{site}/inside.wav"}, "url_forbidden"),
        ({"url": f"{site}/missing.wav"}, "url_status"),
        ({"url": f"{site}/broken.wav"}, "url_status"),
        ({"url": f"{site}/short.wav"}, "url_unreachable"),
        ({"url": f"{site}/shaky.wav"}, None),
        ({"url": f"{site}/last.wav"}, None),
    ]
    source_id = bench.stored(
        bench.job(), SourceKind.MANIFEST, jsonl(*[line for line, _ in lines]), format="jsonl"
    )
    bench.read()
    source = bench.row(source_id)
    assert (source.state, source.entries) == (SourceState.DONE.value, len(lines))
    rows = bench.rejection_rows(source_id)
    expected = {number: code for number, (_, code) in enumerate(lines) if code is not None}
    assert {row.entry: row.error_code for row in rows} == expected
    assert all(row.error_detail for row in rows)
    again = {row.again["url"] for row in rows if row.again is not None}
    assert again == {f"{site}/broken.wav", f"{site}/short.wav"}
    assert Site.asked["/broken.wav"] == bench.settings.url_attempts
    assert Site.asked["/missing.wav"] == 1
    assert [r.entry for r in bench.recordings(source_id)] == [0, len(lines) - 2, len(lines) - 1]
    bench.nothing_left_behind()


@EMBEDDED
@pytest.mark.parametrize(
    ("form", "data"),
    [
        ("jsonl", b""),
        ("jsonl", b"\n\n"),
        ("csv", b""),
        ("csv", b"name,custom_id\na,b\n"),
        ("csv", b"url,colour\na,b\n"),
        ("csv", b"url,url\na,b\n"),
        ("csv", b"url\n\xff\xfe\n"),
        ("csv", b'url\n"open'),
    ],
)
def test_a_manifest_without_sense_fails(bench: Bench, form: str, data: bytes) -> None:
    source_id = bench.stored(bench.job(), SourceKind.MANIFEST, data, format=form)
    bench.read()
    source = bench.row(source_id)
    assert (source.state, source.error_code) == (SourceState.FAILED.value, "manifest_unreadable")
    bench.nothing_left_behind()


@STACKS
def test_a_list_of_urls(bench: Bench, site: str) -> None:
    items = [{"url": f"{site}/{n}.wav", "custom_id": str(n)} for n in range(20)]
    source_id = bench.source(bench.job(), SourceKind.URLS, items=items)
    bench.read()
    assert [r.error_detail for r in bench.rejection_rows(source_id)] == []
    assert [r.custom_id for r in bench.recordings(source_id)] == [str(n) for n in range(20)]
    assert bench.row(source_id).total == 20


@STACKS
def test_a_folder_is_read_in_order(bench: Bench, imports: Path) -> None:
    for name in ("z.wav", "sub/two.flac", "sub-a.wav"):
        (imports / name).write_bytes(DATA)
    (imports / os.fsdecode(b"bad\xff.wav")).write_bytes(DATA)
    source_id = bench.source(bench.job(), SourceKind.PREFIX, url=imports.as_uri())
    bench.read()
    names = [r.name for r in bench.recordings(source_id)]
    assert names == [
        "a b#ü.wav", "bad\ufffd.wav", "sub/one.wav", "sub/two.flac", "sub-a.wav", "z.wav",
    ]  # fmt: skip
    assert bench.rejections(source_id) == {}
    bench.nothing_left_behind()


@EMBEDDED
@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("file:///etc", "prefix_forbidden"),
        ("s3://elsewhere/", "prefix_forbidden"),
        ("http://example.org/", "prefix_forbidden"),
        ("{root}/out", "prefix_forbidden"),
        ("{root}/none", "source_unavailable"),
    ],
)
def test_a_prefix_that_may_not_be_read(bench: Bench, imports: Path, url: str, code: str) -> None:
    url = url.replace("{root}", imports.as_uri())
    source_id = bench.source(bench.job(), SourceKind.PREFIX, url=url)
    bench.read()
    source = bench.row(source_id)
    assert (source.state, source.error_code) == (SourceState.FAILED.value, code)


@pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "s3")], indirect=True, ids=["s3"]
)
def test_a_bucket_to_import_from(
    bench: Bench, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3_server.create_bucket()
    own = bench.settings.store_url.removeprefix("s3://")
    object.__setattr__(bench.settings, "import_buckets", f"{bucket}, {own}")
    client: Minio = s3_server.client()
    for key in ("in/a b ü.wav", "in/sub/two.wav", "in/notes.txt", "other.wav"):
        client.put_object(bucket, key, io.BytesIO(DATA), len(DATA))
    job_id = bench.job()
    prefix = bench.source(job_id, SourceKind.PREFIX, url=f"s3://{bucket}/in/")
    items = [{"url": f"s3://{bucket}/other.wav"}, {"url": f"s3://{bucket}/none.wav"}]
    items += [{"url": f"s3://{own}/recordings/x"}]
    urls = bench.source(job_id, SourceKind.URLS, items=items)
    bench.read()
    recordings = bench.recordings(prefix)
    assert [r.name for r in recordings] == ["a b ü.wav", "sub/two.wav"]
    assert bench.objects()[recordings[0].object_key] == DATA
    assert [r.name for r in bench.recordings(urls)] == ["other.wav"]
    assert [r.error_code for r in bench.rejection_rows(urls)] == ["url_status", "url_forbidden"]


@STACKS
@pytest.mark.parametrize("right", [True, False])
def test_an_upload_is_a_recording_without_being_copied(bench: Bench, right: bool) -> None:
    upload_id = new_id()
    key = f"uploads/{upload_id}"
    bench.store.put_stream(key, io.BytesIO(DATA), "audio/wav")
    source_id = bench.source(
        bench.job(),
        SourceKind.UPLOAD,
        upload_id=upload_id,
        object_key=key,
        name="large.wav",
        size_bytes=len(DATA),
        sha256=sha256(DATA).hexdigest() if right else "0" * 64,
    )
    bench.read()
    if right:
        (recording,) = bench.recordings(source_id)
        assert (recording.object_key, recording.sha256) == (key, sha256(DATA).hexdigest())
    else:
        assert bench.rejections(source_id) == {"large.wav": "hash_mismatch"}
    bench.nothing_left_behind()
