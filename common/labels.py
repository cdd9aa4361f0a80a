"""The label set of the shipped models: ESC-10 and UrbanSound8K merged, plus speech."""

from __future__ import annotations

LABELS: tuple[str, ...] = (
    "air_conditioner",
    "car_horn",
    "chainsaw",
    "children_playing",
    "clock_tick",
    "crackling_fire",
    "crying_baby",
    "dog",
    "drilling",
    "engine_idling",
    "gun_shot",
    "helicopter",
    "jackhammer",
    "rain",
    "rooster",
    "sea_waves",
    "siren",
    "sneezing",
    "speech",
    "street_music",
)
"""Sorted, so that an index is stable: append only with new weights."""

BACKGROUND_LABELS: frozenset[str] = frozenset(
    {
        "air_conditioner",
        "crackling_fire",
        "engine_idling",
        "helicopter",
        "rain",
        "sea_waves",
        "street_music",
    }
)
"""Sounds that last and fill a scene; the others are events in the foreground."""
