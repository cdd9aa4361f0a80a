"""What workers count: how attempts ended, how long they took, what they waited for.

Every number is one that a row of ``attempt`` holds, counted once the transaction that wrote the row
is committed, so that Prometheus and the database tell the same. How the numbers of child processes
reach Prometheus is in ``common.shared_metrics``.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import Any

import psutil
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common import errors, logs
from common.domain import Outcome, Stage
from common.ends import GivenBackFor
from common.metrics import NAMESPACE, REGISTRY, WORK_BUCKETS_S
from common.runs import Claim

log = logs.get_logger(__name__)

PHASES = ("download", "decode", "infer", "encode", "upload")
RATIO_BUCKETS = tuple(
    round(digit * 10.0**power, 4) for power in range(-3, 2) for digit in (1, 1.5, 2, 3, 5, 7)
)
DIGEST_DIGITS = 12
FAULTS = (  # what may end an attempt
    errors.AudioUnreadable,
    errors.AudioEmpty,
    errors.AudioTruncated,
    errors.AudioTooLong,
    errors.AudioUnsupported,
    errors.ParametersInvalid,
    errors.WeightsInvalid,
    errors.ArtifactInvalid,
    errors.NotFound,
    errors.StoreUnavailable,
    errors.DiskFull,
    errors.OutOfMemory,
    errors.TimeLimitExceeded,
    errors.InternalError,
)
DEATHS = ("SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS", "exit code 1")  # the usual ones of children


class Fate(StrEnum):
    """What became of a message."""

    TAKEN = "taken"
    STALE = "stale"  # none of its runs were to be had
    REFUSED = "refused"  # of an unknown version, or not valid


_OPTIONS: dict[str, Any] = {"namespace": NAMESPACE, "registry": REGISTRY}
_LIVE: dict[str, Any] = {**_OPTIONS, "multiprocess_mode": "livemax"}

ATTEMPTS = Counter(
    "attempts",
    "Attempts that have ended and were recorded.",
    ["stage", "outcome", "reason"],
    **_OPTIONS,
)
ATTEMPT_SECONDS = Histogram(
    "attempt_seconds",
    "Time that attempts took which succeeded and computed their result.",
    ["stage"],
    buckets=WORK_BUCKETS_S,
    **_OPTIONS,
)
PHASE_SECONDS = Histogram(
    "phase_seconds",
    "Time that each phase took of attempts which succeeded and computed their result.",
    ["stage", "phase"],
    buckets=WORK_BUCKETS_S,
    **_OPTIONS,
)
QUEUE_WAIT_SECONDS = Histogram(
    "queue_wait_seconds",
    "Time from when a stage run could be worked on until a worker claimed it.",
    ["stage"],
    buckets=WORK_BUCKETS_S,
    **_OPTIONS,
)
AUDIO_SECONDS = Counter(
    "audio_seconds",
    "Audio of attempts which succeeded and computed their result.",
    ["stage", "model", "device"],
    **_OPTIONS,
)
REAL_TIME_FACTOR = Histogram(
    "real_time_factor",
    "Time an attempt took over the length of its audio; lower is faster.",
    ["stage", "device"],
    buckets=RATIO_BUCKETS,
    **_OPTIONS,
)
BUSY_SECONDS = Counter(
    "busy_seconds",
    "Time spent in attempts, those that failed included.",
    ["stage", "device"],
    **_OPTIONS,
)
FENCED_WRITES = Counter(
    "fenced_writes",
    "Ends of attempts that were discarded because the run had been taken away.",
    ["stage"],
    **_OPTIONS,
)
MESSAGES = Counter(
    "messages", "Messages that the worker took from its queues.", ["stage", "outcome"], **_OPTIONS
)
WORKER_DEATHS = Counter(
    "worker_deaths", "Children that ended unexpectedly.", ["stage", "reason"], **_OPTIONS
)
MODEL_LOAD_SECONDS = Gauge(
    "model_load_seconds", "Time that loading the model took.", ["stage"], **_LIVE
)
MODEL_INFO = Gauge("model_info", "The model that is loaded.", ["stage", "model", "device"], **_LIVE)
DEVICE_MEMORY = Gauge(
    "device_memory_bytes", "Memory of the GPU, by all processes.", ["stage", "kind"], **_LIVE
)


_noted: set[tuple[str, ...]] = set()  # models of this process


def device_kind(device: str) -> str:
    """Return "cpu" or "cuda", whichever GPU it is."""
    return device.partition(":")[0]


def start(stages: Collection[Stage]) -> None:
    """Begin every series that is known beforehand at 0, so that its first increase is seen."""
    for stage in stages:
        for outcome in (Outcome.SUCCEEDED, Outcome.REUSED):
            ATTEMPTS.labels(stage.value, outcome.value, "")
        for fault in FAULTS:
            again = issubclass(fault, errors.TransientError)
            outcome = Outcome.TRANSIENT if again else Outcome.PERMANENT
            ATTEMPTS.labels(stage.value, outcome.value, fault.code)
        for reason in GivenBackFor:
            ATTEMPTS.labels(stage.value, Outcome.TRANSIENT.value, reason.value)
        for fate in Fate:
            MESSAGES.labels(stage.value, fate.value)
        for phase in PHASES:
            PHASE_SECONDS.labels(stage.value, phase)
        for metric in (ATTEMPT_SECONDS, QUEUE_WAIT_SECONDS, FENCED_WRITES):
            metric.labels(stage.value)
    for death in DEATHS:
        WORKER_DEATHS.labels("+".join(stages), death)


def note_model(stage: Stage, digest: str, device: str, took_s: float) -> None:
    """Note that this process has loaded a model. What is counted with it begins at 0."""
    model, kind = digest[:DIGEST_DIGITS], device_kind(device)
    if (stage, model, kind) in _noted:
        return  # it was at hand
    _noted.add((stage, model, kind))
    MODEL_INFO.labels(stage.value, model, kind).set(1)
    MODEL_LOAD_SECONDS.labels(stage.value).set(took_s)
    AUDIO_SECONDS.labels(stage.value, model, kind)
    BUSY_SECONDS.labels(stage.value, kind)
    REAL_TIME_FACTOR.labels(stage.value, kind)


def count_message(stage: Stage, fate: Fate) -> None:
    """Count what became of a message."""
    MESSAGES.labels(stage.value, fate.value).inc()


def count_claims(claims: Collection[Claim]) -> None:
    """Count how long claimed runs had waited."""
    for claim in claims:
        if claim.queue_wait_s is not None:
            QUEUE_WAIT_SECONDS.labels(claim.stage.value).observe(claim.queue_wait_s)


def count_ends(stage: Stage, attempts: Iterable[Mapping[str, Any]], fenced: int) -> None:
    """Count attempts that have ended.

    Args:
        attempts: Columns of their rows, as they were committed.
        fenced: How many ends were discarded.
    """
    FENCED_WRITES.labels(stage.value).inc(fenced)
    for row in attempts:
        ATTEMPTS.labels(stage.value, row["outcome"], row["error_code"] or "").inc()
        if row["device"] is None or row["started_at"] is None:
            continue
        kind = device_kind(row["device"])
        took_s = row["finished_at"] - row["started_at"]
        BUSY_SECONDS.labels(stage.value, kind).inc(took_s)
        if row["outcome"] != Outcome.SUCCEEDED.value:
            continue
        ATTEMPT_SECONDS.labels(stage.value).observe(took_s)
        for phase in PHASES:
            if (phase_s := row[f"{phase}_s"]) is not None:
                PHASE_SECONDS.labels(stage.value, phase).observe(phase_s)
        if audio_s := row["audio_s"]:
            model = (row["model_digest"] or "")[:DIGEST_DIGITS]
            AUDIO_SECONDS.labels(stage.value, model, kind).inc(audio_s)
            REAL_TIME_FACTOR.labels(stage.value, kind).observe(took_s / audio_s)


def device_peak_bytes(stage: Stage, device: str) -> int | None:
    """Return the most GPU memory this process held since the last call; None without a GPU.

    Tells the memory of the GPU as a whole as a metric. Torch is the worker's: it is not imported.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or device_kind(device) != "cuda":
        return None
    try:
        free, total = torch.cuda.mem_get_info(device)
        peak = int(torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
    except RuntimeError as error:  # after an error of CUDA nothing of it answers any more
        log.warning("no answer from the device", device=device, detail=str(error))
        return None
    DEVICE_MEMORY.labels(stage.value, "used").set(total - free)
    DEVICE_MEMORY.labels(stage.value, "total").set(total)
    return peak


class ProcessMemory(Collector):
    """What the parent of a worker and its children hold of the memory, looked at when asked."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def collect(self) -> Iterable[Metric]:
        """Return the resident memory of the parent and the sum of that of its children."""
        family = GaugeMetricFamily(
            f"{NAMESPACE}_process_memory_bytes",
            "Resident memory of a worker's processes.",
            labels=["stage", "process"],
        )
        parent = psutil.Process()
        family.add_metric([self._stage, "parent"], _resident_bytes(parent))
        children = sum(_resident_bytes(child) for child in parent.children(recursive=True))
        family.add_metric([self._stage, "child"], children)
        return [family]


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0  # it has just ended
