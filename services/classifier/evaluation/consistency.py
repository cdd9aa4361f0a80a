"""Is a long recording heard alike wherever the borders of its windows fall?

``python -m services.classifier.evaluation.consistency --data DIR --json OUT``. Long soundscapes of
held-out clips are heard whole, as one window, and in windows as every recording is; then again with
their beginning cut off, which moves all borders. What is heard in the part that all have in common
is compared: events, and the probabilities of segments. Sound that no model has seen whole is no
measure of what is right: of a network that attends to all of its window the whole is another
hearing, not a better one. How much the hearings differ is what counts.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch
import typer

from common.datasets import ClipBank, load_layout
from common.domain import Event
from common.params import ClassifyParams
from common.soundscapes import Soundscape, soundscapes_of
from common.stage_io import AudioFacts, StageInput
from services.classifier.admission import device_named
from services.classifier.config import LOW_SHARE, OVERLAP_SEGMENTS, WINDOW_SEGMENTS
from services.classifier.evaluation.judging import held_out, known_only
from services.classifier.evaluation.reports import percent, write_json
from services.classifier.evaluation.scoring import Counts, match_events
from services.classifier.infer import events_in, load
from services.classifier.listening import SILENT_LOGIT, Heard, LoadedClassifier, listen
from services.classifier.selection import plain_errors

Array = npt.NDArray[np.float32]

SCENE_SEED = 2027
EVENTS_PER_S = 0.4
STEP_SEGMENTS = WINDOW_SEGMENTS - OVERLAP_SEGMENTS
SHIFTS_SEGMENTS = (0, 13, 26, 39)
"""How far the windows are moved: by quarters of the 51 segments after which they begin anew."""


@dataclass(frozen=True)
class Hearing:
    """What was heard in the common part: events, and probabilities (K, T) of segments.

    ``first`` is how many segments after the beginning of a window that part begins; None: there
    was one window only.
    """

    events: list[Event]
    probabilities: Array
    first: int | None


@dataclass(frozen=True)
class Likeness:
    """How alike two hearings are, over all soundscapes.

    Events: ``kept`` are those of the first that the second has too (same label, onset and offset
    within 0.2 s, one to one), ``new`` those that only the second has. Probabilities of all labels
    and segments: sizes of their differences; ``where_heard`` is the mean where either is at least
    half the threshold. ``in_overlap`` and ``between`` are means where windows of the second
    overlap, and elsewhere; None where it has one window. Lower is better but for ``share_kept``.
    """

    events: int
    kept: int
    new: int
    share_kept: float | None
    mean: float
    percentile_99: float
    largest: float
    where_heard: float | None
    in_overlap: float | None
    between: float | None


def hear_whole(loaded: LoadedClassifier, waveform: Array, start: int) -> Hearing:
    """Return what is heard from segment ``start`` on where all of (n,) is one window."""
    model = loaded.model
    with torch.inference_mode():
        logmel = model.features(torch.from_numpy(waveform)[None].to(loaded.device))
        segments = model(logmel).segments[0].clamp_min(SILENT_LOGIT).cpu().numpy()
    return _from(loaded, segments, start, len(waveform), None)


def hear_in_windows(loaded: LoadedClassifier, waveform: Array, start: int, shift: int) -> Hearing:
    """Return what is heard from segment ``start`` on, the first ``shift`` segments cut off."""
    config = loaded.config
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.wav"
        cut = waveform[shift * config.segment_samples :]
        soundfile.write(path, cut, config.sample_rate, subtype="FLOAT")
        item = StageInput("scene", path, ClassifyParams(), {}, Path(folder))
        segments = listen(loaded, item, None).segments
    return _from(loaded, segments, start - shift, len(cut), (start - shift) % STEP_SEGMENTS)


def alike(loaded: LoadedClassifier, pairs: Iterable[tuple[Hearing, Hearing]]) -> Likeness:
    """Return how alike the hearings of each pair are, over all pairs."""
    pairs = list(pairs)
    counts = Counts()
    for one, other in pairs:
        counts += match_events(other.events, one.events, offset_share=0.0)
    events = counts.hits + counts.misses
    low = LOW_SHARE * loaded.config.event_threshold
    differences, heard, overlapping = [], [], []
    for one, other in pairs:
        differences.append(np.abs(one.probabilities - other.probabilities))
        heard.append(np.maximum(one.probabilities, other.probabilities) >= low)
        if other.first is not None:
            place = (other.first + np.arange(other.probabilities.shape[1])) % STEP_SEGMENTS
            overlapping.append(np.broadcast_to(place < OVERLAP_SEGMENTS, differences[-1].shape))
    difference = np.concatenate(differences, axis=1)
    overlap = np.concatenate(overlapping, axis=1) if overlapping else None
    return Likeness(
        events=events,
        kept=counts.hits,
        new=counts.false_alarms,
        share_kept=counts.hits / events if events else None,
        mean=float(difference.mean()),
        percentile_99=float(np.quantile(difference, 0.99)),
        largest=float(difference.max()),
        where_heard=_mean(difference[np.concatenate(heard, axis=1)]),
        in_overlap=None if overlap is None else _mean(difference[overlap]),
        between=None if overlap is None else _mean(difference[~overlap]),
    )


def consistency(
    loaded: LoadedClassifier,
    waveforms: Iterable[Array],
    shifts: Sequence[int] = SHIFTS_SEGMENTS,
) -> dict[str, Likeness]:
    """Return how alike recordings are heard, by what was compared.

    Each is compared from where all are in their second window: at the beginning of a recording
    nothing is known of what came before, wherever windows begin.

    Args:
        loaded: the classifier.
        waveforms: (n,) each, at its rate, longer than two windows and the largest shift.
        shifts: in segments, the first 0.
    """
    start = max(shifts) + STEP_SEGMENTS
    against_whole: list[tuple[Hearing, Hearing]] = []
    against_moved: list[tuple[Hearing, Hearing]] = []
    for waveform in waveforms:
        whole = hear_whole(loaded, waveform, start)
        first, *moved = (hear_in_windows(loaded, waveform, start, shift) for shift in shifts)
        against_whole += [(whole, hearing) for hearing in (first, *moved)]
        against_moved += [(first, hearing) for hearing in moved]
    return {
        "whole, in windows": alike(loaded, against_whole),
        "in windows, in windows that begin elsewhere": alike(loaded, against_moved),
    }


def main(
    data: Annotated[Path, typer.Option(help="folder of the data set, or of all")],
    json_path: Annotated[Path | None, typer.Option("--json", help="where the report goes")] = None,
    weights: Annotated[Path | None, typer.Option(help="by default those that are shipped")] = None,
    layout: Annotated[
        str,
        typer.Option(
            help="esc50, esc10, us8k, fsd50k, folders, csv or digits; else the held-out split of "
            "ESC-10, UrbanSound8K and digits in DATA"
        ),
    ] = "",
    scenes: Annotated[int, typer.Option(min=1, help="soundscapes")] = 10,
    seconds: Annotated[float, typer.Option(min=20.0, help="length of each")] = 45.0,
    cache: Annotated[Path, typer.Option(help="decoded clips")] = Path("runs/cache"),
    device: Annotated[str, typer.Option(help="cpu, cuda or auto")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 1,
) -> None:
    """Measure how much of what is heard depends on where windows begin; print JSON."""
    torch.set_num_threads(threads)
    with plain_errors():
        loaded = load(device_named(device), weights)
        data_set = load_layout(data, layout) if layout else held_out(data)
        clips = known_only(data_set, loaded.config.labels, skip=True).clips
        bank = ClipBank.open(clips, cache, loaded.config.sample_rate)
        made = soundscapes_of(
            bank, clips, scenes, SCENE_SEED, seconds, max_events=round(EVENTS_PER_S * seconds)
        )
        found = consistency(loaded, (_mixture(scene) for scene in made))
        report: dict[str, Any] = {
            "weights": loaded.digest,
            "threshold": loaded.config.event_threshold,
            "scenes": scenes,
            "seconds": seconds,
            "shifts_s": [round(shift * loaded.config.segment_s, 3) for shift in SHIFTS_SEGMENTS],
            "compared": {name: asdict(likeness) for name, likeness in found.items()},
        }
        typer.echo(json.dumps(report, indent=1))
        for name, likeness in found.items():
            typer.echo(f"{name}: {percent(likeness.share_kept)} % of events kept", err=True)
        if json_path is not None:
            write_json(json_path, report)


def _from(
    loaded: LoadedClassifier,
    segments: npt.NDArray[np.floating[Any]],
    start: int,
    n_samples: int,
    first: int | None,
) -> Hearing:
    """Return what the segments (K, T) from ``start`` on tell, as if nothing had come before."""
    config = loaded.config
    part = segments[:, start:].astype(np.float16)
    duration_s = (n_samples - start * config.segment_samples) / config.sample_rate
    nothing = np.zeros(len(part), np.float32)
    facts = AudioFacts(duration_s, config.sample_rate, 1)
    heard = Heard(part, nothing, nothing[None].astype(np.float16), facts, 1)
    logits = torch.from_numpy(part.astype(np.float32))
    probabilities = loaded.model.segment_probabilities(logits[None])[0].numpy()
    return Hearing(events_in(heard, config, []), probabilities, first)


def _mean(values: Array) -> float | None:
    return float(values.mean()) if values.size else None


def _mixture(scene: Soundscape) -> Array:
    return np.asarray(scene.mixture, np.float32)


if __name__ == "__main__":
    typer.run(main)
