"""Inference: the recordings of a shard in, the tags and events of each out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from common import checkpoint
from common.domain import ArtifactKind, Event
from common.errors import ArtifactInvalid
from common.params import ClassifyParams
from common.results import Events, Tag, events_json, summary
from common.settings import get_settings
from common.stage_io import Done, OutputFile, StageInput, StageOutput
from services.classifier.config import DEFAULT_WEIGHTS, Config
from services.classifier.events import Span, find_events, union_of
from services.classifier.listening import Heard, Listener, LoadedClassifier, listen_to
from services.classifier.model import restored


def load(device: str, weights: Path | None = None) -> LoadedClassifier:
    """Return the classifier on "cpu", "cuda" or, with "auto", on a GPU if there is one.

    Without ``weights`` those that the settings name, else those that are shipped.

    Raises:
        WeightsInvalid: the file is missing, damaged, or does not fit.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = checkpoint.load(weights or get_settings().classifier_weights or DEFAULT_WEIGHTS)
    model = restored(loaded).requires_grad_(False)
    model.fuse()
    return LoadedClassifier(model.to(device), model.config, device, loaded.digest)


def process(loaded: LoadedClassifier, item: StageInput) -> StageOutput:
    """Classify one recording: writes events.json with events and tags.

    Raises:
        AudioError: the recording is at fault.
        ArtifactInvalid: the mask or the regions cannot be read back.
    """
    [done] = process_shard(loaded, [item])
    if isinstance(done.outcome, Exception):
        raise done.outcome
    return done.outcome


def process_shard(loaded: LoadedClassifier, items: Iterable[StageInput]) -> Iterator[Done]:
    """Classify recordings, each as ``process`` does; what one meets costs the others nothing.

    Yields:
        Each once, as soon as it is done; the order may differ. Recordings are taken from
        ``items`` only as the windows of those before leave room in a batch.
    """
    for listener in listen_to(loaded, (_listener(loaded, item) for item in items)):
        try:
            yield Done(listener.item, listener.error or _output(listener))
        except Exception as error:
            yield Done(listener.item, error)


def _listener(loaded: LoadedClassifier, item: StageInput) -> Listener:
    wanted = isinstance(item.params, ClassifyParams) and item.params.embeddings
    vectors_path = item.scratch / "vectors.npz" if wanted else None
    return Listener(loaded, item, item.upstream.get(ArtifactKind.MASK), vectors_path)


def _output(listener: Listener) -> StageOutput:
    """Write what a recording's scores tell."""
    loaded, item, params = listener.loaded, listener.item, listener.item.params
    if not isinstance(params, ClassifyParams):
        raise TypeError(f"the classifier got {type(params).__name__}")
    regions = read_regions(item.upstream.get(ArtifactKind.REGIONS))
    with item.phases.phase("infer"):
        heard = listener.heard()
        events = events_in(heard, loaded.config, regions, params.threshold)
    order = np.argsort(-heard.tags, kind="stable")
    tags = [
        Tag(loaded.config.labels[k], round(float(heard.tags[k]), 4))
        for k in order[: params.top_k].tolist()
    ]
    found = Events(heard.facts.duration_s, tuple(events), tuple(tags))
    path = item.scratch / "events.json"
    with item.phases.phase("encode"):
        path.write_text(events_json(found))
    files = {ArtifactKind.EVENTS: OutputFile(path, "application/json")}
    if listener.vectors_path is not None:
        files[ArtifactKind.VECTORS] = OutputFile(listener.vectors_path, "application/zip")
    if params.explain:
        from services.classifier.explain.stage import explain  # brings what few jobs need

        files[ArtifactKind.EXPLANATION] = explain(loaded, item, params, heard)
    return StageOutput(files, summary(found), heard.facts, heard.batch_size)


def events_in(
    heard: Heard, config: Config, regions: list[Span], threshold: float | None = None
) -> list[Event]:
    """Return the events of every label, by onset. None: the threshold of the weights."""
    events: list[Event] = []
    threshold = config.event_threshold if threshold is None else threshold
    for k, label in enumerate(config.labels):
        logits = heard.segments[k].astype(np.float32) + np.float32(config.segment_shift)
        probabilities = 1.0 / (1.0 + np.exp(-logits / config.segment_temperature))
        events += find_events(
            probabilities, label, regions, threshold, config.segment_s, heard.facts.duration_s
        )
    return sorted(events, key=lambda event: (event.onset_s, event.offset_s, event.label))


def read_regions(path: Path | None) -> list[Span]:
    """Return the stretches of time that hold foreground, in order, from regions.json.

    Raises:
        ArtifactInvalid: no valid JSON of that form.
    """
    if path is None:
        return []
    try:
        regions = json.loads(path.read_text())["regions"]
        return union_of([(float(r["onset_s"]), float(r["offset_s"])) for r in regions])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactInvalid(f"{path.name} holds no regions: {error}") from error
