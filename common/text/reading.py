"""A text as a row of items: phrases that name a label or something else, and words around them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from common.labels import LABELS
from common.text.aliases import ALIASES
from common.text.others import (
    FUNCTION_WORDS,
    OTHER_MEANINGS,
    OTHER_SOUNDS,
    QUALIFIERS,
    REQUEST_WORDS,
    split_phrases,
)
from common.text.spelling import NgramIndex
from common.text.words import is_word, plain, stem

ADVERB_ENDING = "ly"
EXACT, STEMMED = 1.0, 0.95
BORDERS = frozenset((*FUNCTION_WORDS.split(), *REQUEST_WORDS.split()))
Phrase = tuple[str, ...]


class Kind(StrEnum):
    """What an item is to the reader."""

    LABEL = "label"  # a phrase that names a label
    OTHER = "other"  # a phrase that names something else
    BORDER = "border"  # a function word, a word of requests, or a mark: parts noun phrases
    QUALIFIER = "qualifier"  # says where, when or how, and changes no meaning
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Item:
    """A phrase or word. ``confidence`` in [0, 1]: how surely it is what it was taken for."""

    kind: Kind
    text: str
    label: str = ""
    confidence: float = 1.0


@dataclass(frozen=True)
class Sense:
    """What a phrase stands for: a label, or "" for something else."""

    label: str
    text: str


@dataclass(frozen=True)
class Lexicon:
    """Everything known, made once per process and set of labels."""

    exact: dict[Phrase, Sense]
    stemmed: dict[Phrase, Sense]
    longest: int
    borders: frozenset[str]
    qualifiers: frozenset[str]
    known: frozenset[str]
    index: NgramIndex


@cache
def lexicon(labels: tuple[str, ...] = LABELS) -> Lexicon:
    """Return the lexicon of some labels.

    Aliases come before other meanings where both write the same, and the names of labels that are
    not shipped before both: with a label "bark", "barking" is no dog.
    """
    phrases = [(tuple(phrase.split()), label) for phrase, label in known_phrases(labels)]
    own = {_stems(words) for words, label in phrases if label and label not in ALIASES}
    exact: dict[Phrase, Sense] = {}
    stemmed: dict[Phrase, Sense] = {}
    for words, label in phrases:
        if label in ALIASES and _stems(words) in own:
            continue
        sense = Sense(label, " ".join(words))
        exact.setdefault(words, sense)
        stemmed.setdefault(_stems(words), sense)
    qualifiers = frozenset(QUALIFIERS.split())
    known = frozenset({*BORDERS, *qualifiers, *(word for phrase in exact for word in phrase)})
    return Lexicon(
        exact, stemmed, max(map(len, exact)), BORDERS, qualifiers, known, NgramIndex(known)
    )


def known_phrases(labels: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield phrases with the label that each names, then those that name no label, with "".

    Labels that are not shipped come first. A name of nothing but words of requests ("stop", "no")
    is no phrase: it would take them away from every text.
    """
    for label in labels:
        if label not in ALIASES and not BORDERS.issuperset(name := _words_of(label)):
            yield " ".join(name), label
    for label in labels:
        for phrase in (label.replace("_", " "), *ALIASES[label]) if label in ALIASES else ():
            yield phrase, label
    for phrase in (*split_phrases(OTHER_SOUNDS), *split_phrases(OTHER_MEANINGS)):
        yield phrase, ""


def _words_of(label: str) -> Phrase:
    """Return the words of a label's name: ("great", "tit") of Great_Tit."""
    return tuple(filter(is_word, plain(label.replace("_", " ")).tokens))


def read(tokens: Iterable[str], labels: tuple[str, ...] = LABELS) -> list[Item]:
    """Return the items of a text. Where phrases overlap, the longest counts."""
    book = lexicon(labels)
    words = [_spelt(token, book) for token in tokens]
    items = []
    start = 0
    while start < len(words):
        item, length = _longest(words, start, book)
        items.append(item)
        start += length
    return items


@dataclass(frozen=True)
class _Word:
    """A word as it was written and as it was probably meant, with its stem."""

    written: str
    meant: str
    stem: str
    confidence: float


def _stems(words: Phrase) -> Phrase:
    return tuple(map(stem, words))


def _spelt(token: str, book: Lexicon) -> _Word:
    if not is_word(token) or token in book.known or (stem(token),) in book.stemmed:
        return _Word(token, token, stem(token), 1.0)
    nearest = book.index.nearest(token)
    if nearest is None:
        return _Word(token, token, stem(token), 1.0)
    return _Word(token, nearest.word, stem(nearest.word), nearest.confidence)


def _longest(words: list[_Word], start: int, book: Lexicon) -> tuple[Item, int]:
    """Return the item that begins at ``start`` and of how many words it is."""
    for length in range(min(len(words) - start, book.longest), 0, -1):
        part = words[start : start + length]
        sense = book.exact.get(tuple(word.meant for word in part))
        sure = EXACT
        if sense is None and length == 1 and part[0].meant in book.borders | book.qualifiers:
            break
        if sense is None:
            sense = book.stemmed.get(tuple(word.stem for word in part))
            sure = STEMMED
        if sense is not None:
            sure *= min(word.confidence for word in part)
            text = " ".join(word.written for word in part)
            kind = Kind.LABEL if sense.label else Kind.OTHER
            return Item(kind, text, sense.label, sure), length
    word = words[start]
    if not is_word(word.written) or word.meant in book.borders:
        kind = Kind.BORDER
    elif word.meant in book.qualifiers or word.meant.endswith(ADVERB_ENDING):
        kind = Kind.QUALIFIER
    else:
        kind = Kind.UNKNOWN
    return Item(kind, word.written if kind is Kind.UNKNOWN else word.meant), 1
