"""The sentence encoder: judges what no word is known of, and is no reason for anything to fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import ParametersInvalid
from common.labels import LABELS
from common.params import parse_params
from common.settings import Settings
from common.text.encoder import Encoder
from common.text.understanding import Abstained, understand
from common.wording import Wording, wording_of
from tests.text.models import WORDS, make_model

THRESHOLD = 0.75


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def wording(folder: Path) -> Wording:
    return Wording(judge=Encoder(folder, LABELS, THRESHOLD).nearest)


@pytest.mark.parametrize(
    ("text", "labels", "unknown"),
    [
        ("kennel", ["dog"], []),
        ("find the loud kennel!", ["dog"], []),
        ("the kennel and any tempest", ["dog", "rain"], []),
        ("a kennel, a ledger", ["dog"], ["ledger"]),
        ("a kennel or a hot dog", ["dog"], []),
    ],
)
def test_what_no_word_is_known_of(
    wording: Wording, text: str, labels: list[str], unknown: list[str]
) -> None:
    assert understand(text).abstained is Abstained.UNKNOWN
    found = wording.understand(text)
    assert (list(found.labels), list(found.unknown)) == (labels, unknown)
    assert found.judged
    assert found.abstained is None
    assert all(THRESHOLD <= guess.confidence <= 1.0 for guess in found.guesses)


def test_confidence_is_the_cosine_to_the_nearest_phrase(wording: Wording) -> None:
    (guess,) = wording.understand("kennel").guesses
    puppy, kennel = (np.array([WORDS[w]["dog"], WORDS[w]["nothing"]]) for w in ("puppy", "kennel"))
    cosine = puppy @ kennel / np.linalg.norm(puppy) / np.linalg.norm(kennel)
    assert guess.confidence == pytest.approx(cosine, abs=1e-3)


@pytest.mark.parametrize(
    "text",
    [
        "ledger",  # not similar enough
        "grobnix",  # not a token of the model's
        "quacker",  # most like something that is no label
        "no kennel",
        "everything but the kennel",
        "a tempest rather than a kennel",
        "isn't a kennel",
        "remove the kennel",
        "keep the kennel",
        "stop removing the kennel",
        "dog zorb",  # not sure, by what is known
        "dog kennel",
        "hot dog",
        "no dogs",
        "собака",
        "",
    ],
)
def test_the_encoder_changes_nothing_else(wording: Wording, text: str) -> None:
    assert wording.understand(text) == understand(text)
    assert wording.understand(text).labels == ()


def test_what_is_understood_by_its_words_is_not_judged(wording: Wording) -> None:
    for text in ("dog", "the barking dog and any sirens", "everything but the dog", "rain or zorb"):
        assert wording.understand(text) == understand(text)
        assert not wording.understand(text).judged


def test_what_is_removed_is_never_judged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUNDMILL_TEXT_ENCODER", str(folder))
    for wish in ("kennel", "remove the kennel", ["dog", "kennel"]):
        with pytest.raises(ParametersInvalid):
            parse_params({"restore": {"remove": wish}})


def test_labels_of_ones_own_are_judged_too(folder: Path) -> None:
    labels = (*LABELS, "Blackbird")
    wording = Wording(labels, Encoder(folder, labels, THRESHOLD).nearest)
    assert wording.understand("some songster").labels == ("Blackbird",)


def test_the_settings_name_the_encoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setenv("SOUNDMILL_TEXT_ENCODER", str(folder))
    assert wording_of(Settings(), said.append).understand("kennel").labels == ("dog",)
    monkeypatch.setenv("SOUNDMILL_TEXT_ENCODER_THRESHOLD", "0.99")
    assert wording_of(Settings(), said.append).understand("kennel").labels == ()
    monkeypatch.setenv("SOUNDMILL_TEXT_ENCODER", "")
    assert wording_of(Settings(), said.append).judge is None
    assert not said


def spoil(folder: Path, how: str) -> Path:
    if how == "missing":
        return folder / "nothing"
    if how == "empty":
        return folder
    if how in ("not finite", "strange"):
        vectors = np.zeros((1 + len(WORDS), 3), np.float32)
        return make_model(folder, vectors + np.float32("nan") if how == "not finite" else vectors)
    make_model(folder)
    for path in folder.glob(how):
        path.write_bytes(path.read_bytes()[:50])
    return folder


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("missing", "is no folder"),
        ("empty", "cannot be read"),
        ("model.safetensors", "cannot be read"),
        ("tokenizer.json", "cannot be read"),
        ("config.json", "cannot be read"),
        ("not finite", "not finite"),
        ("strange", "has no word that names a label"),
    ],
)
def test_a_bad_model_is_told_once_and_done_without(tmp_path: Path, how: str, why: str) -> None:
    said: list[str] = []
    wording = wording_of(Settings(text_encoder=spoil(tmp_path, how)), said.append)
    (sentence,) = said
    assert sentence.startswith("SOUNDMILL_TEXT_ENCODER: ")
    assert why in sentence
    assert wording.understand("dogs") == understand("dogs")
    assert wording.understand("kennel") == understand("kennel")


def test_a_missing_library_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model2vec", None)
    monkeypatch.delitem(sys.modules, "common.text.encoder")
    said: list[str] = []
    assert wording_of(Settings(text_encoder=folder), said.append).judge is None
    (sentence,) = said
    assert "SOUNDMILL_TEXT_ENCODER" in sentence
    assert "pip install 'soundmill[encoder]'" in sentence


def test_no_torch_is_loaded_by_the_encoder(folder: Path) -> None:
    script = (
        "import sys, services.gateway.__main__; from common.settings import Settings; "
        "from common.wording import wording_of; "
        "meant = wording_of(Settings(), print).understand('kennel'); assert meant.judged, meant; "
        "found = {'torch', 'scipy', 'sklearn'} & set(sys.modules); "
        "sys.exit(f'loaded: {found}' if found else 0)"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {"SOUNDMILL_TEXT_ENCODER": str(folder), "SOUNDMILL_HOME": str(folder)}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
