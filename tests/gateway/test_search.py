"""Search by words in the results of a job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.labels import LABELS
from common.results import events_json
from common.settings import Settings
from services.gateway import exports, search
from tests.gateway.conftest import STACKS, Gateway, problem, running
from tests.gateway.filled import NO_EVENTS, fill, give_events, heard
from tests.text.models import make_model

EMBEDDED = pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True
)


@dataclass(frozen=True)
class Sent:
    """The answer to a request that no client library had a hand in."""

    status: int
    document: dict[str, Any]


@contextmanager
def answered(gateway: Gateway, path: str) -> Iterator[HTTPResponse]:
    """Send a GET for exactly this path and query; give the answer before its body."""
    with closing(HTTPConnection(gateway.url.removeprefix("http://"), timeout=30)) as connection:
        connection.request("GET", path)
        yield connection.getresponse()


def sent(gateway: Gateway, path: str) -> Sent:
    """Return the status and the JSON that answer such a GET."""
    with answered(gateway, path) as answer:
        return Sent(answer.status, json.loads(answer.read()))


def pages(gateway: Gateway, job_id: str, **params: Any) -> list[dict[str, Any]]:
    """Follow the cursors of a search to their end."""
    found = [gateway.get(f"/v1/jobs/{job_id}/search", params=params)]
    while cursor := found[-1]["next_cursor"]:
        params["cursor"] = cursor
        found.append(gateway.get(f"/v1/jobs/{job_id}/search", params=params))
    return found


@STACKS
def test_words_find_recordings(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = fill(
        gateway.sessions,
        [heard("dog", "rain", "dog"), heard("siren"), heard(), heard("rain", "siren")] * 3,
    )
    (page,) = pages(gateway, filled.job_id, text="Dogs barking, unicorns")
    assert page["labels"] == ["dog"]
    assert page["unknown"] == ["unicorns"]
    assert page["guesses"] == [{"label": "dog", "confidence": 0.95}]  # by their stems
    assert [hit["position"] for hit in page["hits"]] == [0, 4, 8]
    assert page["hits"][0] == {
        "recording_id": filled.recording_ids[0],
        "position": 0,
        "custom_id": None,
        "name": "tapes/number 0.wav",
        "duration_s": 10.0,
        "events": [
            {"label": "dog", "onset_s": onset_s, "offset_s": onset_s + 0.5, "confidence": 0.5}
            for onset_s in (0.25, 2.25)
        ],
    }
    expected = [0, 1, 3, 4, 5, 7, 8, 9, 11]
    found = pages(gateway, filled.job_id, text="sirens in the rain", limit=2)
    assert [hit["position"] for page in found for hit in page["hits"]] == expected
    assert all(len(page["hits"]) <= 2 for page in found)
    monkeypatch.setattr(search, "SCAN", 3)
    found = pages(gateway, filled.job_id, text="ambulance rain")
    assert [hit["position"] for page in found for hit in page["hits"]] == expected
    assert len(found) == 4
    (page, *_) = pages(gateway, filled.job_id, text="rooster")
    assert (page["hits"], page["labels"]) == ([], ["rooster"])


@STACKS
def test_damaged_events_cost_only_their_recording(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "MAX_EVENTS_BYTES", 150_000)
    filled = fill(gateway.sessions, [heard("dog")] * (len(NO_EVENTS) + 5))
    first, *damaged, gone, stored, last = filled.recording_ids
    documents = [*NO_EVENTS, b" " * 200_000]
    keys = [
        give_events(gateway.sessions, gateway.store, recording_id, document)
        for recording_id, document in zip(damaged, documents, strict=True)
    ]
    keys.append(give_events(gateway.sessions, gateway.store, gone, b""))
    gateway.store.delete(keys[-1])
    give_events(gateway.sessions, gateway.store, stored, events_json(heard("dog")).encode())
    (page,) = pages(gateway, filled.job_id, text="dog")
    assert [hit["recording_id"] for hit in page["hits"]] == [first, stored, last]
    assert page["unreadable"] == len(keys)
    for limit, scan in ((1, 5_000), (50, 1), (50, 2)):
        monkeypatch.setattr(search, "SCAN", scan)
        found = pages(gateway, filled.job_id, text="dog", limit=limit)
        assert [hit for page in found for hit in page["hits"]] == page["hits"]
        assert sum(page["unreadable"] for page in found) == len(keys)
    assert sorted(gateway.left_out()) == sorted(keys)  # each once, in however many searches


@STACKS
def test_searches_that_cannot_be_done(gateway: Gateway) -> None:
    path = f"/v1/jobs/{gateway.new_job()}/search"
    document = problem(
        gateway.client.get(path, params={"text": "unicorns"}), 422, "text_not_understood"
    )
    assert document["known"] == list(LABELS)
    assert document["reason"] == "unknown"
    for text, reason in (("no dogs", "negated"), ("собака", "script"), ("dog zorb", "unsure")):
        answer = gateway.client.get(path, params={"text": text})
        assert problem(answer, 422, "text_not_understood")["reason"] == reason
    for text in ("", "  ", "\u200b"):
        problem(gateway.client.get(path, params={"text": text}), 422, "text_empty")
    for bad in ({}, {"text": "x" * 501}, {"text": "dog", "limit": 0}):
        problem(gateway.client.get(path, params=bad), 422, "request_invalid")
    answer = gateway.client.get(path, params={"text": "dog", "cursor": "cake"})
    problem(answer, 422, "cursor_invalid")
    answer = gateway.client.get("/v1/jobs/nope/search", params={"text": "dog"})
    problem(answer, 404, "not_found")


@EMBEDDED
def test_a_text_is_explained(gateway: Gateway) -> None:
    def explained(text: str) -> dict[str, Any]:
        answer: dict[str, Any] = gateway.get("/v1/text", params={"text": text})
        return answer

    found = explained("Remove the barking dog and the cat, but keep the speech on my zorb")
    assert found == {
        "labels": ["dog"],
        "guesses": [{"label": "dog", "confidence": 1.0}],
        "unsure": [],
        "excluded": ["speech"],
        "others": ["cat"],
        "unknown": ["zorb"],
        "intent": "remove",
        "judged": False,
        "abstained": None,
        "detail": None,
        "known": list(LABELS),
    }
    found = explained("leaf blowers")
    assert (found["labels"], found["abstained"], found["known"]) == ([], "unknown", list(LABELS))
    assert found["detail"]
    problem(gateway.client.get("/v1/text", params={"text": " "}), 422, "text_empty")
    problem(gateway.client.get("/v1/text"), 422, "request_invalid")


@EMBEDDED
def test_what_to_remove_in_words(gateway: Gateway) -> None:
    def removed(wish: Any) -> httpx.Response:
        return gateway.client.post("/v1/jobs", json={"params": {"restore": {"remove": wish}}})

    for wish, labels in (
        ("the barking dog and any sirens", ["dog", "siren"]),
        ("everything but speech", [label for label in LABELS if label != "speech"]),
        (["dog", "car horns"], ["dog", "car_horn"]),
        ([], []),
    ):
        assert removed(wish).json()["params"]["restore"]["remove"] == labels
    for wish in ("the leaf blower", "the dog and the cat", "keep the speech", "not the dog", "", 5):
        document = problem(removed(wish), 422, "request_invalid")
        assert "restore.remove" in document["detail"]
    assert "leaf blower" in removed("the leaf blower").json()["detail"]
    assert "air_conditioner, car_horn" in removed("unicorns").json()["detail"]
    job_id = gateway.new_job()
    params = {"name": "a.wav", "params": json.dumps({"restore": {"remove": "any rain"}})}
    path = f"/v1/jobs/{job_id}/recordings"
    recording_id = gateway.client.post(path, params=params, content=b"RIFF").json()["id"]
    runs = gateway.get(f"/v1/recordings/{recording_id}")["runs"]
    assert runs[-1]["parameters"] == {"remove": ["rain"]}


@EMBEDDED
@pytest.mark.parametrize(
    ("raw", "status", "said"),
    [
        ("%3F%21...%2C", 200, "unknown"),  # punctuation alone
        ("%1B%5B31m%07%00", 200, "unknown"),  # what a terminal would obey
        ("%ED%A0%80", 200, "script"),  # half a surrogate pair is no UTF-8
        ("%ED%A0%80%20dog", 200, None),
        ("%FF%FE", 200, "script"),
        ("%E2%80%AE", 422, "text_empty"),  # turns the direction, and shows nothing
        ("%00", 422, "text_empty"),
        ("", 422, "text_empty"),
        ("%D8%B7%D8%A8%D9%84", 200, "script"),
        ("x" * 501, 422, "request_invalid"),
        ("dog%20" * 8_000, 422, "request_invalid"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_texts_that_attack(gateway: Gateway, raw: str, status: int, said: str | None) -> None:
    job_id = gateway.new_job()
    for path in (f"/v1/text?text={raw}", f"/v1/jobs/{job_id}/search?text={raw}"):
        found = sent(gateway, path)
        if status == 422:
            assert (found.status, found.document["code"]) == (422, said)
        elif path.startswith("/v1/text"):
            assert (found.status, found.document["abstained"]) == (200, said)
        elif said is not None:
            assert (found.status, found.document["code"]) == (422, "text_not_understood")
            assert found.document["reason"] == said
        if said != "request_invalid" and said is not None:
            assert found.document["known"] == list(LABELS)
    assert gateway.client.get("/health").status_code == 200


@EMBEDDED
def test_an_address_of_a_megabyte_harms_nobody(gateway: Gateway) -> None:
    """It is no request: the server refuses it, often before all of it was sent."""
    path = f"/v1/text?text={'dog%20' * 200_000}"
    with suppress(ConnectionError), answered(gateway, path) as answer:
        assert answer.status == 400
    assert sent(gateway, "/v1/text?text=dog").document["labels"] == ["dog"]


@EMBEDDED
@pytest.mark.parametrize(
    "wish",
    [
        '"\\ud800"',  # half a surrogate pair, as JSON can write it
        '"the dog and \\udfff"',
        '"\\u0000"',
        '"\\u001b[31mzorb"',
        '"?!"',
        '"собака"',
        f'"{"dog " * 250_000}"',
        f'["{"x" * 1_000_000}"]',
        "[[[]]]",
        '["dog", null]',
    ],
    ids=lambda value: value[:20],
)
def test_wishes_that_attack(gateway: Gateway, wish: str) -> None:
    body = f'{{"params": {{"restore": {{"remove": {wish}}}}}}}'.encode()
    answer = gateway.client.post(
        "/v1/jobs", content=body, headers={"Content-Type": "application/json"}
    )
    if answer.status_code == 413:
        problem(answer, 413, "too_large")
    elif answer.status_code != 201:  # what cannot be seen takes nothing from what can
        problem(answer, 422, "request_invalid")
        assert len(answer.content) < 10_000
    else:
        assert answer.json()["params"]["restore"]["remove"] == ["dog"]
    assert gateway.client.get("/health").status_code == 200


@EMBEDDED
def test_an_encoder_judges_and_a_bad_one_breaks_nothing(
    gateway_settings: Settings, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"text_encoder": make_model(tmp_path / "encoder")}
    with running(gateway_settings.model_copy(update=changes)) as gateway:
        found = gateway.get("/v1/text", params={"text": "the loud kennel"})
        assert (found["labels"], found["judged"], found["unknown"]) == (["dog"], True, [])
        assert gateway.get("/v1/text", params={"text": "remove the kennel"})["labels"] == []
    changes = {"text_encoder": tmp_path / "gone", "classifier_weights": tmp_path / "gone"}
    with running(gateway_settings.model_copy(update=changes)) as gateway:
        found = gateway.get("/v1/text", params={"text": "the loud kennel"})
        assert (found["labels"], found["judged"], found["known"]) == ([], False, list(LABELS))
