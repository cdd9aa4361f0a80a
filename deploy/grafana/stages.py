"""The dashboard "Stages and devices": how fast each stage is, and where its time and memory go."""

from panels import PER_STAGE, STAGE, STAGES, Dashboard, Panel, Query, Section

NO_DISPATCHER = "no dispatcher answers Prometheus."
NO_WORKER = "no worker of the stage answers Prometheus."
IDLE = "nothing ended within the last minutes, or no worker of the stage answers."

CHOSEN = '{stage=~"$stage"}'
RECENT = '{stage=~"$stage"}[$__rate_interval]'


def quantile(share: float, histogram: str) -> str:
    """Return the query of a quantile by stage."""
    buckets = f"sum by (stage, le) (rate(soundmill_{histogram}_bucket{RECENT}))"
    return f"histogram_quantile({share}, {buckets})"


def mean(histogram: str) -> str:
    """Return the query of a mean by stage; absent where there was nothing."""
    total = f"sum by (stage) (rate(soundmill_{histogram}_sum{RECENT}))"
    return f"{total} / (sum by (stage) (rate(soundmill_{histogram}_count{RECENT})) > 0)"


def phases(stage: str) -> Panel:
    """Return the panel of where the time of one stage goes."""
    recent = f'{{stage="{stage}"}}[$__rate_interval]'
    return Panel(
        title=f"Phases of {stage}",
        unit="s",
        about="How long an attempt takes on average, by what it does meanwhile. Only `infer` uses "
        "the GPU.",
        absent=IDLE,
        no_value="nothing ended",
        queries=(
            Query(
                f"sum by (phase) (rate(soundmill_phase_seconds_sum{recent}))"
                f" / (sum by (phase) (rate(soundmill_phase_seconds_count{recent})) > 0)",
                "{{phase}}",
            ),
        ),
        width=6,
        stacked=True,
    )


SPEED = Section(
    "Speed",
    (
        Panel(
            title="Real-time factor, median",
            unit="none",
            about="Processing time over length of the audio, of one worker, over five minutes. "
            "Lower is faster: 0.01 is a hundred times real time.",
            absent=IDLE,
            no_value="nothing ended",
            queries=(Query(f"soundmill:real_time_factor:p50_5m{CHOSEN}", PER_STAGE),),
            decimals=4,
        ),
        Panel(
            title="Real-time factor, 95th percentile",
            unit="none",
            about="One in twenty attempts is slower than this. Short recordings have the highest "
            "factors: opening a file takes its time.",
            absent=IDLE,
            no_value="nothing ended",
            queries=(Query(f"soundmill:real_time_factor:p95_5m{CHOSEN}", PER_STAGE),),
            decimals=4,
        ),
        Panel(
            title="Speed of a worker by device",
            unit="suffix:×",
            about="Seconds of audio per second of work: how many times real time one worker is.",
            absent=IDLE,
            no_value="nothing ended",
            queries=(
                Query(
                    f"sum by (stage, device) (rate(soundmill_audio_seconds_total{RECENT}))"
                    f" / (sum by (stage, device) (rate(soundmill_busy_seconds_total{RECENT})) > 0)",
                    "{{stage}} on {{device}}",
                ),
            ),
        ),
        Panel(
            title="Audio hours per hour by model and device",
            unit="suffix: h/h",
            about="Who does the work: the model is named by the first digits of its weights' hash.",
            absent=f"no model has been loaded yet, or {NO_WORKER}",
            no_value="no model",
            queries=(
                Query(
                    f"sum by (stage, model, device) (rate(soundmill_audio_seconds_total{RECENT}))",
                    "{{stage}} {{model}} on {{device}}",
                ),
            ),
        ),
        Panel(
            title="Busy workers",
            unit="short",
            about="Seconds of work per second, beside the number of workers. Attempts count at "
            "their end, so long ones show as peaks above that number.",
            absent=NO_WORKER,
            no_value="no worker",
            queries=(
                Query(
                    f"sum by (stage) (rate(soundmill_busy_seconds_total{RECENT}))",
                    "{{stage}}: busy",
                ),
                Query(f"soundmill:workers{CHOSEN}", "{{stage}}: there"),
            ),
        ),
        Panel(
            title="Time of an attempt",
            unit="s",
            about="How long attempts took that computed their result.",
            absent=IDLE,
            no_value="nothing ended",
            queries=(
                Query(quantile(0.5, "attempt_seconds"), "{{stage}}: median"),
                Query(quantile(0.95, "attempt_seconds"), "{{stage}}: 95th percentile"),
            ),
        ),
    ),
)

PHASES = Section("Where the time goes", tuple(phases(stage) for stage in STAGES))

