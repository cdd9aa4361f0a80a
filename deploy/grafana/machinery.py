"""The second half of the dashboard "Reliability": what the processes need, and the gateway."""

from panels import Panel, Query, Section

NO_DISPATCHER = "no dispatcher answers Prometheus."
NO_GATEWAY = "no gateway answers Prometheus."
NO_PROCESS = "no process of the chosen services answers Prometheus."

OF_JOB = '{job=~"$job"}'
RECENT_OF_JOB = '{job=~"$job"}[$__rate_interval]'


def per_minute(by: str, counter: str, selector: str = "[$__rate_interval]") -> str:
    """Return the query of how often something happens a minute."""
    return f"60 * sum by ({by}) (rate(soundmill_{counter}{selector}))"


NEEDS = Section(
    "Object store, database and Redis",
    (
        Panel(
            title="Time of the object store, 95th percentile",
            unit="s",
            about="How long operations take, without waiting for who sends or reads.",
            absent="the chosen services did not use the object store, or none answers.",
            no_value="not used",
            queries=(
                Query(
                    "histogram_quantile(0.95, sum by (operation, le) "
                    f"(rate(soundmill_store_seconds_bucket{RECENT_OF_JOB})))",
                    "{{operation}}",
                ),
            ),
        ),
        Panel(
            title="Operations of the object store",
            unit="ops",
            about="Operations a second, failed ones included.",
            absent="the chosen services have not used the object store, or none answers.",
            no_value="not used",
            queries=(
                Query(
                    f"sum by (operation) (rate(soundmill_store_seconds_count{RECENT_OF_JOB}))",
                    "{{operation}}",
                ),
            ),
        ),
        Panel(
            title="Errors of the object store",
            unit="cpm",
            about="Operations a minute that failed. Workers try again.",
            absent="none has failed since the processes started, or none answers.",
            no_value="none failed",
            queries=(
                Query(
                    per_minute("operation, reason", "store_errors_total", RECENT_OF_JOB),
                    "{{operation}}: {{reason}}",
                ),
            ),
        ),
        Panel(
            title="Errors of the database",
            unit="cpm",
            about="Transactions and queries a minute that the database refused or did not answer.",
            absent=NO_PROCESS,
            no_value="nothing answers",
            queries=(
                Query(
                    per_minute("job, reason", "database_errors_total", RECENT_OF_JOB),
                    "{{job}}: {{reason}}",
                ),
            ),
        ),
        Panel(
            title="Errors of Redis",
            unit="cpm",
            about="Times a minute that Redis did not answer or refused.",
            absent=NO_PROCESS,
            no_value="nothing answers",
            queries=(
                Query(
                    per_minute("job, reason", "broker_errors_total", RECENT_OF_JOB),
                    "{{job}}: {{reason}}",
                ),
            ),
        ),
        Panel(
            title="Turns of the dispatcher that failed",
            unit="cpm",
            about="Turns a minute that ended because the database or Redis did not answer. The "
            "next turn tries again.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(Query(per_minute("reason", "turns_failed_total"), "{{reason}}"),),
        ),
        Panel(
            title="Memory of Redis",
            unit="bytes",
            about="What Redis uses, and the most it may use. When it is full, nothing more is "
            "published; nothing is lost.",
            absent="no dispatcher answers Prometheus, or Redis does not answer it.",
            no_value="no dispatcher",
            queries=(
                Query("max(soundmill_redis_memory_bytes)", "used"),
                Query("max(soundmill_redis_max_memory_bytes)", "limit"),
            ),
        ),
        Panel(
            title="Size of the database",
            unit="bytes",
            about="All tables and indexes.",
            absent="no dispatcher answers Prometheus, or the database does not answer it.",
            no_value="no dispatcher",
            queries=(Query("max(soundmill_database_bytes)", "database"),),
        ),
        Panel(
            title="Free disk",
            unit="percentunit",
            about="Share of the disk that is free, of the fullest process of each service: scratch "
            "files, and the object store where that is a folder.",
            absent=NO_PROCESS,
            no_value="nothing answers",
            queries=(
                Query(
                    "min by (job, place) "
                    f"(soundmill_disk_free_bytes{OF_JOB} / soundmill_disk_bytes{OF_JOB})",
                    "{{job}}: {{place}}",
                ),
            ),
            maximum=1,
            warn_at=0.2,
            bad_at=0.1,
            falling=True,
        ),
    ),
)

HTTP = Section(
    "Gateway",
    (
        Panel(
            title="Requests by status",
            unit="reqps",
            about="Requests a second. 499: the client went away before its answer.",
            absent=NO_GATEWAY,
            no_value="no gateway",
            queries=(
                Query(
                    "sum by (status) (rate(soundmill_http_requests_total[$__rate_interval]))",
                    "{{status}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            title="Share of errors",
            unit="percentunit",
            about="Requests that the gateway failed (5xx) over all; probes are left out.",
            absent="nobody asked anything within the last minutes, or no gateway answers.",
            no_value="no requests",
            queries=(
                Query(
                    "(sum(rate(soundmill_http_requests_total"
                    '{status=~"5..",route!~"/(health|ready|metrics)"}[$__rate_interval]))'
                    " or vector(0))"
                    " / (sum(rate(soundmill_http_requests_total"
                    '{route!~"/(health|ready|metrics)"}[$__rate_interval])) > 0)',
                    "5xx",
                ),
            ),
            bad_at=0.05,
        ),
        Panel(
            title="Time of an answer, 95th percentile",
            unit="s",
            about="The ten slowest routes, from the first byte of a request to the last of the "
            "answer: uploads, downloads and streams of events take as long as their client.",
            absent="nobody asked anything within the last minutes, or no gateway answers.",
            no_value="no requests",
            queries=(
                Query(
                    "topk(10, histogram_quantile(0.95, sum by (method, route, le) "
                    "(rate(soundmill_http_request_seconds_bucket[$__rate_interval]))) >= 0)",
                    "{{method}} {{route}}",
                ),
            ),
        ),
        Panel(
            title="Requests being answered",
            unit="short",
            about="Requests under way now, streams of events included.",
            absent=NO_GATEWAY,
            no_value="no gateway",
            queries=(Query("sum(soundmill_http_requests_in_progress)", "requests"),),
        ),
        Panel(
            title="Deliveries to webhooks",
            unit="cpm",
            about="Deliveries a minute: arrived, to be tried again, or given up.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(Query(per_minute("outcome", "webhook_deliveries_total"), "{{outcome}}"),),
        ),
        Panel(
            title="Deliveries that wait",
            unit="short",
            about="Events on their way to webhooks, those included that wait for another try.",
            absent="no dispatcher answers Prometheus, or the database does not answer it.",
            no_value="no dispatcher",
            queries=(Query("max(soundmill_webhook_deliveries_pending)", "deliveries"),),
        ),
        Panel(
            title="Memory of gateway, dispatcher and ingester",
            unit="bytes",
            about="Resident memory of the largest process of each. Workers: Stages and devices.",
            absent="none of the three answers Prometheus.",
            no_value="nothing answers",
            queries=(
                Query(
                    "max by (job) (process_resident_memory_bytes"
                    '{job=~"gateway|dispatcher|ingester"})',
                    "{{job}}",
                ),
            ),
            width=12,
        ),
        Panel(
            title="Cleared away",
            unit="cpm",
            about="What the dispatcher's sweeper removes a minute: deleted jobs, results that "
            "nobody uses any more, uploads that were given up.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(Query(per_minute("kind", "swept_total"), "{{kind}}"),),
            width=12,
        ),
    ),
)
