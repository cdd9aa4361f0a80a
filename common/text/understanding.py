"""What a request in words asks for: labels with a confidence, or why nothing was understood.

A label's confidence is that of the words it was found by, lowered by what stands around them in
the same noun phrase: a word after it that is not known probably is what is meant ("dog food"), one
before it probably only describes it ("yappy dog"). "Everything but the dog" is every other label,
"not speech" takes speech out, and what is to be kept is not to be removed. English only.

A judge, such as a sentence encoder, may be asked about a text of which no word is known: never
about one that negates, removes or keeps anything, nor about what is known as something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

from common.labels import LABELS
from common.text.reading import Item, Kind, read
from common.text.words import is_word, plain

MAX_LENGTH = 2_000
"""Characters; what is longer is no request."""

THRESHOLD = 0.65
"""The least confidence of a label, chosen on ``tests/text/development.jsonl``."""

AFTER = 0.5  # an unknown word after a label
AFTER_VERB = 0.85  # the same, if it looks like what the thing does
BEFORE = 0.85  # an unknown word before it
OTHER_BESIDE = 0.5  # another thing beside it
NEAR = 8  # items on either side that are looked at

ALL = frozenset({"all", "any", "anything", "each", "every", "everything", "whole"})
EXCEPT = frozenset({"aside", "apart", "besides", "beside", "except", "excluding", "other"})
NOT = frozenset(
    {"no", "not", "without", "never", "nor", "neither", "dont", "doesnt", "isnt", "arent", "none"}
)
NOT_PAIRS = frozenset({("rather", "than"), ("instead", "of")})
# fmt: off
REMOVE = frozenset({
    "clean", "cut", "cutting", "delete", "discard", "drop", "eliminate", "erase", "filter", "kill",
    "mute", "remove", "removed", "removes", "removing", "rid", "scrub", "silence", "stop", "strip",
    "suppress", "take",
})
KEEP = frozenset({
    "keep", "keeping", "keeps", "leave", "leaves", "leaving", "preserve", "retain", "save", "spare",
})
FIND = frozenset({
    "detect", "find", "finds", "hear", "identify", "list", "locate", "look", "search", "show",
    "spot", "when", "where",
})
DELICATE = NOT | EXCEPT | REMOVE | KEEP | {
    "avoid", "but", "cannot", "cant", "couldnt", "didnt", "excepting", "exclude", "excluded",
    "hadnt", "hasnt", "havent", "hide", "ignore", "ignoring", "kept", "lacking", "minus", "nobody",
    "nothing", "off", "omit", "outside", "removal", "shouldnt", "skip", "wasnt", "wont", "wouldnt",
}
# fmt: on
JOINS = frozenset({"of", "for", "from"})
SKIPPED = frozenset({"a", "an", "the", "my", "your", "our", "his", "her", "their"})
PARTED_BY = frozenset({"and", "or", "also", "plus"})  # and by marks, in what a judge is asked
VERB_ENDINGS = ("ing", "ed")
SENTENCE_ENDS = frozenset(".;!?")


class Intent(StrEnum):
    """What is to be done with what is named, where the text says so."""

    FIND = "find"
    REMOVE = "remove"
    KEEP = "keep"


class Abstained(StrEnum):
    """Why no label was taken."""

    EMPTY = "empty"
    TOO_LONG = "too_long"
    SCRIPT = "script"  # in letters that are not Latin, or in pictures
    NEGATED = "negated"  # names only what is not meant
    UNSURE = "unsure"  # a label may be meant, but hardly
    UNKNOWN = "unknown"


WHY: dict[Abstained, str] = {
    Abstained.EMPTY: "The text is empty.",
    Abstained.TOO_LONG: f"The text is longer than {MAX_LENGTH} characters.",
    Abstained.SCRIPT: "Only English in Latin letters is understood.",
    Abstained.NEGATED: "The text only names sounds that are not meant.",
    Abstained.UNSURE: "It is not sure enough that the text names a sound that is known here.",
    Abstained.UNKNOWN: "The text names no sound that is known here; only English is understood.",
}


@dataclass(frozen=True)
class Guess:
    """A label and how sure it is, in [0, 1]."""

    label: str
    confidence: float


@dataclass(frozen=True)
class Understood:
    """What a text asks for. Every tuple of labels is in the order of all labels.

    ``guesses`` reach ``THRESHOLD``; ``unsure`` do not. ``excluded``: named as what is not meant.
    ``others``: things named that are no label. ``unknown``: words that say nothing here.
    ``judged``: the guesses are those of a judge. ``abstained`` is None where there are guesses.
    """

    guesses: tuple[Guess, ...] = ()
    unsure: tuple[Guess, ...] = ()
    excluded: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    intent: Intent | None = None
    abstained: Abstained | None = None
    judged: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that are asked for."""
        return tuple(guess.label for guess in self.guesses)