SHARDS = Section(
    "Shards and queues",
    (
        Panel(
            title="Fill of shards",
            unit="percentunit",
            about="How full a shard is on average: audio or recordings over the most that one may "
            "hold, whichever is more. Full ones fill batches; a recording that is longer than a "
            "shard counts as full.",
            maximum=1,
            absent=f"nothing was published within the last minutes, or {NO_DISPATCHER}",
            no_value="nothing published",
            queries=(Query(mean("shard_fill_ratio"), PER_STAGE),),
        ),
        Panel(
            title="Recordings per shard",
            unit="short",
            about="Stage runs in one message, on average. A low number in a large backlog means "
            "long recordings, or shards halved after a worker died.",
            absent=f"nothing was published within the last minutes, or {NO_DISPATCHER}",
            no_value="nothing published",
            queries=(Query(mean("shard_runs"), PER_STAGE),),
        ),
        Panel(
            title="Shards published per minute",
            unit="cpm",
            about="Messages that dispatchers sent to the workers' queues.",
            absent=NO_DISPATCHER,
            no_value="no dispatcher",
            queries=(
                Query(
                    "60 * sum by (stage, priority) "
                    f"(rate(soundmill_shards_published_total{RECENT}))",
                    "{{stage}}, {{priority}}",
                ),
            ),
        ),
        Panel(
            title="Messages in the queues",
            unit="short",
            about="Shards that wait in Redis. There are never more than two per busy worker: the "
            "backlog waits in the database.",
            absent="no dispatcher answers Prometheus, or Redis does not answer it.",
            no_value="no dispatcher",
            queries=(
                Query(
                    f"max by (stage, priority) (soundmill_queue_messages{CHOSEN})",
                    "{{stage}}, {{priority}}",
                ),
            ),
        ),
        Panel(
            title="Wait before the work, median",
            unit="s",
            about="Time from when a stage run could be worked on until a worker claimed it.",
            absent="nothing was claimed within the last minutes, or no worker answers.",
            no_value="nothing claimed",
            queries=(Query(quantile(0.5, "queue_wait_seconds"), PER_STAGE),),
        ),
        Panel(
            title="Wait before the work, 95th percentile",
            unit="s",
            about="One in twenty waits longer. The largest bucket ends at six hours: an archive "
            "that waits longer shows as six.",
            absent="nothing was claimed within the last minutes, or no worker answers.",
            no_value="nothing claimed",
            queries=(Query(quantile(0.95, "queue_wait_seconds"), PER_STAGE),),
        ),
    ),
)

MEMORY = Section(
    "Memory and models",
    (
        Panel(
            title="Memory of a worker",
            unit="bytes",
            about="Resident memory of the largest worker: its parent, and the child that holds "
            "the model. It does not grow with the length of recordings.",
            absent=NO_WORKER,
            no_value="no worker",
            queries=(
                Query(
                    f"max by (stage, process) (soundmill_process_memory_bytes{CHOSEN})",
                    "{{stage}}: {{process}}",
                ),
            ),
        ),
        Panel(
            title="Memory of the GPU",
            unit="bytes",
            about="Memory in use on the fullest GPU, by all its processes, and how much it has.",
            absent="no worker has used a GPU.",
            no_value="no GPU",
            queries=(
                Query(
                    f"max by (stage, kind) (soundmill_device_memory_bytes{CHOSEN})",
                    "{{stage}}: {{kind}}",
                ),
            ),
        ),
        Panel(
            title="Out of memory in this time",
            unit="short",
            about="Attempts that ended because the device or the machine had no memory left. They "
            "are tried again; a child that the kernel killed shows under Reliability.",
            absent="no worker has answered Prometheus in this time.",
            no_value="no worker",
            queries=(
                Query(
                    "sum by (stage) (increase(soundmill_attempts_total"
                    '{stage=~"$stage",reason="out_of_memory"}[$__range]))',
                    PER_STAGE,
                ),
            ),
            kind="stat",
            decimals=0,
            warn_at=1,
        ),
        Panel(
            title="Models in use",
            unit="short",
            about="Which weights are loaded, and by how many workers. Two of one stage: an upgrade "
            "is under way, or was not finished.",
            absent="no worker has loaded its model yet; it does so at its first message.",
            no_value="no model loaded",
            queries=(
                Query(
                    "count by (stage, model, device) (max by (stage, model, device, instance) "
                    f"(soundmill_model_info{CHOSEN}))",
                ),
            ),
            kind="table",
            columns=(("stage", "Stage"), ("model", "Weights"), ("device", "Device")),
            heading="Workers",
        ),
        Panel(
            title="Time to load the model",
            unit="s",
            about="How long the slowest worker took to load its model: what a restart costs.",
            absent="no worker has loaded its model yet; it does so at its first message.",
            no_value="no model loaded",
            queries=(Query(f"max by (stage) (soundmill_model_load_seconds{CHOSEN})", PER_STAGE),),
            kind="bargauge",
        ),
        Panel(
            title="Versions",
            unit="short",
            about="Which version of which service runs, in how many processes.",
            absent="no process of Soundmill answers Prometheus.",
            no_value="nothing answers",
            queries=(
                Query(
                    "count by (service, version) "
                    "(max by (service, version, instance) (soundmill_build_info))",
                ),
            ),
            kind="table",
            columns=(("service", "Service"), ("version", "Version")),
            heading="Processes",
        ),
    ),
)

BOARD = Dashboard(
    uid="soundmill-stages",
    title="Stages and devices",
    about="How fast each stage is on which device, and where its time and memory go.",
    sections=(SPEED, PHASES, SHARDS, MEMORY),
    variables=(STAGE,),
)
