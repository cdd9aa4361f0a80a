"""A text as words and marks: Unicode made plain, in time linear in the length of the text."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

SPACES = frozenset({"Zs", "Zl", "Zp", "Cc"})
UNSEEN = frozenset({"Mn", "Me", "Cf"})
FOREIGN = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "So", "Sk", "Cs", "Co", "Cn"})
TOKEN = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|[.,;:!?/&+()|]")
CONDITIONER = re.compile(r"\ba/c\b")
POSSESSIVE = re.compile(r"['’]s?$")
APOSTROPHES = re.compile(r"['’]")
PLURALS = ("es", "s")
ENDINGS = ("ing", "ed", "y", "e")
MIN_STEM_LENGTH = 3


@dataclass(frozen=True)
class Plain:
    """A text in small Latin letters: its tokens are words, or one mark of punctuation each.

    ``foreign``: it holds letters of another script, pictures, or what is no character at all.
    """

    tokens: tuple[str, ...]
    foreign: bool
    empty: bool


def plain(text: str) -> Plain:
    """Return the words of a text. Accents are taken off, unseen characters out.

    A word that holds a letter of another script is no word, also where it looks like one.
    """
    letters = []
    foreign = False
    for char in unicodedata.normalize("NFKD", text).casefold():
        if char.isascii():
            letters.append(char if char.isprintable() else " ")
            continue
        category = unicodedata.category(char)
        if category in SPACES:
            letters.append(" ")
        elif category not in UNSEEN:
            foreign = foreign or (category in FOREIGN and not _is_latin(char))
            letters.append(char)
    seen = CONDITIONER.sub("ac", "".join(letters))
    tokens = [_word(token) for token in TOKEN.findall(seen)]
    return Plain(tuple(token for token in tokens if token), foreign, not seen.strip())


def stem(word: str) -> str:
    """Return a word without its endings, and without the second of two letters left at the end."""
    if word.endswith("ies") and len(word) > MIN_STEM_LENGTH + 1:
        word = word[:-3] + "y"
    else:
        word = _without(word, PLURALS)
    word = _without(word, ENDINGS)
    return word[:-1] if len(word) > MIN_STEM_LENGTH and word[-1] == word[-2] else word


def _without(word: str, endings: tuple[str, ...]) -> str:
    for ending in endings:
        left = word.removesuffix(ending)
        if left != word and len(left) >= MIN_STEM_LENGTH:
            return left
    return word


def is_word(token: str) -> bool:
    """Return whether a token is a word, not a mark of punctuation."""
    return token[0].isalnum()


def _is_latin(char: str) -> bool:
    return unicodedata.name(char, "").startswith("LATIN ")


def _word(token: str) -> str:
    """Return a token without a possessive; "don't" is written "dont"."""
    return APOSTROPHES.sub("", POSSESSIVE.sub("", token)) if is_word(token) else token
