"""From words to labels: "dogs barking" means ``dog``.

A small list of words and phrases per label, compared by their stems. English only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from common.labels import LABELS

ALIASES: dict[str, tuple[str, ...]] = {
    "air_conditioner": ("ac unit", "air conditioning", "aircon", "ventilation", "fan"),
    "car_horn": ("horn", "honk", "hoot", "beeping car", "klaxon"),
    "chainsaw": ("chain saw", "power saw"),
    "children_playing": ("children", "child", "kids", "kid", "playground", "schoolyard"),
    "clock_tick": ("clock", "ticking", "watch ticking"),
    "crackling_fire": ("fire", "campfire", "bonfire", "fireplace", "crackling"),
    "crying_baby": ("baby", "infant", "crying", "baby cry"),
    "dog": ("bark", "woof", "puppy", "hound", "howling"),
    "drilling": ("drill", "power drill"),
    "engine_idling": ("engine", "idling", "motor", "idling car"),
    "gun_shot": ("gun", "gunshot", "gunfire", "shot", "shooting", "rifle", "pistol"),
    "helicopter": ("chopper", "rotor"),
    "jackhammer": ("jack hammer", "pneumatic hammer", "breaker"),
    "rain": ("rainfall", "raining", "drizzle", "downpour"),
    "rooster": ("cock", "cockerel", "crowing", "cock a doodle doo"),
    "sea_waves": ("sea", "ocean", "waves", "surf"),
    "siren": ("ambulance", "police car", "fire engine", "fire truck", "emergency vehicle"),
    "sneezing": ("sneeze", "achoo"),
    "speech": ("voice", "talking", "speaking", "people talking", "conversation", "spoken word"),
    "street_music": ("music", "busker", "band", "song"),
}
# fmt: off
FILLERS = frozenset({
    "a", "all", "an", "and", "any", "are", "audio", "clip", "contain", "find", "for", "from",
    "hear", "heard", "i", "in", "is", "me", "my", "of", "on", "or", "please", "recording", "show",
    "some", "sound", "that", "the", "there", "to", "want", "where", "which", "with",
})
# fmt: on
MIN_STEM_LENGTH = 3
ENDINGS = ("ing", "ies", "es", "s", "y", "e")

Stems = tuple[str, ...]


@dataclass(frozen=True)
class Understood:
    """What a text asks for: labels in the order of ``LABELS``, and the words that say nothing."""

    labels: tuple[str, ...]
    unknown: tuple[str, ...]


def understand(text: str) -> Understood:
    """Return the labels that a text names. Where phrases overlap, the longest counts."""
    words = re.findall(r"[^\W_]+", text.casefold())
    stems = [_stem(word) for word in words]
    labels: set[str] = set()
    unknown = []
    n = 0
    while n < len(words):
        length, label = _longest(stems[n:])
        if label is not None:
            labels.add(label)
        elif words[n] not in FILLERS and stems[n] not in FILLERS:
            unknown.append(words[n])
        n += length
    return Understood(
        labels=tuple(label for label in LABELS if label in labels), unknown=tuple(unknown)
    )


def _longest(stems: list[str]) -> tuple[int, str | None]:
    """Return how many words the longest phrase at the beginning has, and its label."""
    for length in range(min(len(stems), LONGEST), 0, -1):
        label = PHRASES.get(tuple(stems[:length]))
        if label is not None:
            return length, label
    return 1, None


def _stem(word: str) -> str:
    """Return a word without its ending, and without the second of two letters left at the end."""
    for ending in ENDINGS:
        stem = word.removesuffix(ending)
        if stem != word and len(stem) >= MIN_STEM_LENGTH:
            return stem[:-1] if len(stem) > MIN_STEM_LENGTH and stem[-1] == stem[-2] else stem
    return word


def _phrases() -> Iterator[tuple[Stems, str]]:
    for label in LABELS:
        for phrase in (label.replace("_", " "), *ALIASES[label]):
            yield tuple(map(_stem, phrase.split())), label


PHRASES = dict(_phrases())
LONGEST = max(map(len, PHRASES))
