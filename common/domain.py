"""The words of Soundmill as types: stages, states, artifacts, events. Pure data, no I/O.

The meaning of every word is in ``docs/glossary.md``; the state diagram is in
``docs/architecture.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """A step of the pipeline. Each is done by one worker service with one model."""

    SEGMENT = "segment"
    CLASSIFY = "classify"
    ENHANCE = "enhance"
    RESTORE = "restore"


STAGE_NEEDS: dict[Stage, tuple[Stage, ...]] = {
    Stage.SEGMENT: (),
    Stage.CLASSIFY: (Stage.SEGMENT,),
    Stage.ENHANCE: (Stage.SEGMENT,),
    Stage.RESTORE: (Stage.SEGMENT, Stage.CLASSIFY),
}
"""Which stages must have succeeded before a stage is ready. In pipeline order."""

SERVICE_OF: dict[Stage, str] = {
    Stage.SEGMENT: "segmenter",
    Stage.CLASSIFY: "classifier",
    Stage.ENHANCE: "enhancer",
    Stage.RESTORE: "restorer",
}


def with_needs(stages: set[Stage]) -> list[Stage]:
    """Return ``stages`` and everything they need, in pipeline order."""
    wanted = set(stages)
    for stage in reversed(STAGE_NEEDS):
        if stage in wanted:
            wanted.update(STAGE_NEEDS[stage])
    return [stage for stage in STAGE_NEEDS if stage in wanted]


class Priority(StrEnum):
    """The class of a job. Workers empty ``interactive`` queues before ``bulk`` ones."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


def queue_name(stage: Stage, priority: Priority) -> str:
    """Return the queue of a stage, for example ``segmenter.bulk``."""
    return f"{SERVICE_OF[stage]}.{priority}"


class RunState(StrEnum):
    """The state of a StageRun: one stage on one recording."""

    BLOCKED = "blocked"  # waits for the stages it needs
    READY = "ready"  # may be dispatched once next_attempt_at has passed
    DISPATCHED = "dispatched"  # in a shard that was published, not yet claimed
    RUNNING = "running"  # claimed by a worker, under a lease
    SUCCEEDED = "succeeded"  # artifacts stored and recorded
    FAILED = "failed"  # permanent error, or transient ones too often
    QUARANTINED = "quarantined"  # killed its worker repeatedly while alone
    SKIPPED = "skipped"  # something it needs did not succeed
    CANCELLED = "cancelled"  # the job was cancelled first


TERMINAL_STATES = frozenset(
    {
        RunState.SUCCEEDED,
        RunState.FAILED,
        RunState.QUARANTINED,
        RunState.SKIPPED,
        RunState.CANCELLED,
    }
)


class JobState(StrEnum):
    """The state of a job."""

    OPEN = "open"  # still takes recordings; those it has are already processed
    CLOSED = "closed"  # takes no more recordings; work remains
    COMPLETED = "completed"  # every StageRun is terminal
    CANCELLED = "cancelled"  # cancelled by its owner; every StageRun is terminal


class Outcome(StrEnum):
    """How one Attempt at a StageRun ended."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    REUSED = "reused"  # the same idempotency key had succeeded before
    TRANSIENT = "transient"  # failed, a retry can help
    PERMANENT = "permanent"  # failed, a retry cannot help
    LOST = "lost"  # the lease expired: the worker died or was cut off
    CANCELLED = "cancelled"  # the job was cancelled while it ran


class ArtifactKind(StrEnum):
    """What a stored output is. A StageRun has at most one artifact of a kind."""

    MASK = "mask"  # segmenter: probability mask, .npz
    EMBEDDING = "embedding"  # segmenter: embedding per bin and class vectors, .npz
    REGIONS = "regions"  # segmenter: salient regions, .json
    EVENTS = "events"  # classifier: events and tags, .json
    ENHANCED = "enhanced"  # enhancer: clean, wide audio, .flac or .wav
    RESTORED = "restored"  # restorer: audio without the removed events, .flac or .wav
    REMOVALS = "removals"  # restorer: what was removed, where and how, .json


@dataclass(frozen=True)
class Region:
    """A salient stretch of foreground. Times in seconds from the start, frequencies in hertz."""

    onset_s: float
    offset_s: float
    low_hz: float
    high_hz: float
    confidence: float


@dataclass(frozen=True)
class Event:
    """A labelled sound. Times in seconds from the start of the recording; confidence in [0, 1]."""

    label: str
    onset_s: float
    offset_s: float
    confidence: float
