"""Makes a small soundscape archive to try Soundmill on: ``python -m client.demo FOLDER``.

Eight recordings of street, yard and room in several formats, rates and channel counts, each a
background with known sounds placed in it. Everything is synthesised (``client.demo_sounds``), so
the archive may be shared freely, and README.txt beside it tells what is where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import typer

from client import demo_sounds as sounds
from client.demo_sounds import Waveform

SEED = 20_26
AIR_DB = -40.0  # what every microphone hears out of doors
ECHO_S = 0.4

Maker = Callable[[np.random.Generator, int, float], Waveform]
MAKERS: dict[str, Maker] = {
    "siren": sounds.siren,
    "car_horn": sounds.car_horn,
    "dog": lambda rng, rate, _duration_s: sounds.bark(rng, rate),
    "clock_tick": lambda rng, rate, _duration_s: sounds.clock_tick(rng, rate),
    "jackhammer": sounds.jackhammer,
}
BACKGROUNDS: dict[str, Maker] = {
    "rain": sounds.rain,
    "wind": sounds.wind,
    "engine_idling": sounds.engine,
}


@dataclass(frozen=True)
class Placed:
    """A sound in the foreground. ``level_db`` is its peak against full scale."""

    label: str
    at_s: float
    duration_s: float
    level_db: float
    pan: float = 0.5  # 0 left, 1 right


@dataclass(frozen=True)
class Scene:
    """One recording: a background, and what was put over it."""

    file: str
    rate: int
    channels: int
    duration_s: float
    background: str
    background_db: float
    placed: tuple[Placed, ...]


SCENES = (
    Scene(
        "street-siren.wav", 44_100, 2, 12.0, "engine_idling", -26,
        (Placed("siren", 2.0, 6.0, -6, 0.3), Placed("car_horn", 9.2, 0.9, -8, 0.7)),
    ),
    Scene(
        "yard-dog.flac", 48_000, 1, 8.0, "wind", -24,
        (Placed("dog", 1.2, 0, -5), Placed("dog", 1.7, 0, -6), Placed("dog", 4.4, 0, -4)),
    ),
    Scene(
        "room-clock.wav", 22_050, 1, 10.0, "wind", -46,
        tuple(Placed("clock_tick", 0.5 + k, 0, -14) for k in range(9)),
    ),
    Scene(
        "rain-horns.ogg", 44_100, 2, 15.0, "rain", -20,
        (Placed("car_horn", 3.0, 0.7, -7, 0.2), Placed("car_horn", 10.5, 1.2, -5, 0.8)),
    ),
    Scene(
        "garage-dog.mp3", 44_100, 1, 12.0, "engine_idling", -18,
        (Placed("dog", 2.5, 0, -5), Placed("dog", 6.1, 0, -4), Placed("dog", 6.6, 0, -6)),
    ),
    Scene(
        "telephone-siren.wav", 8_000, 1, 8.0, "rain", -30,
        (Placed("siren", 1.5, 5.0, -8),),
    ),
    Scene(
        "roadworks.flac", 48_000, 2, 20.0, "engine_idling", -24,
        (
            Placed("jackhammer", 2.0, 4.0, -6, 0.4),
            Placed("jackhammer", 9.0, 3.0, -6, 0.4),
            Placed("siren", 13.0, 6.0, -7, 0.8),
        ),
    ),
    Scene(
        "hall-clock.ogg", 22_050, 2, 6.0, "rain", -34,
        tuple(Placed("clock_tick", 0.4 + k, 0, -12, 0.6) for k in range(5)),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Rendered:
    """A scene as sound. ``audio`` is (samples, channels); ``ends_s`` belong to ``scene.placed``."""

    scene: Scene
    audio: Waveform
    ends_s: tuple[float, ...]


def render(scene: Scene, rng: np.random.Generator) -> Rendered:
    """Return a scene as sound, peaks below full scale."""
    n = round(scene.rate * scene.duration_s)
    audio = np.zeros((n, scene.channels))
    for channel in range(scene.channels):  # the background comes from all around
        bed = BACKGROUNDS[scene.background](rng, scene.rate, scene.duration_s)
        audio[:, channel] += bed[:n] * 10 ** (scene.background_db / 20)
        air = sounds.shaped_noise(rng, scene.rate, scene.duration_s, 40, 15_000, 1.0)
        audio[:, channel] += air[:n] * 10 ** (AIR_DB / 20)
    ends_s = []
    for placed in scene.placed:
        sound = MAKERS[placed.label](rng, scene.rate, placed.duration_s)
        start = round(placed.at_s * scene.rate)
        ends_s.append(placed.at_s + sound.size / scene.rate)
        sound = sounds.in_space(rng, scene.rate, sound, ECHO_S)
        sound = sound[: n - start] * 10 ** (placed.level_db / 20)
        left, right = np.cos(placed.pan * np.pi / 2), np.sin(placed.pan * np.pi / 2)
        gains = np.array([left, right]) if scene.channels == 2 else np.ones(1)
        audio[start : start + sound.size] += sound[:, None] * gains
    return Rendered(scene, np.clip(audio, -0.99, 0.99), tuple(ends_s))


def describe(rendered: Rendered) -> str:
    """Return what is in a recording, as lines for README.txt."""
    scene = rendered.scene
    kind = "mono" if scene.channels == 1 else "stereo"
    form = f"{scene.duration_s:g} s, {scene.rate} Hz, {kind}"
    lines = [f"{scene.file}: {form}; background {scene.background}"]
    for placed, end_s in zip(scene.placed, rendered.ends_s, strict=True):
        lines.append(f"    {placed.at_s:6.2f} to {end_s:6.2f} s  {placed.label}")
    return "\n".join(lines)


def make_archive(folder: Path) -> list[Path]:
    """Write the recordings and README.txt into ``folder``; return the recordings' paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, texts = [], []
    for number, scene in enumerate(SCENES):
        rendered = render(scene, np.random.default_rng([SEED, number]))
        path = folder / scene.file
        subtype = "PCM_16" if path.suffix in (".wav", ".flac") else None
        soundfile.write(path, rendered.audio, scene.rate, subtype=subtype)
        paths.append(path)
        texts.append(describe(rendered))
    intro = "Made by rule, not recorded: what was put where, times from the start.\n\n"
    (folder / "README.txt").write_text(intro + "\n\n".join(texts) + "\n")
    return paths


def main(folder: Path) -> None:
    """Make the demo archive in FOLDER."""
    paths = make_archive(folder)
    typer.echo(
        f"{len(paths)} recordings made in {folder}; {folder / 'README.txt'} says what is in them."
    )


if __name__ == "__main__":
    typer.run(main)
