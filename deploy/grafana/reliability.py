"""The dashboard "Reliability": what was lost, tried again or refused, and who is to blame."""

from machinery import HTTP, NEEDS, per_minute
from panels import JOB, PER_STAGE, STAGE, Dashboard, Panel, Query, Section

NO_DISPATCHER = "no dispatcher answers Prometheus."
NO_WORKER = "no worker answers Prometheus."
NO_PROCESS = "no process of the chosen services answers Prometheus."

RECENT = '{stage=~"$stage"}[$__rate_interval]'
OF_JOB = '{job=~"$job"}'


def number(title: str, about: str, absent: str, query: str, bad: bool = True) -> Panel:
    """Return a small panel of one number that should be zero."""
    return Panel(
        title=title,
        unit="short",
        about=about,
        absent=absent,
        no_value="cannot be told",
        queries=(Query(query),),
        kind="stat",
        width=4,
        height=4,
        decimals=0,
        warn_at=None if bad else 1,
        bad_at=1 if bad else None,
    )


NOW = Section(
    "Now",
    (
        number(
            "Alerts that page",
            "Alerts that wake somebody and fire now. Which: Alerting in Grafana, or the page "
            "/alerts of Prometheus. Each has a page in docs/runbooks.",
            "Prometheus does not answer.",
            'count(ALERTS{alertstate="firing",severity="page"}) or vector(0)',
        ),
        number(
            "Alerts that wait",
            "Alerts that fire now and can wait until morning.",
            "Prometheus does not answer.",
            'count(ALERTS{alertstate="firing",severity="ticket"}) or vector(0)',
            bad=False,
        ),
        number(
            "Processes that do not answer",
            "Processes that Prometheus knows, of the chosen services, and cannot reach.",
            "Prometheus knows no process of the chosen services.",
            f"count(up{OF_JOB}) - sum(up{OF_JOB})",
        ),
        number(
            "Failed checks",
            "Checks that fail now, over all processes of the chosen services.",
            NO_PROCESS,
            f"count(soundmill_ready{OF_JOB}) - sum(soundmill_ready{OF_JOB})",
        ),
        number(
            "In quarantine",
            "Stage runs that killed their worker again and again. They stay until somebody "
            "retries their job.",
            NO_DISPATCHER,
            'sum(max by (stage) (soundmill_stage_runs{state="quarantined"}))',
            bad=False,
        ),
        number(
            "Leases expired in this time",
            "Stage runs that were taken from workers which died or lost the database, within the "
            "time shown.",
            "no dispatcher has answered Prometheus in this time.",
            "sum(increase(soundmill_leases_expired_total[$__range]))",
            bad=False,
        ),
    ),
)

READINESS = Section(
    "Readiness",
    (
        Panel(
            title="Checks",
            unit="bool",
            about="What each service needs: red where one of its processes is not ready.",
            absent=NO_PROCESS,
            no_value="nothing answers",
            queries=(
                Query(f"min by (job, check) (soundmill_ready{OF_JOB})", "{{job}}: {{check}}"),
            ),
            kind="state-timeline",
            width=16,
            height=12,
        ),
        Panel(
            title="Clocks apart",
            unit="s",
            about="Largest difference between the clock of a process and another one. From 5 s on "
            "a process says that something is wrong.",
            absent=NO_PROCESS,
            no_value="nothing answers",
            queries=(Query(f"max by (of) (abs(soundmill_clock_skew_seconds{OF_JOB}))", "{{of}}"),),
            height=12,
            warn_at=2,
            bad_at=5,
        ),
    ),
)

