"""The dashboard "Archive operations": what is running, how fast, until when, and what failed."""

from panels import PER_STAGE, STAGE, Dashboard, Panel, Query, Section

NO_DISPATCHER = "no dispatcher answers Prometheus, or the database does not answer it."
NO_WORKER = "no worker has answered Prometheus in this time."
NO_INGESTER = "no ingester answers Prometheus."

# Only where every stage can tell: the one that cannot may be the slowest.
TIME_LEFT = (
    "max(soundmill:eta_seconds)"
    " and count(soundmill:eta_seconds) == count(soundmill:backlog_audio_seconds)"
)
RUNS = "max by (stage, state) (soundmill_stage_runs)"
RUNS_CHOSEN = 'sum by (state) (max by (stage, state) (soundmill_stage_runs{stage=~"$stage"}))'
RUNS_FAILED = 'sum(max by (stage, state) (soundmill_stage_runs{state=~"failed|quarantined"}))'

NOW = Section(
    "Now",
    (
        Panel(
            title="Jobs in work",
            unit="short",
            about="Jobs that have not ended, paused ones included.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(Query('sum(max by (state) (soundmill_jobs{state=~"open|closed"}))'),),
            kind="stat",
            width=4,
            height=4,
        ),
        Panel(
            title="Time left",
            unit="dtdurations",
            about="When the slowest stage will have done what waits now, at its present rate. Each "
            "job tells its own estimate: `soundmill status`.",
            absent="work waits for a stage in which none has ended for an hour; or nothing is "
            "known yet.",
            no_value="cannot be told",
            queries=(Query(TIME_LEFT),),
            kind="stat",
            width=4,
            height=4,
        ),
        Panel(
            title="Audio that waits",
            unit="h",
            about="Hours of audio not yet processed, summed over the stages: an hour that all four "
            "have before them counts four times.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(Query("sum(soundmill:backlog_audio_seconds) / 3600"),),
            kind="stat",
            width=4,
            height=4,
            decimals=1,
        ),
        Panel(
            title="Audio done in this time",
            unit="h",
            about="Hours of audio computed within the time shown, summed over the stages. Results "
            "that were there already are not counted.",
            absent=NO_WORKER,
            no_value="no worker",
            queries=(Query("sum(increase(soundmill_audio_seconds_total[$__range])) / 3600"),),
            kind="stat",
            width=4,
            height=4,
            decimals=1,
        ),
        Panel(
            title="Stage runs that failed",
            unit="short",
            about="Stage runs of all jobs that failed for good or are quarantined now. `soundmill "
            "retry` puts those of a job back to work.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(Query(RUNS_FAILED),),
            kind="stat",
            width=4,
            height=4,
            warn_at=1,
        ),
        Panel(
            title="Jobs past their deadline",
            unit="short",
            about="Unfinished jobs whose estimated end lies behind their deadline. What is not "
            "done by then is cancelled.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(Query("max(soundmill_jobs_late)"),),
            kind="stat",
            width=4,
            height=4,
            bad_at=1,
        ),
    ),
)

THROUGHPUT = Section(
    "How fast, and until when",
    (
        Panel(
            title="Audio hours per hour",
            unit="suffix: h/h",
            about="Hours of audio that each stage computes per hour, over the last five minutes. "
            "The stage that is slowest for its backlog decides when the archive is done.",
            absent=NO_WORKER,
            no_value="no worker",
            queries=(Query("soundmill:audio_hours_per_hour:rate5m", PER_STAGE),),
            width=12,
        ),
        Panel(
            title="Time left by stage",
            unit="s",
            about="Backlog over rate. It swings where recordings last hours, since audio counts "
            "when an attempt ends.",
            absent="work waits, and none has ended for an hour; or nothing is known yet.",
            no_value="cannot be told",
            queries=(Query("soundmill:eta_seconds", PER_STAGE),),
            width=12,
        ),
        Panel(
            title="Backlog in hours of audio",
            unit="h",
            about="Audio of stage runs that have not ended, those included that wait for another "
            "stage or belong to a paused job.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(
                Query(
                    "max by (stage, priority) (soundmill_backlog_audio_seconds) / 3600",
                    "{{stage}}, {{priority}}",
                ),
            ),
            width=12,
            stacked=True,
        ),
        Panel(
            title="Oldest work that waits",
            unit="s",
            about="How long the oldest stage run has been ready without being worked on. Paused "
            "jobs do not count; zero: nothing waits.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(Query("max by (stage) (soundmill_oldest_ready_age_seconds)", PER_STAGE),),
            width=12,
            warn_at=86_400,
        ),
    ),
)

