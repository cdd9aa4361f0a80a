"""Results on their way out: ranges, entity tags, formats, names."""

from __future__ import annotations

import io
import json

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import update

from common.domain import Stage
from common.tables import Artifact
from services.gateway.downloads import parse_range
from services.gateway.names import content_disposition, download_name
from services.gateway.problems import Problem
from tests.gateway.conftest import EVENTS, STACKS, Gateway, problem

DATA = bytes(range(256)) * 40
SIZE = len(DATA)


@pytest.fixture
def artifact(gateway: Gateway) -> str:
    """The address of an enhanced recording."""
    recording_id = gateway.upload(gateway.new_job(), name="tapes/Caf\u00e9 1.wav")
    gateway.succeed(recording_id, Stage.SEGMENT)
    gateway.succeed(recording_id, Stage.ENHANCE)
    return f"/v1/recordings/{recording_id}/artifacts/enhanced"


@STACKS
def test_whole(gateway: Gateway, artifact: str) -> None:
    answer = gateway.client.get(artifact)
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["content-type"] == "audio/flac"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-length"] == str(SIZE)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"Caf__1.enhanced.flac\"; filename*=UTF-8''Caf%C3%A9_1.enhanced.flac"
    )
    head = gateway.client.head(artifact)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "etag", "content-type", "accept-ranges"):
        assert head.headers[name] == answer.headers[name]


@STACKS
@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=0-99", slice(0, 100)),
        ("bytes=100-", slice(100, None)),
        ("bytes=-100", slice(-100, None)),
        ("bytes=-99999999", slice(0, None)),
        (f"bytes={SIZE - 1}-", slice(-1, None)),
        ("bytes=500-99999999", slice(500, None)),
    ],
)
def test_a_range_is_a_slice(gateway: Gateway, artifact: str, header: str, part: slice) -> None:
    answer = gateway.client.get(artifact, headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, DATA[part])
    start, stop, _ = part.indices(SIZE)
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert answer.headers["content-length"] == str(stop - start)


@STACKS
def test_other_ranges(gateway: Gateway, artifact: str) -> None:
    for header in ("bytes=0-1,5-6", "bytes=", "bytes=-", "bytes=9-5", "seconds=1-2", "bytes=a-b"):
        answer = gateway.client.get(artifact, headers={"Range": header})
        assert (answer.status_code, answer.content) == (200, DATA), header
    for header in (f"bytes={SIZE}-", "bytes=99999999-", "bytes=-0"):
        answer = gateway.client.get(artifact, headers={"Range": header})
        problem(answer, 416, "range_not_satisfiable")
        assert answer.headers["content-range"] == f"bytes */{SIZE}"


@STACKS
def test_entity_tags(gateway: Gateway, artifact: str) -> None:
    etag = gateway.client.head(artifact).headers["etag"]
    for header in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = gateway.client.get(artifact, headers={"If-None-Match": header})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
    answer = gateway.client.get(artifact, headers={"If-None-Match": '"other"'})
    assert answer.status_code == 200
    ranged = {"Range": "bytes=0-9"}
    answer = gateway.client.get(artifact, headers={**ranged, "If-Range": etag})
    assert (answer.status_code, answer.content) == (206, DATA[:10])
    for header in ('"other"', "Wed, 21 Oct 2015 07:28:00 GMT", f"W/{etag}"):
        answer = gateway.client.get(artifact, headers={**ranged, "If-Range": header})
        assert (answer.status_code, answer.content) == (200, DATA)


@STACKS
def test_the_store_itself_may_answer(gateway: Gateway, artifact: str) -> None:
    answer = gateway.client.get(artifact, params={"redirect": "true"})
    if gateway.settings.store_url.startswith("file:"):
        assert (answer.status_code, answer.content) == (200, DATA)
        return
    assert answer.status_code == 307
    found = httpx.get(answer.headers["location"])
    assert (found.status_code, found.content) == (200, DATA)
    assert "Caf__1.enhanced.flac" in found.headers["content-disposition"]


@STACKS
def test_a_receiver_that_goes_away_harms_nobody(gateway: Gateway) -> None:
    recording_id = gateway.upload(gateway.new_job())
    gateway.succeed(recording_id, Stage.SEGMENT)
    size = 64 << 20
    gateway.store.put_stream("artifacts/large.npz", io.BytesIO(bytes(size)), "application/zip")
    with gateway.sessions.begin() as session:
        session.execute(update(Artifact).values(object_key="artifacts/large.npz", size_bytes=size))
    path = f"/v1/recordings/{recording_id}/artifacts/mask"
    for _ in range(3):
        with httpx.stream("GET", f"{gateway.url}{path}") as answer:
            next(answer.iter_raw())
    assert len(gateway.client.get(path).content) == size