LOST = Section(
    "Lost and tried again",
    (
        Panel(
            title="Error ratio",
            unit="percentunit",
            about="Failed attempts over all: those of the last five minutes, and, over thirty, "
            "those for which the recordings are not to blame.",
            absent="nothing ended in that time, or no worker answers Prometheus.",
            no_value="nothing ended",
            queries=(
                Query('soundmill:error_ratio:rate5m{stage=~"$stage"}', "{{stage}}: all"),
                Query('soundmill:fault_ratio:rate30m{stage=~"$stage"}', "{{stage}}: our fault"),
            ),
            warn_at=0.05,
            bad_at=0.5,
        ),
        Panel(
            title="Retries by reason",
            unit="cpm",
            about="Attempts a minute after which the stage run is tried again. Those given back "
            "(same_work_elsewhere, worker_stopping, shard_out_of_time) are no failures.",
            absent=NO_WORKER,
            no_value="no worker",
            queries=(
                Query(
                    "60 * sum by (reason) (rate(soundmill_attempts_total"
                    '{stage=~"$stage",outcome="transient"}[$__rate_interval]))',
                    "{{reason}}",
                ),
            ),
        ),
        Panel(
            title="Failures for good by reason",
            unit="cpm",
            about="Attempts a minute that ended a stage run in failure. audio_...: the recording "
            "is to blame.",
            absent=NO_WORKER,
            no_value="no worker",
            queries=(
                Query(
                    "60 * sum by (reason) (rate(soundmill_attempts_total"
                    '{stage=~"$stage",outcome="permanent"}[$__rate_interval]))',
                    "{{reason}}",
                ),
            ),
        ),
        Panel(
            title="Leases and messages lost",
            unit="cpm",
            about="Stage runs a minute that dispatchers took back: their worker died, or Redis no "
            "longer had their message.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(
                Query(per_minute("stage", "leases_expired_total", RECENT), "{{stage}}: leases"),
                Query(per_minute("stage", "messages_lost_total", RECENT), "{{stage}}: messages"),
            ),
        ),
        Panel(
            title="Writes refused by the fence",
            unit="cpm",
            about="Ends of attempts a minute that were discarded because the run had been taken "
            "away: late, and harmless.",
            absent=NO_WORKER,
            no_value="no worker",
            queries=(Query(per_minute("stage", "fenced_writes_total", RECENT), PER_STAGE),),
        ),
        Panel(
            title="Messages by what became of them",
            unit="cpm",
            about="Messages a minute that workers took from their queues. Stale: none of its runs "
            "was to be had; refused: of an unknown version.",
            absent=NO_WORKER,
            no_value="no worker",
            queries=(Query(per_minute("outcome", "messages_total", RECENT), "{{outcome}}"),),
        ),
        Panel(
            title="Deaths of workers",
            unit="short",
            about="Children of workers that ended unexpectedly within the time shown, by signal or "
            "exit code. SIGKILL is mostly the kernel, for want of memory.",
            absent="no worker has died, or none answers Prometheus.",
            no_value="none died",
            queries=(
                Query(
                    "sum by (stage, reason) (increase(soundmill_worker_deaths_total"
                    '{stage=~"$stage"}[$__range]))',
                ),
            ),
            kind="table",
            decimals=0,
            columns=(("stage", "Stage"), ("reason", "Reason")),
            heading="Deaths",
        ),
        Panel(
            title="Quarantine",
            unit="short",
            about="Stage runs put into quarantine within the time shown: each killed its worker "
            "three times while alone.",
            absent="no dispatcher has answered Prometheus in this time.",
            no_value="no dispatcher",
            queries=(
                Query(
                    "sum by (stage) (increase(soundmill_quarantined_total"
                    '{stage=~"$stage"}[$__range]))',
                    PER_STAGE,
                ),
            ),
            kind="stat",
            decimals=0,
            warn_at=1,
        ),
        Panel(
            title="Turns of the dispatcher",
            unit="s",
            about="How long a turn takes: publishing, recovering, counting.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(
                Query(
                    "histogram_quantile(0.5, sum by (le) "
                    "(rate(soundmill_turn_seconds_bucket[$__rate_interval])))",
                    "median",
                ),
                Query(
                    "histogram_quantile(0.95, sum by (le) "
                    "(rate(soundmill_turn_seconds_bucket[$__rate_interval])))",
                    "95th percentile",
                ),
            ),
        ),
    ),
)

BOARD = Dashboard(
    uid="soundmill-reliability",
    title="Reliability",
    about="What was lost, tried again or refused, and what the processes need.",
    sections=(NOW, READINESS, LOST, NEEDS, HTTP),
    variables=(STAGE, JOB),
)