Judge = Callable[[str], Guess | None]
"""Tells which label some words mean that are not known, if any."""


def understand(
    text: str,
    threshold: float = THRESHOLD,
    labels: tuple[str, ...] = LABELS,
    judge: Judge | None = None,
) -> Understood:
    """Return what a text asks for. Any text has an answer, in time linear in its length.

    Args:
        threshold: The least confidence of a label that was found by its words.
        labels: What may be named; the name of one, exactly as it is, is always that label.
        judge: Is asked about the parts of a text that is ``UNKNOWN``.
    """
    if len(text) > MAX_LENGTH:
        return Understood(abstained=Abstained.TOO_LONG)
    if text in labels:
        return Understood((Guess(text, 1.0),))
    words = plain(text)
    if words.empty:
        return Understood(abstained=Abstained.EMPTY)
    items = read(words.tokens, labels)
    said = _Said()
    for position, item in enumerate(items):
        if item.kind is Kind.BORDER:
            said.border(items, position)
        elif item.kind is Kind.LABEL:
            said.label(item.label, item.confidence * _support(items, position))
    meant = _understood(said, items, words.foreign, threshold, labels)
    if judge is None or meant.abstained is not Abstained.UNKNOWN or _is_delicate(items):
        return meant
    return _judged(meant, items, judge, labels)


def _understood(
    said: _Said, items: list[Item], foreign: bool, threshold: float, labels: tuple[str, ...]
) -> Understood:
    wanted = dict(said.wanted)
    excluded = set(said.excluded)
    intent = said.intents[0] if said.intents else None
    if Intent.REMOVE in said.intents:
        intent = Intent.REMOVE
        excluded |= {label for label in said.kept if label not in said.wanted}
    else:
        wanted |= said.kept
    if said.all_but:
        sure = min(said.all_but.values())
        wanted |= {label: sure for label in labels if label not in said.all_but}
        excluded |= set(said.all_but)
    wanted = {label: sure for label, sure in wanted.items() if label not in excluded}
    guesses = [Guess(label, round(wanted[label], 4)) for label in labels if label in wanted]
    taken = tuple(guess for guess in guesses if guess.confidence >= threshold)
    unsure = tuple(guess for guess in guesses if guess.confidence < threshold)
    abstained = None
    if not taken:
        if unsure:
            abstained = Abstained.UNSURE
        elif excluded:
            abstained = Abstained.NEGATED
        else:
            abstained = Abstained.SCRIPT if foreign else Abstained.UNKNOWN
    return Understood(
        guesses=taken,
        unsure=unsure,
        excluded=tuple(label for label in labels if label in excluded),
        others=tuple(item.text for item in items if item.kind is Kind.OTHER),
        unknown=tuple(item.text for item in items if item.kind is Kind.UNKNOWN),
        intent=intent,
        abstained=abstained,
    )


def _is_delicate(items: list[Item]) -> bool:
    """Return whether a text negates, removes or keeps something: then nothing may be guessed."""
    texts = [item.text for item in items]
    return bool(DELICATE.intersection(texts) or NOT_PAIRS.intersection(pairwise(texts)))


def _judged(
    meant: Understood, items: list[Item], judge: Judge, labels: tuple[str, ...]
) -> Understood:
    """Return what a judge makes of a text: each part means one label, or none."""
    sure: dict[str, float] = {}
    unknown: list[str] = []
    for part in _parts(items):
        strange = [item.text for item in part if item.kind is Kind.UNKNOWN]
        known_otherwise = any(item.kind is Kind.OTHER for item in part)
        guess = None
        if strange and not known_otherwise:
            guess = judge(" ".join(item.text for item in part if item.kind is not Kind.BORDER))
        if guess is None:
            unknown += strange
        else:
            sure[guess.label] = max(guess.confidence, sure.get(guess.label, 0.0))
    if not sure:
        return meant
    guesses = tuple(Guess(label, round(sure[label], 4)) for label in labels if label in sure)
    return replace(meant, guesses=guesses, unknown=tuple(unknown), abstained=None, judged=True)


