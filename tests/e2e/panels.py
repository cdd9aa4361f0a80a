"""What every query of every panel must say: an oracle by dashboard, title and letter.

What the tables do not hold comes from the processes and the disk (memory, room, readiness), from
logs (requests, stale messages), from Redis, or from the test, which knows what it did. Where a
process alone knows (times of the object store and of the dispatcher's turns), the answer is worked
out anew from what was scraped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import psutil

from common.domain import SERVICE_OF, Priority, Stage
from common.settings import Settings
from tests.e2e.oracles import (
    AUDIO,
    BACKLOG,
    CLAIMED,
    COMPUTED,
    COUNTED,
    ENDED,
    LATE,
    LEASES,
    OLDEST,
    QUARANTINED,
    READY,
    RULES,
    RUNS,
    TOOK,
    UNBROKEN,
    UNFINISHED,
    eta,
    free_disk,
    requests,
    service_memory,
    worker_memory,
)
from tests.e2e.truth import (
    Expected,
    Oracle,
    Truth,
    Values,
    absent,
    each,
    labelled,
    near,
    near_events,
    per_minute,
    per_second,
    quantile,
    quantile_of,
    quiet,
    ratio,
    raw_quantile,
    raw_rate,
    scaled,
    sql,
    total,
)
from tests.e2e.watched_run import SHARD_AUDIO_S

HOURS = 1 / 3600
SHARD_RUNS = Settings().shard_max_runs
CLOCK_S = 0.2  # one machine has one clock
CLIENTS_BYTES = 200_000.0  # of the memory of Redis: they come and go
DISCARDED = 3.0  # artifacts that were stored and then not recorded
EDGE_EVENTS = 2.0  # requests of Prometheus itself, which never stop
PHASES = ("download", "decode", "infer", "encode", "upload")


def attempts(*labels: str, outcomes: str) -> Oracle:
    """Attempts that ended in the run by columns of attempt and stage_run."""
    columns = {"stage": "r.stage", "outcome": "a.outcome", "reason": "a.error_code"}
    chosen = ", ".join(columns[label] for label in labels)
    numbers = ", ".join(str(place) for place, _ in enumerate(labels, 1))
    return sql(
        f"SELECT {chosen}, count(*) {COUNTED} AND a.outcome IN ({outcomes}) GROUP BY {numbers}",
        *labels,
    )


def jobs(where: str) -> Oracle:
    """The number of jobs for which a condition holds."""
    return sql(f"SELECT count(*) FROM job WHERE {where}")


def phases(stage: Stage) -> Oracle:
    """The mean length of each phase of a stage."""
    union = " UNION ALL ".join(
        f"SELECT '{phase}', avg(a.{phase}_s) {COMPUTED} AND r.stage = '{stage.value}'"
        f" HAVING count(a.{phase}_s) > 0"
        for phase in PHASES
    )
    return sql(union, "phase")


def shards(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """How full each published shard was, from the log of the dispatcher."""
    for line in truth.log("dispatcher", "shard published"):
        fill = max(line["audio_s"] / SHARD_AUDIO_S, line["runs"] / SHARD_RUNS)
        yield line["stage"], min(1.0, fill)


def mean_fill(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """How full the published shards of each stage were on average."""
    found: dict[str, list[float]] = {}
    for stage, fill in shards(truth):
        found.setdefault(stage, []).append(fill)
    for stage, fills in found.items():
        yield stage, sum(fills) / len(fills)


def messages(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """What became of messages: what was taken left attempts, the rest left a line."""
    ((taken,),) = truth.rows(f"SELECT count(DISTINCT a.shard_id) {CLAIMED}")
    yield "taken", taken
    for service in SERVICE_OF.values():
        yield "stale", len(truth.log(f"{service}-1", "stale shard ignored"))


def fenced(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """Results of runs that had been taken away, from the logs of the workers."""
    for stage, service in SERVICE_OF.items():
        for event in ("end discarded", "result discarded"):
            yield stage.value, len(truth.log(f"{service}-1", event))


def deaths(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """Children that the test killed."""
    for stage in truth.told.killed:
        yield stage.value, "SIGKILL", 1


def answers(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """Times of requests, from the log of the gateway."""
    for line in truth.log("gateway", "request"):
        yield line["method"], line["route"], line["seconds"]


def deliveries(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """How the receiver answered."""
    for status in truth.answered:
        yield "delivered" if status < 300 else "retried", 1


def queues(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """Messages that wait in Redis."""
    for stage in Stage:
        for priority in Priority:
            yield stage.value, priority.value, truth.queue_length(stage, priority)


def jobs_ended(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """Jobs by the state they ended in; one that is deleted is cancelled first."""
    yield from truth.rows("SELECT state, count(*) FROM job WHERE finished_at {during} GROUP BY 1")
    yield "cancelled", len(truth.deleted)


def operations(truth: Truth) -> Values:
    """Operations of the object store per second; what was put is in the tables."""
    ((recordings,),) = truth.rows("SELECT count(*) FROM recording WHERE created_at {during}")
    ((archives,),) = truth.rows("SELECT count(*) FROM source WHERE created_at {during}")
    ((artifacts,),) = truth.rows(
        "SELECT count(*) FROM artifact x JOIN attempt a ON a.stage_run_id = x.stage_run_id"
        " WHERE a.outcome = 'succeeded' AND a.finished_at {during}"
    )
    put = (recordings + archives + artifacts) / truth.window_s
    counted = raw_rate(f"{STORE}_count", "operation")(truth)
    return {**counted, **labelled(["operation"], [("put", put)])}


def swept(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """Jobs that the test deleted; results that nobody uses, from the log."""
    yield "job", len(truth.deleted)
    for line in truth.log("dispatcher", "results removed"):
        yield "result", line["removed"]


def models(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """The models with which results were computed."""
    for stage, digest, device in truth.rows(
        f"SELECT DISTINCT r.stage, a.model_digest, a.device {COMPUTED}"
    ):
        yield stage, digest[:12], device.partition(":")[0], 1


def loading(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """How long loading a model took, as the workers tell it."""
    for of, seconds in truth.page_values("soundmill_model_load_seconds"):
        yield of["stage"], seconds


def versions(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """What is installed, for every service."""
    for service in truth.targets:
        yield service, version("soundmill"), 1


OPERATIONS, RELIABILITY, STAGES = (
    "soundmill-operations",
    "soundmill-reliability",
    "soundmill-stages",
)
ENDS = "'succeeded', 'reused'"
PAUSED = jobs("paused_at IS NOT NULL")
BY_STATE = "SELECT state, count(*) FROM {} GROUP BY 1"
ENTRIES = "FROM {} x JOIN source s ON s.id = x.source_id WHERE x.created_at {{during}}"
RECORDED, REJECTED = ENTRIES.format("recording"), ENTRIES.format("rejection")
SENT = "FROM recording WHERE source_id IS NULL AND created_at {during}"
ATTEMPT_TIMES = ("soundmill_attempt_seconds", f"SELECT r.stage, {TOOK} {COMPUTED}", "stage")
WAITS = ("soundmill_queue_wait_seconds", f"SELECT r.stage, a.queue_wait_s {CLAIMED}", "stage")
BUSY = f"SELECT r.stage, sum({TOOK}) {ENDED} AND a.device IS NOT NULL GROUP BY 1"
DEVICE = "substr(a.device || ':', 1, instr(a.device || ':', ':') - 1)"
OPERATIONS_RATE = near_events(operations, DISCARDED)
TURNS, STORE = "soundmill_turn_seconds", "soundmill_store_seconds"

PANELS: dict[tuple[str, str, str], Expected | Oracle] = {
    (OPERATIONS, "Jobs in work", "A"): jobs("state IN ('open', 'closed')"),
    (OPERATIONS, "Time left", "A"): lambda truth: {frozenset(): max(eta(truth).values())},
    (OPERATIONS, "Audio that waits", "A"): scaled(total(BACKLOG), HOURS),
    (OPERATIONS, "Audio done in this time", "A"): scaled(total(AUDIO), HOURS),
    (OPERATIONS, "Stage runs that failed", "A"): sql(
        "SELECT count(*) FROM stage_run WHERE state IN ('failed', 'quarantined')"
    ),
    (OPERATIONS, "Jobs past their deadline", "A"): LATE,
    (OPERATIONS, "Audio hours per hour", "A"): RULES["soundmill:audio_hours_per_hour:rate5m"],
    (OPERATIONS, "Time left by stage", "A"): eta,
    (OPERATIONS, "Backlog in hours of audio", "A"): scaled(
        sql(
            "SELECT stage, priority, sum(audio_s) FROM stage_run"
            f" WHERE state IN {UNFINISHED} GROUP BY 1, 2",
            "stage",
            "priority",
        ),
        HOURS,
    ),
    (OPERATIONS, "Oldest work that waits", "A"): OLDEST,
    (OPERATIONS, "Stage runs by stage and state", "A"): RUNS,
    (OPERATIONS, "Stage runs by state", "A"): sql(BY_STATE.format("stage_run"), "state"),
    (OPERATIONS, "Stage runs done per minute", "A"): per_minute(
        attempts("stage", "outcome", outcomes=ENDS)
    ),
    (OPERATIONS, "Failures by code", "A"): sql(
        "SELECT stage, error_code, count(*) FROM stage_run"
        " WHERE state IN ('failed', 'quarantined') GROUP BY 1, 2",
        "stage",
        "code",
    ),
    (OPERATIONS, "Jobs by state", "A"): sql(BY_STATE.format("job"), "state"),
    (OPERATIONS, "Jobs that are paused or late", "A"): PAUSED,
    (OPERATIONS, "Jobs that are paused or late", "B"): LATE,
    (OPERATIONS, "Jobs ended in this time", "A"): each("state", jobs_ended),
    (OPERATIONS, "Bytes coming in", "A"): per_second(sql(f"SELECT sum(size_bytes) {SENT}")),
    (OPERATIONS, "Bytes coming in", "B"): per_second(
        sql(f"SELECT s.kind, sum(x.size_bytes) {RECORDED} GROUP BY 1", "kind")
    ),
    (OPERATIONS, "Recordings per minute", "A"): per_minute(
        sql(f"SELECT 'raw', count(*) {SENT}", "way")
    ),
    (OPERATIONS, "Recordings per minute", "B"): per_minute(
        sql(f"SELECT s.kind, count(*) {RECORDED} GROUP BY 1", "kind")
    ),
    (OPERATIONS, "Sources by state", "A"): sql(BY_STATE.format("source"), "state"),
    (OPERATIONS, "Sources read in this time", "A"): sql(
        "SELECT kind, state, count(*) FROM source WHERE finished_at {during} GROUP BY 1, 2",
        "kind",
        "outcome",
    ),
    (OPERATIONS, "Entries rejected in this time", "A"): sql(
        f"SELECT s.kind, x.error_code, count(*) {REJECTED} GROUP BY 1, 2", "kind", "reason"
    ),
    (RELIABILITY, "Alerts that page", "A"): quiet("nothing went on for long enough"),
    (RELIABILITY, "Alerts that wait", "A"): quiet("nothing went on for long enough"),
    (RELIABILITY, "Processes that do not answer", "A"): quiet("all answer at the end"),
    (RELIABILITY, "Failed checks", "A"): quiet("all is well"),
    (RELIABILITY, "In quarantine", "A"): total(QUARANTINED),
    (RELIABILITY, "Leases expired in this time", "A"): total(LEASES),
    (RELIABILITY, "Checks", "A"): READY,
    (RELIABILITY, "Clocks apart", "A"): quiet("one machine has one clock", CLOCK_S),
    (RELIABILITY, "Error ratio", "A"): RULES["soundmill:error_ratio:rate5m"],
    (RELIABILITY, "Error ratio", "B"): RULES["soundmill:fault_ratio:rate30m"],
    (RELIABILITY, "Retries by reason", "A"): per_minute(attempts("reason", outcomes="'transient'")),
    (RELIABILITY, "Failures for good by reason", "A"): per_minute(
        attempts("reason", outcomes="'permanent'")
    ),
    (RELIABILITY, "Leases and messages lost", "A"): per_minute(LEASES),
    (RELIABILITY, "Leases and messages lost", "B"): quiet("Redis was left alone"),
    (RELIABILITY, "Writes refused by the fence", "A"): Expected(
        per_minute(each("stage", fenced)), quiet="the worker may have noticed in time by itself"
    ),
    (RELIABILITY, "Messages by what became of them", "A"): per_minute(each("outcome", messages)),
    (RELIABILITY, "Deaths of workers", "A"): each("stage reason", deaths),
    (RELIABILITY, "Quarantine", "A"): QUARANTINED,
    (RELIABILITY, "Turns of the dispatcher", "A"): raw_quantile(0.5, TURNS),
    (RELIABILITY, "Turns of the dispatcher", "B"): raw_quantile(0.95, TURNS),
    (RELIABILITY, "Time of the object store, 95th percentile", "A"): raw_quantile(
        0.95, STORE, "operation"
    ),
    (RELIABILITY, "Operations of the object store", "A"): OPERATIONS_RATE,
    (RELIABILITY, "Errors of the object store", "A"): UNBROKEN,
    (RELIABILITY, "Errors of the database", "A"): UNBROKEN,
    (RELIABILITY, "Errors of Redis", "A"): UNBROKEN,
    (RELIABILITY, "Turns of the dispatcher that failed", "A"): UNBROKEN,
    (RELIABILITY, "Memory of Redis", "A"): near(
        lambda truth: {frozenset(): truth.redis_info["used_memory"]}, CLIENTS_BYTES
    ),
    (RELIABILITY, "Memory of Redis", "B"): lambda truth: {
        frozenset(): psutil.virtual_memory().total
    },
    (RELIABILITY, "Size of the database", "A"): sql(
        "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    ),
    (RELIABILITY, "Free disk", "A"): each("job place", free_disk),
    (RELIABILITY, "Requests by status", "A"): near_events(
        per_second(requests("status", all_routes=True)), EDGE_EVENTS
    ),
    (RELIABILITY, "Share of errors", "A"): quiet("the gateway had no error of its own"),
    (RELIABILITY, "Time of an answer, 95th percentile", "A"): replace(
        quantile_of(0.95, "soundmill_http_request_seconds", answers, "method", "route"), most=10
    ),
    (RELIABILITY, "Requests being answered", "A"): lambda truth: {
        frozenset(): 1.0  # the one for the metrics themselves
    },
    (RELIABILITY, "Deliveries to webhooks", "A"): per_minute(each("outcome", deliveries)),
    (RELIABILITY, "Deliveries that wait", "A"): quiet("all were delivered"),
    (RELIABILITY, "Memory of gateway, dispatcher and ingester", "A"): each("job", service_memory),
    (RELIABILITY, "Cleared away", "A"): per_minute(each("kind", swept)),
    (STAGES, "Real-time factor, median", "A"): RULES["soundmill:real_time_factor:p50_5m"],
    (STAGES, "Real-time factor, 95th percentile", "A"): RULES["soundmill:real_time_factor:p95_5m"],
    (STAGES, "Speed of a worker by device", "A"): ratio(
        sql(
            f"SELECT r.stage, {DEVICE}, sum(a.audio_s) {COMPUTED} GROUP BY 1, 2",
            "stage",
            "device",
        ),
        sql(
            f"SELECT r.stage, {DEVICE}, sum({TOOK}) {ENDED} AND a.device IS NOT NULL GROUP BY 1, 2",
            "stage",
            "device",
        ),
    ),
    (STAGES, "Audio hours per hour by model and device", "A"): per_second(
        sql(
            f"SELECT r.stage, substr(a.model_digest, 1, 12), {DEVICE}, sum(a.audio_s) {COMPUTED}"
            " GROUP BY 1, 2, 3",
            "stage",
            "model",
            "device",
        )
    ),
    (STAGES, "Busy workers", "A"): per_second(sql(BUSY, "stage")),
    (STAGES, "Busy workers", "B"): RULES["soundmill:workers"],
    (STAGES, "Time of an attempt", "A"): quantile(0.5, *ATTEMPT_TIMES),
    (STAGES, "Time of an attempt", "B"): quantile(0.95, *ATTEMPT_TIMES),
    **{(STAGES, f"Phases of {stage.value}", "A"): phases(stage) for stage in Stage},
    # the dispatcher's log rounds the seconds of a shard to one decimal
    (STAGES, "Fill of shards", "A"): near(each("stage", mean_fill), 0.05 / SHARD_AUDIO_S),
    (STAGES, "Recordings per shard", "A"): sql(
        f"SELECT r.stage, 1.0 * count(*) / count(DISTINCT a.shard_id) {CLAIMED} GROUP BY 1", "stage"
    ),
    (STAGES, "Shards published per minute", "A"): per_minute(
        sql(
            f"SELECT r.stage, r.priority, count(DISTINCT a.shard_id) {CLAIMED} GROUP BY 1, 2",
            "stage",
            "priority",
        )
    ),
    (STAGES, "Messages in the queues", "A"): Expected(
        each("stage priority", queues), quiet="workers have taken all"
    ),
    (STAGES, "Wait before the work, median", "A"): quantile(0.5, *WAITS),
    (STAGES, "Wait before the work, 95th percentile", "A"): quantile(0.95, *WAITS),
    (STAGES, "Memory of a worker", "A"): each("stage process", worker_memory),
    (STAGES, "Memory of the GPU", "A"): absent("there is no GPU"),
    (STAGES, "Out of memory in this time", "A"): quiet("there was enough memory"),
    (STAGES, "Models in use", "A"): each("stage model device", models),
    (STAGES, "Time to load the model", "A"): each("stage", loading),
    (STAGES, "Versions", "A"): each("service version", versions),
}