FUNNEL = Section(
    "How far the work is",
    (
        Panel(
            title="Stage runs by stage and state",
            unit="short",
            about="Where the recordings of all jobs are now, from the first stage to the last.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(Query(RUNS),),
            kind="barchart",
            width=12,
        ),
        Panel(
            title="Stage runs by state",
            unit="short",
            about="The same over time, for the stages chosen above.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(Query(RUNS_CHOSEN, "{{state}}"),),
            width=12,
            stacked=True,
        ),
        Panel(
            title="Stage runs done per minute",
            unit="cpm",
            about="Attempts that ended well: computed, or answered from a result that was there.",
            absent=NO_WORKER,
            no_value="no worker",
            queries=(
                Query(
                    "60 * sum by (stage, outcome) (rate(soundmill_attempts_total"
                    '{stage=~"$stage",outcome=~"succeeded|reused"}[$__rate_interval]))',
                    "{{stage}}, {{outcome}}",
                ),
            ),
            width=12,
        ),
        Panel(
            title="Failures by code",
            unit="short",
            about="Stage runs of all jobs that have failed for good, by what was wrong. Which "
            "recordings they are: `soundmill status JOB`, or the job's errors.csv.",
            absent=f"nothing has failed; or {NO_DISPATCHER}",
            no_value="nothing failed",
            queries=(Query('max by (stage, code) (soundmill_failed_runs{stage=~"$stage"})'),),
            kind="table",
            width=12,
            columns=(("stage", "Stage"), ("code", "Code")),
            heading="Stage runs",
        ),
    ),
)

JOBS = Section(
    "Jobs",
    (
        Panel(
            title="Jobs by state",
            unit="short",
            about="All jobs that are not deleted. Open ones still take recordings.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(Query("max by (state) (soundmill_jobs)", "{{state}}"),),
        ),
        Panel(
            title="Jobs that are paused or late",
            unit="short",
            about="Paused: nothing new of them is begun. Late: they will not be done by their "
            "deadline.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(
                Query("max(soundmill_jobs_paused)", "paused"),
                Query("max(soundmill_jobs_late)", "late"),
            ),
        ),
        Panel(
            title="Jobs ended in this time",
            unit="short",
            about="How jobs ended within the time shown.",
            absent="no dispatcher has answered Prometheus in this time.",
            no_value="no dispatcher",
            queries=(
                Query(
                    "sum by (state) (increase(soundmill_jobs_ended_total[$__range]))", "{{state}}"
                ),
            ),
            kind="stat",
            decimals=0,
        ),
    ),
)

COMING_IN = Section(
    "Uploads and sources",
    (
        Panel(
            title="Bytes coming in",
            unit="Bps",
            about="Bodies of requests to the gateway, and what ingesters read from sources. What "
            "clients send straight to the object store is seen when its source is read.",
            absent="no gateway and no ingester answers Prometheus.",
            no_value="no gateway",
            queries=(
                Query("sum(rate(soundmill_upload_bytes_total[$__rate_interval]))", "uploads"),
                Query(
                    "sum by (kind) (rate(soundmill_ingest_bytes_total[$__rate_interval]))",
                    "sources: {{kind}}",
                ),
            ),
        ),
        Panel(
            title="Recordings per minute",
            unit="cpm",
            about="Files and entries that were stored, by the way they came. What comes in parts "
            "may be an archive, whose entries are counted as well.",
            absent="no gateway and no ingester answers Prometheus.",
            no_value="no gateway",
            queries=(
                Query(
                    "60 * sum by (way) (rate(soundmill_recordings_stored_total[$__rate_interval]))",
                    "uploads: {{way}}",
                ),
                Query(
                    "60 * sum by (kind) (rate(soundmill_source_entries_total"
                    '{outcome="recorded"}[$__rate_interval]))',
                    "sources: {{kind}}",
                ),
            ),
        ),
        Panel(
            title="Sources by state",
            unit="short",
            about="Archives, manifests, prefixes and lists of addresses: pending ones wait for an "
            "ingester, running ones are being read.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(Query("max by (state) (soundmill_sources)", "{{state}}"),),
        ),
        Panel(
            title="Sources read in this time",
            unit="short",
            about="How readings of sources ended within the time shown. Postponed ones are read on "
            "after an outage.",
            absent=NO_INGESTER,
            no_value="no ingester",
            queries=(
                Query(
                    "sum by (kind, outcome) (increase(soundmill_sources_read_total[$__range]))",
                ),
            ),
            kind="table",
            width=12,
            decimals=0,
            columns=(("kind", "Kind"), ("outcome", "Outcome")),
            heading="Sources",
        ),
        Panel(
            title="Entries rejected in this time",
            unit="short",
            about="Entries of sources that could not become recordings; the rest of their source "
            "went on. What the codes mean: docs/sources.md.",
            absent="nothing has been rejected since the ingesters started, or none answers.",
            no_value="nothing rejected",
            queries=(
                Query(
                    "sum by (kind, reason) (increase(soundmill_source_entries_total"
                    '{outcome="rejected"}[$__range]))',
                ),
            ),
            kind="table",
            width=12,
            decimals=0,
            columns=(("kind", "Kind"), ("reason", "Reason")),
            heading="Entries",
        ),
    ),
)

BOARD = Dashboard(
    uid="soundmill-operations",
    title="Archive operations",
    about="What is running, how fast, when it will be done, and what failed.",
    sections=(NOW, THROUGHPUT, FUNNEL, JOBS, COMING_IN),
    variables=(STAGE,),
)
