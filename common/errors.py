"""The tree of errors. A leaf says whether a retry can help and what the caller sees.

SoundmillError
├── PermanentError             a retry cannot help
│   ├── AudioError             the recording itself is at fault
│   │   ├── AudioUnreadable    no known format, no audio stream, damaged beyond decoding
│   │   ├── AudioEmpty         opens, but holds no samples
│   │   ├── AudioTruncated     ends well before its declared duration
│   │   ├── AudioTooLong       longer than the configured limit
│   │   └── AudioUnsupported   sample rate or channel count out of range
│   ├── ParametersInvalid      the job's parameters do not fit the stage
│   ├── ObjectTooLarge         more bytes than allowed
│   ├── PartShort              fewer bytes of a part than were announced
│   ├── UrlForbidden           a URL that is not followed: no http, no public address
│   ├── EntryRejected          an entry of a source cannot become a recording; carries its code
│   ├── SourceInvalid          a source cannot be read (any further); carries its code
│   ├── MessageRefused         a message of a version we do not know, or not a message at all
│   ├── WeightsInvalid         a weights file does not fit its config or digest
│   ├── EncoderInvalid         the sentence encoder of the settings cannot be used
│   ├── DatasetError           training data are at fault; seen by who trains or evaluates
│   │   ├── DatasetMissing     a folder, table, column or audio file is not there
│   │   ├── DatasetInvalid     a table, a name or a label that is refused; says which line
│   │   ├── FoldMissing        no clip is in the fold asked for
│   │   ├── ClassMissing       a class has no clip in a fold, or none to train on
│   │   ├── LeakFound          a recording is in training and in test; carries how many
│   │   └── ClipsCorrupt       clips cannot be decoded; carries each with its reason
│   └── ArtifactInvalid        a stored artifact cannot be read back
├── TransientError             a retry can help
│   ├── StoreUnavailable       object store or network
│   │   └── StoreRefused       it answers, but not to us; carries the store's own reason
│   ├── DiskFull               no space for scratch files or artifacts
│   ├── UrlUnreachable         a URL that does not answer (well) now
│   └── OutOfMemory            the device or the host ran out of memory
├── NotFound                   no such job, recording, stage run, artifact or object
├── Conflict                   the request does not fit the state of the job
│   └── DeadlinePassed         the job's deadline lies behind
├── QuotaExceeded              the API key has used up what it may
├── KeyRefused                 no such API key, or not any more; carries its code
├── BackupInvalid              a backup is damaged, or of another version
├── NotEmpty                   a place to restore into holds something already
└── StaleFence                 another attempt owns the StageRun now; write nothing
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class SoundmillError(Exception):
    """Base of all errors that Soundmill raises on purpose.

    ``code`` is stable and machine-readable; ``str(error)`` is one plain sentence for people.
    """

    code = "internal_error"


class PermanentError(SoundmillError):
    """A retry cannot help."""

    code = "permanent_error"


class AudioError(PermanentError):
    """The recording itself is at fault."""

    code = "audio_error"


class AudioUnreadable(AudioError):
    code = "audio_unreadable"


class AudioEmpty(AudioError):
    code = "audio_empty"


class AudioTruncated(AudioError):
    code = "audio_truncated"


class AudioTooLong(AudioError):
    code = "audio_too_long"


class AudioUnsupported(AudioError):
    code = "audio_unsupported"


class ParametersInvalid(PermanentError):
    code = "parameters_invalid"


class MessageRefused(PermanentError):
    """A message that a worker cannot follow. ``shard_id``: what it is about, where it says so."""

    code = "message_refused"

    def __init__(self, detail: str, shard_id: str | None = None) -> None:
        super().__init__(detail)
        self.shard_id = shard_id


class WeightsInvalid(PermanentError):
    code = "weights_invalid"


class EncoderInvalid(PermanentError):
    code = "encoder_invalid"


class DatasetError(PermanentError):
    """Training data are at fault."""

    code = "dataset_error"


class DatasetMissing(DatasetError):
    code = "dataset_missing"


class DatasetInvalid(DatasetError):
    code = "dataset_invalid"


class FoldMissing(DatasetError):
    code = "fold_missing"


class ClassMissing(DatasetError):
    """``label`` has no clip in ``fold``, or, where that is None, none to train on."""

    code = "class_missing"

    def __init__(self, detail: str, label: str, fold: int | None) -> None:
        super().__init__(detail)
        self.label = label
        self.fold = fold


class LeakFound(DatasetError):
    """``count`` training clips share something with test clips."""

    code = "leak_found"

    def __init__(self, detail: str, count: int) -> None:
        super().__init__(detail)
        self.count = count


class ClipsCorrupt(DatasetError):
    """``reasons``: every clip that cannot be decoded, with why."""

    code = "clips_corrupt"

    def __init__(self, detail: str, reasons: Mapping[Path, str]) -> None:
        super().__init__(detail)
        self.reasons = dict(reasons)


class ArtifactInvalid(PermanentError):
    code = "artifact_invalid"


class ObjectTooLarge(PermanentError):
    code = "too_large"


class PartShort(PermanentError):
    code = "part_size_wrong"


class UrlForbidden(PermanentError):
    code = "url_forbidden"


class EntryRejected(PermanentError):
    """One entry is at fault, the rest of its source goes on. ``code`` says how."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class SourceInvalid(PermanentError):
    """The source as a whole is at fault; what was read before stays. ``code`` says how."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class TransientError(SoundmillError):
    """A retry can help."""

    code = "transient_error"


class Outage(TransientError):
    """Not the recording's fault: worth more patience than other errors."""

    code = "outage"


class StoreUnavailable(Outage):
    code = "store_unavailable"


class StoreRefused(StoreUnavailable):
    """The store answers, but not to us: keys, bucket or clock are wrong.

    ``reason`` is its own code for it, ``store_time_s`` its clock if it told it (seconds since 1970,
    rounded down).
    """

    def __init__(self, reason: str, detail: str, store_time_s: float | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.store_time_s = store_time_s


class DiskFull(Outage):
    code = "disk_full"


class UrlUnreachable(TransientError):
    code = "url_unreachable"


class OutOfMemory(TransientError):
    code = "out_of_memory"


class TimeLimitExceeded(TransientError):
    code = "time_limit_exceeded"


class InternalError(TransientError):
    code = "internal_error"


class NotFound(SoundmillError):
    code = "not_found"


class Conflict(SoundmillError):
    code = "conflict"


class DeadlinePassed(Conflict):
    code = "deadline_passed"


class QuotaExceeded(SoundmillError):
    code = "quota_exceeded"


class KeyRefused(SoundmillError):
    """An API key opens nothing. ``code`` says why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class BackupInvalid(SoundmillError):
    code = "backup_invalid"


class NotEmpty(SoundmillError):
    code = "not_empty"


class StaleFence(SoundmillError):
    code = "stale_fence"
