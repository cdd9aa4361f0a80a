"""Words in ``restore.remove``: what is meant is taken out, or else the text is refused."""

from __future__ import annotations

import pytest

from common.errors import ParametersInvalid
from common.params import JobParams, parse_params


def removed(wish: object) -> tuple[str, ...]:
    return parse_params({"restore": {"remove": wish}}).restore.remove


@pytest.mark.parametrize(
    ("wish", "labels"),
    [
        ("dog", ("dog",)),
        ("remove the annoying dog", ("dog",)),
        ("remove only the dog", ("dog",)),
        ("the barking dog and any sirens", ("dog", "siren")),
        (["rain", "the barking dog", "dogs"], ("rain", "dog")),
    ],
)
def test_what_is_asked_for(wish: object, labels: tuple[str, ...]) -> None:
    assert removed(wish) == labels


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ("I only want to hear the speech", "not meant"),
        ("just the speech", "not meant"),
        ("speech only", "not meant"),
        ("keep the rain", "not meant"),
        ("stop removing the dog", "not meant"),
        ("isolate the speech", "Not understood: isolate"),
        ("boost the speech", "Not understood: boost"),
        ("find the dog", "not to remove"),
        ("remove the siren and the dog zorb", "Not understood: zorb, dog"),
        ("the dog and grobnix", "Not understood: grobnix"),
        ("the dog and 🐈", "Latin letters"),
        ("the dog and \udfff", "Latin letters"),
        ("\x1b[31mdog", "names no sound"),
        ("?!", "names no sound"),
        ("x" * 1_000_000, "2000 characters"),
        (["dog"] * 101, "more than 100 texts"),
        (["dog " * 100] * 6, "2000 characters"),
    ],
)
def test_what_is_kept_or_not_understood_is_never_removed(wish: object, why: str) -> None:
    with pytest.raises(ParametersInvalid, match=why):
        removed(wish)


def test_workers_of_before_can_read_what_asks_for_nothing_new() -> None:
    """They refuse fields that they do not know, and a threshold that is no number."""
    assert JobParams().model_dump(mode="json")["classify"] == {"top_k": 5}
