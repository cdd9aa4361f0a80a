"""Search by example, on vectors whose neighbours are known by their making."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, update

from common.domain import Scope
from common.tables import Artifact, Job, Recording, StageRun
from common.vectors import VectorReader
from services.gateway import alike, exports, similar
from services.gateway.alike import matches, pattern_of, similarities
from tests.damaged_vectors import DAMAGES, N_VECTORS, sound
from tests.gateway.conftest import STACKS, Gateway, problem
from tests.gateway.filled import NO_EVENTS, give_events
from tests.gateway.with_vectors import DIGEST, VECTOR_S, A, B, C, filled, give, write

OTHER_DIGEST = "b" * 64
EMBEDDED = pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True
)


def ask(gateway: Gateway, recording_id: str, **params: Any) -> dict[str, Any]:
    path = f"/v1/recordings/{recording_id}/similar"
    page: dict[str, Any] = gateway.get(path, params={"onset_s": 0.0, "offset_s": 0.8, **params})
    return page


def place(hit: dict[str, Any]) -> tuple[str, int, float]:
    return hit["job_id"], hit["position"], hit["onset_s"]


def test_stretches_are_compared_by_their_means(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", [A, A, B, A, C, C, 0 * A, 0 * A])
    pattern = pattern_of(np.stack([2 * A, 4 * A], axis=1).astype(np.float32))
    assert pattern is not None
    half = 1 / np.sqrt(2)
    with VectorReader(path) as reader:
        expected = [1, half, half, half, 0, 0, 0]
        np.testing.assert_allclose(similarities(reader, pattern), expected, atol=1e-7)
        found = [(match.start, round(match.similarity, 4)) for match in matches(reader, pattern)]
        assert found == [(0, 1.0), (2, round(half, 4)), (4, 0.0), (6, 0.0)]
        own = [match.start for match in matches(reader, pattern, (0, 2))]
        assert own[0] == 2
        assert 0 not in own


def test_blocks_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(50, 3))
    path = write(tmp_path / "a.npz", list(values))
    pattern = pattern_of(values[7:12].T.astype(np.float32))
    assert pattern is not None
    with VectorReader(path) as reader:
        whole = similarities(reader, pattern)
        monkeypatch.setattr(alike, "BLOCK_VECTORS", 7)
        np.testing.assert_allclose(similarities(reader, pattern), whole, atol=1e-12)
    means = np.stack([values[n : n + 5].mean(axis=0) for n in range(46)])
    cosine = means @ values[7:12].mean(axis=0)
    cosine /= np.linalg.norm(means, axis=1) * np.linalg.norm(values[7:12].mean(axis=0))
    np.testing.assert_allclose(whole, cosine, atol=2e-3)  # stored in half precision


def test_a_recording_shorter_than_the_example_is_one_stretch(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", [A, B])
    pattern = pattern_of(np.stack([A, A, A], axis=1).astype(np.float32))
    assert pattern is not None
    with VectorReader(path) as reader:
        (match,) = matches(reader, pattern)
    assert (match.start, match.stop) == (0, 2)
    assert match.similarity == pytest.approx(1 / np.sqrt(2))
    assert pattern_of(np.zeros((3, 2), np.float32)) is None


@STACKS
def test_what_sounds_alike_comes_first(gateway: Gateway, tmp_path: Path) -> None:
    example, near, far, mute, foreign, broken = filled(
        gateway,
        tmp_path,
        [A, A, C, C, C, C],
        [B, C, C, 3 * A, 3 * A, B],
        [B, B, A + B, A + B, C],
        None,
        None,
        None,
    )
    give(gateway, write(tmp_path / "foreign.npz", [A, A], OTHER_DIGEST), foreign)
    (tmp_path / "broken.npz").write_bytes(b"PK no zip")
    give(gateway, tmp_path / "broken.npz", broken)
    page = ask(gateway, example)
    assert {name: page[name] for name in page if name != "hits"} == {
        "looked_at": 3,
        "without_vectors": 1,
        "other_weights": 1,
        "unreadable": 1,
        "next_cursor": None,
    }
    first, second = page["hits"][:2]
    assert first == {
        "job_id": first["job_id"],
        "recording_id": near,
        "position": 1,
        "custom_id": None,
        "name": "tapes/number 1.wav",
        "onset_s": 1.2,
        "offset_s": 2.0,
        "similarity": 1.0,
        "label": "rain",  # from 1.25 to 1.75 s
    }
    assert (second["recording_id"], second["onset_s"]) == (far, 0.8)
    assert second["similarity"] == pytest.approx(1 / np.sqrt(2), abs=1e-3)
    assert second["label"] == "rain"
    similar_first = [hit["similarity"] for hit in page["hits"]]
    assert similar_first == sorted(similar_first, reverse=True)
    own = [hit["onset_s"] for hit in page["hits"] if hit["recording_id"] == example]
    assert own
    assert min(own) >= 0.8
    assert len(ask(gateway, example, limit=2)["hits"]) == 2
    assert mute not in {hit["recording_id"] for hit in page["hits"]}


@EMBEDDED
def test_damaged_vectors_cost_only_themselves(gateway: Gateway, tmp_path: Path) -> None:
    example, *damaged, whole, good = filled(
        gateway, tmp_path, [A, A, B, B], *[None for _ in DAMAGES], None, [C, A, A]
    )
    with gateway.sessions.begin() as session:
        session.execute(update(Recording).values(duration_s=N_VECTORS * VECTOR_S))
    keys = []
    for recording_id, damage in zip(damaged, DAMAGES.values(), strict=True):
        path = sound(tmp_path / f"{recording_id}.npz", DIGEST)
        damage(path)
        keys.append(give(gateway, path, recording_id))
    give(gateway, sound(tmp_path / "whole.npz", DIGEST), whole)
    for _ in range(2):
        page = ask(gateway, example)
        assert page["unreadable"] == len(DAMAGES)
        assert page["looked_at"] == 3
        assert page["other_weights"] == page["without_vectors"] == 0
        assert {hit["recording_id"] for hit in page["hits"]} == {example, whole, good}
        assert page["hits"][0]["recording_id"] == good
        assert sorted(gateway.left_out()) == sorted(keys)  # each once, in however many searches
    assert list(gateway.settings.scratch_dir.glob("*/*")) == []


@STACKS
def test_vectors_that_are_not_what_was_stored(gateway: Gateway, tmp_path: Path) -> None:
    example, longer, swapped, boasted = filled(gateway, tmp_path, [A, A, B], None, [A, A], [A, A])
    long = sound(tmp_path / "long.npz", DIGEST)  # ten minutes, of a recording of ten seconds
    keys = [give(gateway, long, longer)]
    keys.append(f"artifacts/{swapped}/vectors.npz")
    gateway.store.put_file(keys[-1], long, "application/zip")
    keys.append(f"artifacts/{boasted}/vectors.npz")
    with gateway.sessions.begin() as session:
        session.execute(
            update(Artifact).where(Artifact.object_key == keys[-1]).values(size_bytes=1 << 40)
        )
    page = ask(gateway, example)
    assert (page["looked_at"], page["unreadable"]) == (1, 3)
    assert sorted(gateway.left_out()) == sorted(keys)


@EMBEDDED
@pytest.mark.parametrize("name", ["no number", "frames without end", "cut", "vectors too wide"])
def test_an_example_whose_vectors_are_damaged(gateway: Gateway, tmp_path: Path, name: str) -> None:
    example, _ = filled(gateway, tmp_path, None, [A, A])
    path = sound(tmp_path / "example.npz", DIGEST)
    DAMAGES[name](path)
    give(gateway, path, example)
    with gateway.sessions.begin() as session:
        session.execute(update(Recording).values(duration_s=N_VECTORS * VECTOR_S))
    region = {"onset_s": 270.0, "offset_s": 290.0}
    answer = gateway.client.get(f"/v1/recordings/{example}/similar", params=region)
    assert len(problem(answer, 500, "artifact_invalid")["detail"]) < 500


@STACKS
@pytest.mark.parametrize("document", NO_EVENTS)
def test_damaged_events_cost_only_the_label(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: bytes
) -> None:
    monkeypatch.setattr(exports, "MAX_EVENTS_BYTES", 1_000 if document[:1] == b" " else 1 << 20)
    example, near = filled(gateway, tmp_path, [A, A, B], [C, A, A])
    key = give_events(gateway.sessions, gateway.store, near, document)
    page = ask(gateway, example)
    assert (page["hits"][0]["recording_id"], page["hits"][0]["label"]) == (near, None)
    assert gateway.left_out() == [key]


@STACKS
def test_jobs_and_pages(gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example, *_ = filled(gateway, tmp_path, [A, A, B], [A, C])
    elsewhere = filled(gateway, tmp_path, [B, A, A], None, [C, C])
    other = gateway.get(f"/v1/recordings/{elsewhere[0]}")["job_id"]
    assert [hit["position"] for hit in ask(gateway, example, limit=1)["hits"]] == [1]
    (hit,) = ask(gateway, example, limit=1, job_id=other)["hits"]
    assert (hit["recording_id"], hit["onset_s"]) == (elsewhere[0], 0.4)
    whole = ask(gateway, example, within="archive")
    assert whole["looked_at"] == 4
    assert whole["without_vectors"] == 1
    for name, value in (("SCAN", 1), ("SCAN", 2), ("SCAN_VECTORS", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(similar, name, value)
            pages = [ask(gateway, example, within="archive")]
            while cursor := pages[-1]["next_cursor"]:
                pages.append(ask(gateway, example, within="archive", cursor=cursor))
        assert len(pages) > 2
        hits = [hit for page in pages for hit in page["hits"]]
        assert sorted(hits, key=place) == sorted(whole["hits"], key=place)
        assert sum(page["looked_at"] for page in pages) == 4


@EMBEDDED
def test_searches_that_cannot_be_done(gateway: Gateway, tmp_path: Path) -> None:
    example, mute, silent = filled(gateway, tmp_path, [A, B], None, [0 * A, 0 * A])

    def refused(recording_id: str, status: int, code: str, **params: Any) -> str:
        path = f"/v1/recordings/{recording_id}/similar"
        answer = gateway.client.get(path, params={"onset_s": 0.0, "offset_s": 0.4, **params})
        detail: str = problem(answer, status, code)["detail"]
        return detail

    assert '{"classify": {"embeddings": true}}' in refused(mute, 409, "vectors_missing")
    waiting = gateway.upload(gateway.new_job())
    assert "not classified yet" in refused(waiting, 409, "vectors_missing")
    refused(example, 422, "region_invalid", offset_s=0.0)
    refused(example, 422, "region_invalid", onset_s=1.0)
    refused(example, 422, "region_invalid", onset_s=0.8, offset_s=1.0)
    refused(example, 422, "region_invalid", offset_s=61.0)
    refused(silent, 422, "region_invalid")
    for cursor in ("cake", "Y2FrZQ"):
        refused(example, 422, "cursor_invalid", cursor=cursor)
    for wrong in ({"onset_s": -1.0}, {"onset_s": "nan"}, {"offset_s": "inf"}, {"limit": 0}):
        refused(example, 422, "request_invalid", **wrong)
    refused("nope", 404, "not_found")
    refused(example, 404, "not_found", job_id="nope")
    gateway.store.delete(f"artifacts/{example}/vectors.npz")
    refused(example, 500, "artifact_invalid")


@STACKS
def test_nobody_hears_what_is_anothers(gateway_with_keys: Gateway, tmp_path: Path) -> None:
    gateway = gateway_with_keys
    mine = filled(gateway, tmp_path, [A, A], [A, B])
    theirs = filled(gateway, tmp_path, [A, A])
    keys = [gateway.new_key([Scope.READ, Scope.SUBMIT]) for _ in range(2)]
    owners = []
    for key, recording_ids in zip(keys, (mine, theirs), strict=True):
        gateway.client.headers.update(key)
        owned = gateway.new_job()
        with gateway.sessions.begin() as session:
            owner = session.get_one(Job, owned).owner
            run = session.scalars(
                select(StageRun).where(StageRun.recording_id == recording_ids[0])
            ).first()
            assert run is not None
            session.get_one(Job, run.job_id).owner = owner
            owners.append(run.job_id)
    path = f"/v1/recordings/{mine[0]}/similar"
    region = {"onset_s": 0.0, "offset_s": 0.8, "within": "archive"}
    problem(gateway.client.get(path, params=region), 404, "not_found")
    gateway.client.headers.update(keys[0])
    page = gateway.get(path, params=region)
    assert {hit["recording_id"] for hit in page["hits"]} == {mine[1]}
    assert page["looked_at"] == 2
    region = {"onset_s": 0.0, "offset_s": 0.8, "job_id": owners[1]}
    problem(gateway.client.get(path, params=region), 404, "not_found")
