"""Labels of weights of one's own are words too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from common.errors import WeightsInvalid
from common.labels import LABELS
from common.settings import Settings
from common.text.understanding import Abstained, understand
from common.weights_header import labels_of
from common.wording import wording_of

OWN = ("dog", "Great_Tit", "bark", "wren", "stop", "Türklingel", "7")


def weights(path: Path, config: object) -> Path:
    save_file({"w": np.zeros(2, np.float32)}, path, metadata={"config": json.dumps(config)})
    return path


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("Great_Tit", ["Great_Tit"]),
        ("two great tits in the rain", ["rain", "Great_Tit"]),
        ("great_tit", ["Great_Tit"]),
        ("wrens", ["wren"]),
        ("barking", ["bark"]),  # and no dog
        ("a wren barks", ["bark", "wren"]),
        ("the dog barks", ["dog"]),  # a longer phrase
        ("turklingel", ["Türklingel"]),
        ("7", ["7"]),
        ("stop", ["stop"]),  # exactly the name
        ("stop the siren", ["siren"]),
        ("the rain, not the wren", ["rain"]),
        ("sirens", ["siren"]),
    ],
)
def test_names_are_words(text: str, labels: list[str]) -> None:
    known = tuple(dict.fromkeys((*LABELS, *OWN)))
    assert list(understand(text, labels=known).labels) == labels


def test_everything_but() -> None:
    known = (*LABELS, "wren")
    assert set(understand("everything but the dog", labels=known).labels) == {*known} - {"dog"}


def test_the_weights_that_are_served_name_them(tmp_path: Path) -> None:
    path = weights(tmp_path / "classifier.safetensors", {"labels": OWN})
    said: list[str] = []
    wording = wording_of(Settings(classifier_weights=path), said.append)
    assert wording.labels == (*LABELS, *OWN[1:])
    assert wording.understand("great tits").labels == ("Great_Tit",)
    assert wording_of(Settings(), said.append).labels == LABELS
    assert not said


def test_without_the_file_the_shipped_labels_hold(tmp_path: Path) -> None:
    said: list[str] = []
    wording = wording_of(Settings(classifier_weights=tmp_path / "not here"), said.append)
    assert wording.labels == LABELS
    assert wording.understand("wrens").abstained is Abstained.UNKNOWN
    (sentence,) = said
    assert sentence.startswith("SOUNDMILL_CLASSIFIER_WEIGHTS: ")


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"]
)
def test_what_is_no_weights_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights"
    path.write_bytes(content)
    with pytest.raises(WeightsInvalid):
        labels_of(path)


@pytest.mark.parametrize("config", [{}, [], {"labels": "dog"}, {"labels": [1]}, None])
def test_weights_without_labels(tmp_path: Path, config: object) -> None:
    with pytest.raises(WeightsInvalid):
        labels_of(weights(tmp_path / "weights", config))


@pytest.mark.parametrize("nested", ["header", "config"])
def test_lists_in_lists_do_not_keep_a_gateway_from_starting(tmp_path: Path, nested: str) -> None:
    path = tmp_path / "weights"
    deep = "[" * 100_000
    if nested == "config":
        save_file({"w": np.zeros(2, np.float32)}, path, metadata={"config": deep})
    else:
        path.write_bytes(len(deep).to_bytes(8, "little") + deep.encode())
    with pytest.raises(WeightsInvalid):
        labels_of(path)
    said: list[str] = []
    assert wording_of(Settings(classifier_weights=path), said.append).labels == LABELS
    assert len(said) == 1
