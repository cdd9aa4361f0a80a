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

STAGE_OF: dict[str, Stage] = {service: stage for stage, service in SERVICE_OF.items()}


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
    CLOSED = "closed"  # takes no more recordings and sources; work remains
    COMPLETED = "completed"  # every source is read, every StageRun is terminal
    CANCELLED = "cancelled"  # by its owner; what had not ended is cancelled as well
    EXPIRED = "expired"  # its deadline passed; what had not ended is cancelled


ENDED_STATES = frozenset({JobState.COMPLETED, JobState.CANCELLED, JobState.EXPIRED})


class SourceKind(StrEnum):
    """What a Source of recordings is."""

    ARCHIVE = "archive"  # a stored ZIP or TAR (.gz, .zst): one recording per entry
    MANIFEST = "manifest"  # stored JSON lines or CSV: one recording per line
    URLS = "urls"  # a list of http and https addresses
    PREFIX = "prefix"  # everything below s3://bucket/prefix or file:///folder
    UPLOAD = "upload"  # one finished multipart upload: one recording


class SourceState(StrEnum):
    """The state of a Source."""

    PENDING = "pending"  # waits for an ingester
    RUNNING = "running"  # an ingester reads it, under a lease
    DONE = "done"  # read to its end: every entry is a recording or a rejection
    FAILED = "failed"  # cannot be read any further; what came before stays
    CANCELLED = "cancelled"  # its job ended first


class UploadState(StrEnum):
    """The state of a multipart upload."""

    OPEN = "open"  # takes parts
    COMPLETE = "complete"  # one whole object
    USED = "used"  # belongs to a source now
    ABORTED = "aborted"  # given up by its owner or by time; its parts are removed


class Scope(StrEnum):
    """What an API key may do."""

    SUBMIT = "submit"  # make, change and delete jobs of its own
    READ = "read"  # look at jobs of its own and fetch their results
    ADMIN = "admin"  # both, for the jobs of every key


class JobEventKind(StrEnum):
    """What happened to a job: told over server-sent events and webhooks."""

    CREATED = "job.created"
    CLOSED = "job.closed"
    PAUSED = "job.paused"
    RESUMED = "job.resumed"
    RETRIED = "job.retried"
    COMPLETED = "job.completed"
    CANCELLED = "job.cancelled"
    EXPIRED = "job.expired"
    SOURCE_DONE = "source.done"
    SOURCE_FAILED = "source.failed"


class DeliveryState(StrEnum):
    """The state of one event on its way to one webhook."""

    PENDING = "pending"  # to be sent at next_attempt_at
    DELIVERED = "delivered"  # answered with 2xx
    FAILED = "failed"  # answered with 4xx, or given up


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
    VECTORS = "vectors"  # classifier, on request: what is heard along time, .npz
    EXPLANATION = "explanation"  # classifier, on request: maps, pictures and audio of why, .zip
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
