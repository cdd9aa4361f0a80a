"""What a misspelt word was meant to be: the nearest known word.

Candidates are the known words most alike by the cosine of TF-IDF vectors over n-grams of 2 to 4
characters, borders included (G. Salton and C. Buckley, "Term-weighting approaches in automatic text
retrieval", 1988, for the weights). N-grams alone take "rowing" for "crowing" before they take
"engien" for "engine", so a candidate counts only if it begins alike and few keys were hit wrongly
(F. J. Damerau, "A technique for computer detection and correction of spelling errors", 1964), or if
it is so much alike that it is another form of the word. Every known word competes, also one that
is no label's: "season" is itself, not "sea".
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from heapq import nlargest

from common.text.words import stem

SIZES = (2, 3, 4)
MIN_LENGTH = 4  # of shorter words, too many are one letter apart
MAX_LENGTH = 30
CANDIDATES = 8
ONE_EDIT_FROM = 6  # characters; shorter words may have two letters swapped or one doubled
TWO_EDITS_FROM = 10
OTHER_FORM = 0.75  # similarity


@dataclass(frozen=True)
class Nearest:
    """A known word and how surely it was meant, in [0, 1]."""

    word: str
    confidence: float


class NgramIndex:
    """Known words by their n-grams."""

    def __init__(self, words: Collection[str]) -> None:
        self._words = sorted(words)
        grams = [Counter(_ngrams(word)) for word in self._words]
        holding = Counter(gram for found in grams for gram in found)
        self._idf = {gram: math.log(len(grams) / n) + 1.0 for gram, n in holding.items()}
        self._unseen = math.log(len(grams)) + 1.0
        self._postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, found in enumerate(grams):
            for gram, weight in self._unit(found).items():
                self._postings[gram].append((number, weight))

    def nearest(self, word: str) -> Nearest | None:
        """Return the word that was probably meant, None where no known word is near.

        Words shorter than MIN_LENGTH or longer than MAX_LENGTH are near none.
        """
        if not MIN_LENGTH <= len(word) <= MAX_LENGTH:
            return None
        found = (
            Nearest(known, confidence)
            for known, similarity in self._alike(word)
            if (confidence := _confidence(word, known, similarity)) > 0.0
        )
        return max(found, key=lambda nearest: nearest.confidence, default=None)

    def _alike(self, word: str) -> list[tuple[str, float]]:
        """Return the words most alike with their similarity, the best first."""
        scores: dict[int, float] = defaultdict(float)
        for gram, weight in self._unit(Counter(_ngrams(word))).items():
            for number, other in self._postings.get(gram, ()):
                scores[number] += weight * other
        best = nlargest(CANDIDATES, scores, key=lambda number: (scores[number], -number))
        return [(self._words[number], min(1.0, scores[number])) for number in best]

    def _unit(self, grams: Mapping[str, int]) -> dict[str, float]:
        """Return the TF-IDF vector of a word, of length 1."""
        weights = {gram: n * self._idf.get(gram, self._unseen) for gram, n in grams.items()}
        length = math.sqrt(sum(weight * weight for weight in weights.values()))
        return {gram: weight / length for gram, weight in weights.items()}


def distance(one: str, other: str) -> int:
    """Return how many letters were left out, put in, replaced, or swapped with their neighbour."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, wanted in enumerate(other, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, last = last, row
    return last[-1]


def _confidence(word: str, known: str, similarity: float) -> float:
    """Return how surely ``word`` was meant to be ``known``; 0 where it was hardly."""
    if word[0] != known[0]:
        return 0.0
    confidence = similarity if similarity >= OTHER_FORM else 0.0
    for one, other in {(word, known), (stem(word), stem(known))}:
        edits = distance(one, other)
        length = min(len(one), len(other))
        slip = edits == 1 and (sorted(one) == sorted(other) or _single(one) == _single(other))
        allowed = 2 if length >= TWO_EDITS_FROM else 1 if length >= ONE_EDIT_FROM else 0
        if slip or edits <= allowed:
            confidence = max(confidence, 1.0 - edits / max(len(one), len(other)))
    return confidence


def _single(word: str) -> str:
    """Return a word with one letter of each run of the same."""
    return "".join(letter for n, letter in enumerate(word) if n == 0 or word[n - 1] != letter)


def _ngrams(word: str) -> Iterator[str]:
    framed = f" {word} "
    for size in SIZES:
        for start in range(len(framed) - size + 1):
            yield framed[start : start + size]
