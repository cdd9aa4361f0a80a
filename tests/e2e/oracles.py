"""What happened in the run, as rules, alerts and panels tell it: mostly from the tables."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

from common.domain import SERVICE_OF, Stage
from tests.e2e.truth import (
    Expected,
    Oracle,
    Truth,
    Values,
    each,
    labelled,
    near,
    per_second,
    quantile,
    quiet,
    ratio,
    sql,
)

STAGES = [stage.value for stage in Stage]
ALONE = ("gateway", "dispatcher", "ingester")  # services of one process
QUIET_ROUTES = ("/health", "/ready", "/metrics")
CENSUS_S = 8.0  # between two looks of the dispatcher at the database, and a scrape

# Attempts that ended in the run; without those that ended because somebody else had the work; those
# that computed something
ATTEMPTS = "FROM attempt a JOIN stage_run r ON r.id = a.stage_run_id"
CLAIMED = f"{ATTEMPTS} WHERE a.claimed_at {{during}}"
ENDED = f"{ATTEMPTS} WHERE a.finished_at {{during}}"
COUNTED = f"{ENDED} AND a.outcome IN ('succeeded', 'reused', 'transient', 'permanent')"
GIVEN_BACK = "('same_work_elsewhere', 'worker_stopping', 'shard_out_of_time')"
OVER = f"{COUNTED} AND coalesce(a.error_code, '') NOT IN {GIVEN_BACK}"
FAILED = f"{OVER} AND a.outcome IN ('transient', 'permanent')"
COMPUTED = f"{ENDED} AND a.outcome = 'succeeded'"
TOOK = "(a.finished_at - a.started_at)"
UNFINISHED = "('blocked', 'ready', 'dispatched', 'running')"


def of_each_stage(oracle: Oracle) -> Oracle:
    """The same, with 0 for stages that it leaves out."""

    def filled(truth: Truth) -> Values:
        zeros = labelled(["stage"], ((stage, 0.0) for stage in STAGES))
        return {**zeros, **oracle(truth)}

    return filled


def eta(truth: Truth) -> Values:
    """What is left over what was done in a second; 0 where nothing is left."""
    left = BACKLOG(truth)
    return {stage: left.get(stage, 0.0) / rate for stage, rate in AUDIO_RATE(truth).items()}


def oldest(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """How long the run has waited at the end that waits longest."""
    for stage, ready_at in truth.rows(
        "SELECT r.stage, min(r.ready_at) FROM stage_run r JOIN job j ON j.id = r.job_id"
        " WHERE r.state IN ('ready', 'dispatched') AND j.paused_at IS NULL GROUP BY 1"
    ):
        yield stage, truth.until - ready_at


def requests(*names: str, all_routes: bool, least_status: int = 0) -> Oracle:
    """Requests by labels, from the log of the gateway."""

    def found(truth: Truth) -> Iterator[tuple[Any, ...]]:
        for line in truth.log("gateway", "request"):
            if line["status"] >= least_status and (all_routes or line["route"] not in QUIET_ROUTES):
                yield (*(line[name] for name in names), 1.0)

    return each(" ".join(names), found)


def asked_ready(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """What every process answers when it is asked whether it is ready: 1 for each good check."""
    for service, addresses in truth.targets.items():
        for address in addresses:
            for name, text in truth.ready(address).items():
                yield service, name, float(text.startswith("ok"))


def running(*jobs: str) -> Oracle:
    """1 for each process of services."""

    def found(truth: Truth) -> Iterator[tuple[Any, ...]]:
        for job in jobs:
            for address in truth.targets[job]:
                yield job, address, 1.0

    return each("job instance", found)


def worker_memory(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """Resident memory of the parents and of all their children."""
    for stage in Stage:
        parent = truth.process(f"{SERVICE_OF[stage]}-1")
        yield stage.value, "parent", parent.memory_info().rss
        children = parent.children(recursive=True)
        yield stage.value, "child", sum(child.memory_info().rss for child in children)


def service_memory(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """Resident memory of the services of one process."""
    for service in ALONE:
        yield service, truth.process(service).memory_info().rss


def free_disk(truth: Truth) -> Iterator[tuple[Any, ...]]:
    """The share of the disk that is free: everything lies on one."""
    usage = shutil.disk_usage(truth.stack.home.folder)
    for service in truth.targets:
        for place in ("database", "scratch", "store"):
            yield service, place, usage.free / usage.total


AUDIO = sql(f"SELECT r.stage, sum(a.audio_s) {COMPUTED} GROUP BY 1", "stage")
AUDIO_RATE = per_second(AUDIO)
BACKLOG = sql(
    f"SELECT stage, sum(audio_s) FROM stage_run WHERE state IN {UNFINISHED} GROUP BY 1", "stage"
)
ALL_OVER = sql(f"SELECT r.stage, count(*) {OVER} GROUP BY 1", "stage")
FAULTS = of_each_stage(
    sql(
        f"SELECT r.stage, count(*) {FAILED} AND a.error_code NOT LIKE 'audio\\_%' ESCAPE '\\'"
        " AND a.error_code NOT IN ('parameters_invalid', 'too_large') GROUP BY 1",
        "stage",
    )
)
RUNS = sql("SELECT stage, state, count(*) FROM stage_run GROUP BY 1, 2", "stage", "state")
OLDEST = near(each("stage", oldest), CENSUS_S)
LATE = sql("SELECT count(*) FROM job WHERE name = 'late'")
LEASES = sql(f"SELECT r.stage, count(*) {ENDED} AND a.outcome = 'lost' GROUP BY 1", "stage")
QUARANTINED = sql(
    "SELECT stage, count(*) FROM stage_run WHERE state = 'quarantined' AND finished_at {during}"
    " GROUP BY 1",
    "stage",
)
READY = each("job check", asked_ready)
RTF = (f"SELECT r.stage, {TOOK} / a.audio_s {COMPUTED}", "stage")
UNBROKEN = quiet("database, Redis and object store answered all the time")

RULES: dict[str, Expected | Oracle] = {
    "soundmill:audio_hours_per_hour:rate5m": AUDIO_RATE,
    "soundmill:real_time_factor:p50_5m": quantile(0.5, "soundmill_real_time_factor", *RTF),
    "soundmill:real_time_factor:p95_5m": quantile(0.95, "soundmill_real_time_factor", *RTF),
    "soundmill:workers": each("stage", lambda truth: ((stage, 1.0) for stage in STAGES)),
    "soundmill:backlog_audio_seconds": BACKLOG,
    "soundmill:eta_seconds": eta,
    "soundmill:error_ratio:rate5m": ratio(
        sql(f"SELECT r.stage, count(*) {FAILED} GROUP BY 1", "stage"), ALL_OVER
    ),
    "soundmill:faults:increase30m": FAULTS,
    "soundmill:fault_ratio:rate30m": ratio(FAULTS, ALL_OVER),
}