@STACKS
def test_what_is_not_there(gateway: Gateway, artifact: str) -> None:
    problem(gateway.client.get(artifact.replace("enhanced", "restored")), 404, "not_found")
    problem(gateway.client.get(artifact.replace("enhanced", "cake")), 422, "request_invalid")
    problem(gateway.client.get("/v1/recordings/nope/artifacts/mask"), 404, "not_found")
    problem(gateway.client.get("/v1/recordings/nope/manifest"), 404, "not_found")
    with gateway.sessions.begin() as session:
        session.execute(update(Artifact).values(object_key="artifacts/gone"))
    problem(gateway.client.get(artifact), 404, "not_found")


@STACKS
def test_events_in_every_format(gateway: Gateway) -> None:
    recording_id = gateway.upload(gateway.new_job(), name="=cmd|' /C calc'!A0.wav")
    path = f"/v1/recordings/{recording_id}"
    problem(gateway.client.get(f"{path}/events.csv"), 404, "not_found")
    gateway.succeed(recording_id, Stage.SEGMENT)
    gateway.succeed(recording_id, Stage.CLASSIFY)
    answer = gateway.client.get(f"{path}/events.csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.text.splitlines() == [
        "label,onset_s,offset_s,confidence",
        "dog,0.25,1.0,0.875",
        "siren,1.5,3.4567,0.5",
    ]
    answer = gateway.client.get(f"{path}/events.txt")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "0.250000\t1.000000\tdog\n1.500000\t3.456700\tsiren\n"
    assert gateway.get(f"{path}/events.json") == EVENTS
    with gateway.sessions.begin() as session:
        session.execute(update(Artifact).values(object_key="artifacts/broken"))
    gateway.store.put_stream("artifacts/broken", io.BytesIO(b'{"version": 1}'), "text/plain")
    problem(gateway.client.get(f"{path}/events.csv"), 500, "artifact_invalid")


@STACKS
def test_the_manifest(gateway: Gateway) -> None:
    recording_id = gateway.upload(gateway.new_job(params={"classify": {"threshold": 0.75}}))
    gateway.succeed(recording_id, Stage.SEGMENT)
    gateway.fail(recording_id, Stage.CLASSIFY)
    answer = gateway.client.get(f"/v1/recordings/{recording_id}/manifest")
    assert 'filename="dog.manifest.json"' in answer.headers["content-disposition"]
    manifest = json.loads(answer.text)
    detail = gateway.get(f"/v1/recordings/{recording_id}")
    assert manifest["recording"]["sha256"] == detail["sha256"]
    assert manifest["soundmill"]
    segment, classify, enhance, restore = manifest["stages"]
    assert segment["model_digest"] == "d" * 64
    assert segment["artifacts"][0]["sha256"] == detail["artifacts"][0]["sha256"]
    assert classify["parameters"] == {"threshold": 0.75, "top_k": 5}
    assert classify["error"] == {"code": "audio_unreadable", "detail": "not audio"}
    assert (enhance["state"], enhance["model_digest"]) == ("ready", None)
    assert (restore["state"], restore["error"]["code"]) == ("skipped", "upstream_failed")


@given(st.text(max_size=30), st.integers(0, 1000))
def test_any_range_header_gives_a_stretch_inside(header: str, size: int) -> None:
    for text in (header, f"bytes={header}"):
        try:
            found = parse_range(text, size)
        except Problem:
            continue
        if found is not None:
            assert 0 <= found.start < found.start + found.length <= size


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 100))
def test_a_range_header_is_read_as_a_slice(first: int, last: int, size: int) -> None:
    data = bytes(size)
    try:
        found = parse_range(f"bytes={first}-{last}", size)
    except Problem:
        assert first >= size
        assert first <= last
        return
    if found is None:
        assert last < first
    else:
        assert (found.start, found.length) == (first, len(data[first : last + 1]))


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("../../x/.y")
@example("con\x85trol\x7f\0.wav")
def test_a_download_name_is_safe(name: str) -> None:
    offered = download_name(name, "events.csv")
    assert offered.endswith(".events.csv")
    assert not offered.startswith(".")
    assert not set('/\\<>:"|?*%\0\n\r') & set(offered)
    header = content_disposition(offered)
    assert header.isascii()
    assert header.isprintable()
