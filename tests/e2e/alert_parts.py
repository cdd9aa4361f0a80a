"""What alerts look at, and what it must say: all of an expression but its comparisons.

Windows are written ``[W]``. An alert that looks at something else fails the test.
"""

from __future__ import annotations

import math

from tests.e2e.oracles import (
    COUNTED,
    LATE,
    LEASES,
    OLDEST,
    QUARANTINED,
    READY,
    RULES,
    UNBROKEN,
    free_disk,
    requests,
    running,
)
from tests.e2e.panels import OPERATIONS_RATE, PANELS, RELIABILITY, deliveries
from tests.e2e.truth import (
    Expected,
    Oracle,
    Truth,
    Values,
    absent,
    each,
    labelled,
    near,
    per_second,
    quiet,
    sql,
    total,
)

OUTSIDE = 'route!~"/(health|ready|metrics)"'
ENDED_FOR_GOOD = 'outcome=~"succeeded|reused|permanent"'
WATCHED = ("gateway", "dispatcher", "ingester", "segmenter", "classifier", "enhancer", "restorer")
NO_GPU = absent("there is no GPU")
NO_ERRORS = absent("the gateway had no error of its own")


def free_by_process(truth: Truth) -> Values:
    """The share of the disk that is free, as every process sees it."""
    return labelled(
        ["job", "instance", "place"],
        (
            (service, address, place, share)
            for service, place, share in free_disk(truth)
            for address in truth.targets[service]
        ),
    )


def told(*outcomes: str) -> Oracle:
    """How often deliveries to webhooks ended so."""
    return total(
        each("outcome", lambda truth: (row for row in deliveries(truth) if row[0] in outcomes))
    )


PARTS: dict[str, Expected | Oracle] = {
    "max by (stage) (soundmill_oldest_ready_age_seconds)": OLDEST,
    f"sum by (stage) (increase(soundmill_attempts_total{{{ENDED_FOR_GOOD}}}[W]))": sql(
        f"SELECT r.stage, count(*) {COUNTED} AND a.outcome != 'transient' GROUP BY 1", "stage"
    ),
    'max by (stage) (soundmill_stage_runs{state="running"})': quiet("everything has ended"),
    'max by (stage) (min_over_time(soundmill_stage_runs{state="running"}[W]))': quiet(
        "nothing ran at the beginning and at the end"
    ),
    **RULES,
    **{f'up{{job="{job}"}}': running(job) for job in WATCHED},
    f'up{{job=~"{"|".join(WATCHED)}"}}': running(*WATCHED),
    "max by (job, check) (soundmill_ready)": READY,
    f"sum(rate(soundmill_http_requests_total{{{OUTSIDE}}}[W]))": per_second(
        requests(all_routes=False)
    ),
    f'sum(rate(soundmill_http_requests_total{{status=~"5..",{OUTSIDE}}}[W]))': NO_ERRORS,
    f'sum(increase(soundmill_http_requests_total{{status=~"5..",{OUTSIDE}}}[W]))': NO_ERRORS,
    "sum by (stage) (increase(soundmill_quarantined_total[W]))": QUARANTINED,
    "sum by (stage) (increase(soundmill_leases_expired_total[W]))": LEASES,
    "max(soundmill_jobs_late)": LATE,
    "absent(soundmill_stage_runs)": absent("the dispatcher counts"),
    'sum by (stage) (rate(soundmill_busy_seconds_total{device="cuda"}[W]))': NO_GPU,
    'count by (stage) (max by (stage, instance) (soundmill_model_info{device="cuda"}))': NO_GPU,
    "max by (of) (abs(soundmill_clock_skew_seconds))": PANELS[RELIABILITY, "Clocks apart", "A"],
    "max(soundmill_redis_memory_bytes)": PANELS[RELIABILITY, "Memory of Redis", "A"],
    "max(soundmill_redis_max_memory_bytes)": PANELS[RELIABILITY, "Memory of Redis", "B"],
    "soundmill_disk_free_bytes / soundmill_disk_bytes": free_by_process,
    # Twelve hours foretold from one minute: any number will do
    "predict_linear(soundmill_disk_free_bytes[W], 12 * 3600)": near(free_by_process, math.inf),
    "sum by (operation) (rate(soundmill_store_errors_total[W]))": UNBROKEN,
    "sum by (operation) (increase(soundmill_store_errors_total[W]))": UNBROKEN,
    "sum by (operation) (rate(soundmill_store_seconds_count[W]))": OPERATIONS_RATE,
    "sum by (job) (increase(soundmill_database_errors_total[W]))": UNBROKEN,
    "sum by (job) (increase(soundmill_broker_errors_total[W]))": UNBROKEN,
    'sum(increase(soundmill_webhook_deliveries_total{outcome=~"retried|failed"}[W]))': told(
        "retried"
    ),
    'sum(increase(soundmill_webhook_deliveries_total{outcome="delivered"}[W]))': told("delivered"),
}
