"""What words mean: by example, by the bars on the held-out texts, and for any text at all."""

from __future__ import annotations

import sys
import unicodedata
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.labels import LABELS
from common.text.aliases import ALIASES
from common.text.reading import lexicon
from common.text.spelling import NgramIndex, distance
from common.text.understanding import (
    MAX_LENGTH,
    THRESHOLD,
    Abstained,
    Intent,
    understand,
)
from tests.text.measure import cases, false_acceptance, measure, share_right

MIN_ALIASES = 20
MIN_PARAPHRASES, MIN_OTHERS, MIN_PER_LABEL = 300, 200, 10
BAR_RIGHT, BAR_FALSE = 0.95, 0.05


@pytest.mark.parametrize(
    ("text", "labels", "left"),
    [
        ("dogs barking", ["dog"], []),
        ("dog", ["dog"], []),
        ("Any SIRENS?", ["siren"], []),
        ("a car horn and gunshots in the rain", ["car_horn", "gun_shot", "rain"], []),
        ("fire engines", ["siren"], []),
        ("engine", ["engine_idling"], []),
        ("babies crying", ["crying_baby"], []),
        ("sea_waves", ["sea_waves"], []),
        ("the ocean's waves", ["sea_waves"], []),
        ("people talking", ["speech"], []),
        ("a dog or a unicorn", ["dog"], ["unicorn"]),
        ("a dog or a zorb", ["dog"], ["zorb"]),
        ("sneezes", ["sneezing"], []),
        ("drills", ["drilling"], []),
        ("ba\u0301rking", ["dog"], []),  # a combining accent
        ("do\u200bg", ["dog"], []),  # a space of no width inside
        ("ｄｏｇ", ["dog"], []),  # full width letters
        ("zorbs", [], ["zorbs"]),
        ("собака", [], ["собака"]),
        ("dоg", [], ["dоg"]),  # its middle letter is Cyrillic
        ("the", [], []),
        ("?!", [], []),
    ],
)
def test_texts(text: str, labels: list[str], left: list[str]) -> None:
    found = understand(text)
    assert list(found.labels) == labels
    assert [*found.others, *found.unknown] == [unicodedata.normalize("NFKD", one) for one in left]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Abstained.EMPTY),
        (" \t\n\x00\u200b\ufeff", Abstained.EMPTY),
        ("x" * (MAX_LENGTH + 1), Abstained.TOO_LONG),
        ("dog " * 25_000, Abstained.TOO_LONG),
        ("собака лает", Abstained.SCRIPT),
        ("犬の鳴き声", Abstained.SCRIPT),
        ("كلب", Abstained.SCRIPT),
        ("🐕", Abstained.SCRIPT),
        ("no dogs", Abstained.NEGATED),
        ("don't remove the siren", Abstained.NEGATED),
        ("dog zorb", Abstained.UNSURE),
        ("der Hund bellt", Abstained.UNKNOWN),
        ("le chien aboie", Abstained.UNKNOWN),
        ("leaf blower", Abstained.UNKNOWN),
        ("42", Abstained.UNKNOWN),
        ("?!...,;:", Abstained.UNKNOWN),
        ("\u2026\u3002\u201c\u201d", Abstained.UNKNOWN),  # punctuation of other scripts
        ("\x1b[31m\x07\x00", Abstained.UNKNOWN),
        ("\ud800", Abstained.SCRIPT),  # half a surrogate pair
        ("\ud800x\udfff" * 600, Abstained.SCRIPT),
        ("\ue000\uffff", Abstained.SCRIPT),  # of private use, and no character
        ("\u202e\u2066", Abstained.EMPTY),  # turns the direction, and shows nothing
        ("\u0301" * 100, Abstained.EMPTY),
        ("z\u0335" * 1_000, Abstained.UNKNOWN),
        ("x" * 1_000_000, Abstained.TOO_LONG),
        ("\ud800" * 1_000_000, Abstained.TOO_LONG),
    ],
)
def test_why_nothing_is_taken(text: str, reason: Abstained) -> None:
    found = understand(text)
    assert (found.labels, found.abstained) == ((), reason)


@pytest.mark.parametrize(
    ("text", "labels", "excluded", "intent"),
    [
        ("find the dog", ["dog"], [], Intent.FIND),
        ("remove the siren but leave the speech", ["siren"], ["speech"], Intent.REMOVE),
        ("keep the music", ["street_music"], [], Intent.KEEP),
        ("the rain, not the dog", ["rain"], ["dog"], None),
        ("rain without dogs or sirens", ["rain"], ["dog", "siren"], None),
        ("not only the dog but also the rain", ["dog", "rain"], [], None),
        ("no dogs. sirens!", ["siren"], ["dog"], None),
        ("sirens instead of dogs", ["siren"], ["dog"], None),
    ],
)
def test_what_is_not_meant(
    text: str, labels: list[str], excluded: list[str], intent: Intent | None
) -> None:
    found = understand(text)
    assert (list(found.labels), list(found.excluded)) == (labels, excluded)
    assert found.intent == intent


