"""What words mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.labels import LABELS
from common.vocabulary import ALIASES, understand


@pytest.mark.parametrize(
    ("text", "labels", "unknown"),
    [
        ("dogs barking", ["dog"], []),
        ("dog", ["dog"], []),
        ("Any SIRENS?", ["siren"], []),
        ("a car horn and gunshots in the rain", ["car_horn", "gun_shot", "rain"], []),
        ("fire engines", ["siren"], []),
        ("engine", ["engine_idling"], []),
        ("babies crying", ["crying_baby"], []),
        ("sea_waves", ["sea_waves"], []),
        ("the ocean's waves", ["sea_waves"], ["s"]),
        ("people talking", ["speech"], []),
        ("a dog or a unicorn", ["dog"], ["unicorn"]),
        ("sneezes", ["sneezing"], []),
        ("drills", ["drilling"], []),
        ("unicorns", [], ["unicorns"]),
        ("собака", [], ["собака"]),
        ("the", [], []),
        ("", [], []),
        ("?!", [], []),
    ],
)
def test_texts(text: str, labels: list[str], unknown: list[str]) -> None:
    found = understand(text)
    assert list(found.labels) == labels
    assert list(found.unknown) == unknown


def test_every_label_and_alias_is_understood() -> None:
    assert set(ALIASES) == set(LABELS)
    for label in LABELS:
        for phrase in (label, *ALIASES[label]):
            assert understand(phrase).labels == (label,), phrase


@given(st.text(max_size=60))
def test_any_text_has_an_answer(text: str) -> None:
    assert set(understand(text).labels) <= set(LABELS)
