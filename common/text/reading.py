"""A text as a row of items: phrases that name a label or something else, and words around them."""

from __future__ import annotations

from collections.abc import Iterable
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
from common.text.words import is_word, stem

ADVERB_ENDING = "ly"
EXACT, STEMMED = 1.0, 0.95
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
    """Everything known, made once per process."""

    exact: dict[Phrase, Sense]
    stemmed: dict[Phrase, Sense]
    longest: int
    borders: frozenset[str]
    qualifiers: frozenset[str]
    known: frozenset[str]
    index: NgramIndex


@cache
def lexicon() -> Lexicon:
    """Return the lexicon. Aliases come before other meanings where both write the same."""
    aliases = [
        (phrase, Sense(label, phrase))
        for label in LABELS
        for phrase in (label.replace("_", " "), *ALIASES[label])
    ]
    others = [
        (phrase, Sense("", phrase))
        for phrase in (*split_phrases(OTHER_SOUNDS), *split_phrases(OTHER_MEANINGS))
    ]
    exact: dict[Phrase, Sense] = {}
    stemmed: dict[Phrase, Sense] = {}
    for phrase, sense in (*aliases, *others):
        words = tuple(phrase.split())
        exact.setdefault(words, sense)
        stemmed.setdefault(tuple(map(stem, words)), sense)
    borders = frozenset((*FUNCTION_WORDS.split(), *REQUEST_WORDS.split()))
    qualifiers = frozenset(QUALIFIERS.split())
    known = frozenset({*borders, *qualifiers, *(word for phrase in exact for word in phrase)})
    return Lexicon(
        exact, stemmed, max(map(len, exact)), borders, qualifiers, known, NgramIndex(known)
    )


def read(tokens: Iterable[str]) -> list[Item]:
    """Return the items of a text. Where phrases overlap, the longest counts."""
    words = [_spelt(token) for token in tokens]
    items = []
    start = 0
    while start < len(words):
        item, length = _longest(words, start)
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


def _spelt(token: str) -> _Word:
    book = lexicon()
    if not is_word(token) or token in book.known or (stem(token),) in book.stemmed:
        return _Word(token, token, stem(token), 1.0)
    nearest = book.index.nearest(token)
    if nearest is None:
        return _Word(token, token, stem(token), 1.0)
    return _Word(token, nearest.word, stem(nearest.word), nearest.confidence)


def _longest(words: list[_Word], start: int) -> tuple[Item, int]:
    """Return the item that begins at ``start`` and of how many words it is."""
    book = lexicon()
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
