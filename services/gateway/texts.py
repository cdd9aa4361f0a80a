"""How a text is understood, as it goes over the wire, and the problems of one that is not."""

from __future__ import annotations

from http import HTTPStatus

from pydantic import BaseModel

from common.text.understanding import WHY, Abstained, Guess, Intent, Understood
from common.wording import Wording
from services.gateway.problems import Problem


class GuessOut(BaseModel):
    """A label and how sure it is that it is meant, from 0 to 1."""

    label: str
    confidence: float


class TextOut(BaseModel):
    """What a text is taken to ask for.

    ``labels``: what is asked for, each with its confidence in ``guesses``; ``unsure``: what may be
    meant, but is not taken. ``excluded``: labels named as what is not meant, or to be kept where
    others are to be removed. ``others``: things named that are no label. ``unknown``: words that
    say nothing here. ``judged``: the labels were not found by their words, but are a sentence
    encoder's guess. ``abstained`` says why there are no labels, ``detail`` in a sentence;
    ``known`` has every label there is.
    """

    labels: list[str]
    guesses: list[GuessOut]
    unsure: list[GuessOut]
    excluded: list[str]
    others: list[str]
    unknown: list[str]
    intent: Intent | None
    judged: bool
    abstained: Abstained | None
    detail: str | None
    known: list[str]


def explain(wording: Wording, text: str) -> TextOut:
    """Return how a text is understood. Raises Problem when it is empty."""
    meant = understood(wording, text)
    return TextOut(
        labels=list(meant.labels),
        guesses=guesses_out(meant.guesses),
        unsure=guesses_out(meant.unsure),
        excluded=list(meant.excluded),
        others=list(meant.others),
        unknown=list(meant.unknown),
        intent=meant.intent,
        judged=meant.judged,
        abstained=meant.abstained,
        detail=None if meant.abstained is None else WHY[meant.abstained],
        known=list(wording.labels),
    )


def asked_for(wording: Wording, text: str) -> Understood:
    """Return what a text asks for: one label or more.

    Raises:
        Problem: the text is empty, or names nothing that is known.
    """
    meant = understood(wording, text)
    if meant.abstained is not None:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "text_not_understood",
            WHY[meant.abstained],
            reason=meant.abstained,
            unsure=[guess.label for guess in meant.unsure],
            known=list(wording.labels),
        )
    return meant


def understood(wording: Wording, text: str) -> Understood:
    """Return what a text asks for, if anything. Raises Problem when it is empty."""
    meant = wording.understand(text)
    if meant.abstained is Abstained.EMPTY:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "text_empty",
            WHY[Abstained.EMPTY],
            known=list(wording.labels),
        )
    return meant


def guesses_out(guesses: tuple[Guess, ...]) -> list[GuessOut]:
    """Return guesses as they are sent."""
    return [GuessOut(label=guess.label, confidence=guess.confidence) for guess in guesses]
