"""Every setting of every process, read from ``SOUNDMILL_*`` environment variables.

One frozen object, read once per process by ``get_settings``; secrets are ``SecretStr`` so that
printing the object shows none. Defaults are those of the embedded mode.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

OptionalPath = Annotated[Path | None, BeforeValidator(lambda value: value or None)]
"""A path; a variable that is set to nothing is not set."""


class Settings(BaseSettings):
    """Settings of one process. Durations in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="SOUNDMILL_", frozen=True, extra="ignore")

    # Where things are
    home: Path = Path.home() / ".soundmill"
    database_url: SecretStr = SecretStr("")  # default: SQLite in home
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    store_url: str = ""  # "s3://bucket", or "file:///path"; default: a directory in home
    s3_endpoint: str = "127.0.0.1:9000"
    s3_access_key: SecretStr = SecretStr("")
    s3_secret_key: SecretStr = SecretStr("")
    s3_region: str = "us-east-1"
    s3_secure: bool = True
    s3_public_endpoint: str = ""  # host:port at which clients reach the store; empty: they do not
    scratch_dir: Path = Path()  # default: a folder in home

    # Gateway
    host: str = "127.0.0.1"
    port: int = Field(default=8420, ge=0, le=65535)
    max_upload_bytes: int = 50 * 1024**3
    max_recordings_per_job: int = 1_000_000
    embedded: bool = False  # one user, one machine: no key is needed on the loopback address
    requests_per_minute: int = 30_000  # of one API key; a key may have a limit of its own
    idempotency_ttl_s: float = 24 * 3600.0
    upload_ttl_s: float = 7 * 24 * 3600.0  # a multipart upload that is not used by then is removed

    # Sources: where the ingester may read, and how much
    import_buckets: str = ""  # comma-separated buckets that s3:// addresses may name
    import_roots: str = ""  # comma-separated folders that file:// addresses may lie in
    egress_allow: str = ""  # comma-separated host:port or network that URLs may reach besides
    ingest_threads: int = Field(default=8, ge=1)  # entries of one source stored at once
    ingest_lease_s: float = 30.0
    max_archive_bytes: int = 4 * 1024**4  # of all entries of one archive, unpacked
    max_archive_ratio: float = 250.0  # unpacked over packed, of what is over a gigabyte
    url_timeout_s: float = 60.0
    url_attempts: int = 4

    # Webhooks
    webhook_timeout_s: float = 15.0
    webhook_retries_s: tuple[float, ...] = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)

    # Recordings
    max_duration_s: float = 24 * 3600.0
    max_channels: int = 64
    min_sample_rate: int = 2_000
    max_sample_rate: int = 384_000

    # Dispatcher
    dispatch_interval_s: float = 0.2
    count_interval_s: float = 0.5
    shard_audio_s: float = 120.0
    shard_max_runs: int = 64
    min_shards_per_queue: int = 2
    lost_message_grace_s: float = 10.0
    dispatch_timeout_s: float = 3600.0
    max_attempts: int = 3
    max_outage_attempts: int = 10  # while the object store does not answer or the disk is full
    max_crashes_alone: int = 3
    retry_backoff_s: float = 2.0

    # Workers
    lease_s: float = 30.0
    soft_time_limit_s: int = 6 * 3600
    hard_time_limit_s: int = 6 * 3600 + 120
    drain_grace_s: float = 15.0  # a worker that is to stop gives back what it has not done by then
    torch_threads: int = Field(default=1, ge=1)
    device: str = "auto"  # "auto", "cpu" or "cuda"
    classifier_weights: OptionalPath = None  # of one's own, in place of those that are shipped

    # Texts, in the gateway and in ``soundmill text``
    text_encoder: OptionalPath = None  # a folder with a model of model2vec; nothing is downloaded
    text_encoder_threshold: float = Field(default=0.75, ge=0.0, le=1.0)  # the least similarity

    # Watching: every process but the gateway, which has its own port, serves /metrics, /health and
    # /ready here
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = Field(default=None, ge=0, le=65535)  # None: not served; 0: any free
    min_free_bytes: int = 1024**3  # of scratch and of a directory store; below, not ready
    max_clock_skew_s: float = 5.0  # between a process, the database and Redis

    log_level: str = "INFO"
    log_json: bool = True

    @model_validator(mode="after")
    def _fill_from_home(self) -> Settings:
        if not self.database_url.get_secret_value():
            url = f"sqlite:///{self.home}/soundmill.db"
            object.__setattr__(self, "database_url", SecretStr(url))
        if not self.store_url:
            object.__setattr__(self, "store_url", f"file://{self.home}/objects")
        if self.scratch_dir == Path():
            object.__setattr__(self, "scratch_dir", self.home / "scratch")
        return self

    @property
    def visibility_timeout_s(self) -> int:
        """Redis redelivers an unacknowledged message after this; leases recover long before."""
        return 2 * self.hard_time_limit_s + 60


@cache
def get_settings() -> Settings:
    """Return the settings of this process."""
    return Settings()