def _parts(items: list[Item]) -> list[list[Item]]:
    """Return what stands between marks and words such as "and"."""
    parts: list[list[Item]] = [[]]
    for item in items:
        if item.kind is Kind.BORDER and (item.text in PARTED_BY or not is_word(item.text)):
            parts.append([])
        else:
            parts[-1].append(item)
    return parts


class _Said:
    """What has been said so far, from the first word on."""

    def __init__(self) -> None:
        self.wanted: dict[str, float] = {}
        self.kept: dict[str, float] = {}
        self.all_but: dict[str, float] = {}
        self.excluded: set[str] = set()
        self.intents: list[Intent] = []
        self._all = False  # "everything", and no label since
        self._except = False  # ... "but"
        self._not = False
        self._not_used = False  # a label has been named since "not"

    def label(self, label: str, confidence: float) -> None:
        """Take note of a label, wherever what was said before puts it."""
        self._all = False
        if self._except:
            self.all_but[label] = max(confidence, self.all_but.get(label, 0.0))
        elif self._not:
            self._not_used = True
            self.excluded.add(label)
        else:
            into = self.kept if self._intent is Intent.KEEP else self.wanted
            into[label] = max(confidence, into.get(label, 0.0))

    @property
    def _intent(self) -> Intent | None:
        return self.intents[-1] if self.intents else None

    def border(self, items: list[Item], position: int) -> None:
        """Take note of a word between phrases."""
        word = items[position].text
        following = items[position + 1].text if position + 1 < len(items) else ""
        if word in SENTENCE_ENDS:
            self._end()
        elif word in ALL:
            self._all = True
        elif self._all and (word in EXCEPT or word in NOT or word == "but"):
            self._except, self._all = True, False
        elif word == "not" and following == "only":
            pass
        elif word in NOT or word in EXCEPT or (word, following) in NOT_PAIRS:
            self._not, self._not_used = True, False
        elif word == "but":
            self._end()
        elif word == "stop" and following in REMOVE:
            self._not, self._not_used = True, False
        else:
            self._verb(word, following)

    def _verb(self, word: str, following: str) -> None:
        if word in REMOVE or (word in KEEP and following == "out"):
            intent = Intent.REMOVE
        elif word in KEEP:
            intent = Intent.KEEP
        elif word in FIND:
            intent = Intent.FIND
        else:
            return
        self.intents.append(intent)
        if self._not_used:
            self._end()

    def _end(self) -> None:
        """What was said to be left out ends here."""
        self._all = self._except = self._not = self._not_used = False


def _support(items: list[Item], position: int) -> float:
    """Return how much the words around a label leave of it, in (0, 1]."""
    return _support_after(items, position) * _support_before(items, position)


def _support_after(items: list[Item], position: int) -> float:
    support = 1.0
    after = position + 1
    stop = min(len(items), after + NEAR)
    while after < stop and items[after].kind is not Kind.BORDER:
        support *= _weight_after(items[after])
        if _is_verb(items[after]):
            return support
        after += 1
    if after < stop and items[after].text in JOINS:
        after += 1
        while after < stop and items[after].text in SKIPPED:
            after += 1
        if after < stop:
            support *= _weight_after(items[after])
    return support


def _support_before(items: list[Item], position: int) -> float:
    support = 1.0
    for item in reversed(items[max(0, position - NEAR) : position]):
        if item.kind is Kind.BORDER:
            break
        if item.kind is Kind.UNKNOWN:
            support *= BEFORE
        elif item.kind is Kind.OTHER:
            support *= OTHER_BESIDE
    return support


def _weight_after(item: Item) -> float:
    if item.kind is Kind.OTHER:
        return OTHER_BESIDE
    if item.kind is Kind.UNKNOWN:
        return AFTER_VERB if _is_verb(item) else AFTER
    return 1.0


def _is_verb(item: Item) -> bool:
    """Return whether a word looks like what a thing does; what follows it is done to others."""
    return item.kind is not Kind.OTHER and item.text.endswith(VERB_ENDINGS)