def test_everything_but() -> None:
    found = understand("Remove everything except speech and music.")
    assert found.excluded == ("speech", "street_music")
    assert found.labels == tuple(label for label in LABELS if label not in found.excluded)


def test_words_around_a_label_count() -> None:
    sure = {text: understand(text, 0.0).guesses[0].confidence for text in ("dog", "zorby dog")}
    assert sure["dog"] == 1.0
    assert THRESHOLD <= sure["zorby dog"] < sure["dog"]
    (unsure,) = understand("dog zorb").unsure
    assert (unsure.label, understand("dog zorb").labels) == ("dog", ())
    assert understand("hot dogs").others == ("hot dogs",)
    assert understand("hot dogs and dogs").labels == ("dog",)


def test_every_label_and_alias_is_understood() -> None:
    assert set(ALIASES) == set(LABELS)
    taken: set[str] = set()
    for label in LABELS:
        phrases = (label.replace("_", " "), *ALIASES[label])
        assert len(set(phrases)) >= MIN_ALIASES, label
        assert not taken & set(phrases), "an alias of two labels"
        taken |= set(phrases)
        for phrase in phrases:
            assert understand(phrase).labels == (label,), phrase


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("helicoper", "helicopter"),  # a letter left out
        ("jackhammmer", "jackhammer"),  # one doubled
        ("enigne", "engine"),  # two swapped
        ("rooztre", None),  # too much in too short a word
        ("crowing", "crowing"),
        ("rowing", None),  # another word with many of its n-grams
        ("sizzling", None),
        ("zorb", None),
        ("do", None),
        ("d" * 31, None),
    ],
)
def test_misspelt_words(written: str, meant: str | None) -> None:
    nearest = lexicon().index.nearest(written)
    assert (nearest and nearest.word) == meant
    assert nearest is None or 0.0 < nearest.confidence <= 1.0


def test_distance_counts_letters() -> None:
    for one, other, edits in (
        ("siren", "siren", 0),
        ("siren", "sirens", 1),
        ("rian", "rain", 1),
        ("kitten", "sitting", 3),
        ("", "abc", 3),
        ("ca", "abc", 3),  # swapped letters are not edited again
    ):
        assert distance(one, other) == distance(other, one) == edits


def test_alike_words_are_found_by_their_ngrams() -> None:
    index = NgramIndex(["ventilation", "ventilator", "rain"])
    nearest = index.nearest("ventilations")
    assert nearest is not None
    assert nearest.word == "ventilation"


def test_held_out_texts_reach_the_bars() -> None:
    paraphrases, others = cases("paraphrases"), cases("out_of_vocabulary")
    assert len(paraphrases) >= MIN_PARAPHRASES
    assert len(others) >= MIN_OTHERS
    for label in LABELS:
        assert sum(case.labels == {label} for case in paraphrases) >= MIN_PER_LABEL
    assert share_right(paraphrases) >= BAR_RIGHT
    assert false_acceptance(others) <= BAR_FALSE
    development = {case.text.casefold() for case in cases("development")}
    held_out = {case.text.casefold() for case in (*paraphrases, *others)}
    assert not development & held_out
    assert measure(with_wrong=False)["threshold"] == THRESHOLD


@given(st.text(max_size=60))
def test_any_text_has_an_answer(text: str) -> None:
    found = understand(text)
    assert set(found.labels) <= set(LABELS)
    assert all(THRESHOLD <= guess.confidence <= 1.0 for guess in found.guesses)
    assert (found.abstained is None) == bool(found.labels)


@pytest.mark.parametrize(
    "part", ["dog ", "barkign ", "no ", "everything but ", "ﷺ", "a\u0301", "zq"]
)
def test_work_grows_no_faster_than_the_text(part: str) -> None:
    """Four times the text takes four times the calls, with some room; not sixteen times."""

    def calls(length: int) -> int:
        text = (part * length)[:length]
        count = 0

        def note(_frame: FrameType, event: str, _arg: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        understand("dog")  # makes the lexicon
        before = sys.getprofile()
        sys.setprofile(note)
        try:
            understand(text)
        finally:
            sys.setprofile(before)
        return count

    assert calls(MAX_LENGTH) <= 5 * calls(MAX_LENGTH // 4) + 100
