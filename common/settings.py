"""Every setting of every process, read from ``SOUNDMILL_*`` environment variables.

One frozen object, read once per process by ``get_settings``; secrets are ``SecretStr`` so that
printing the object shows none. Defaults are those of the embedded mode.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


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
    scratch_dir: Path = Path()  # default: a folder in home

    # Gateway
    host: str = "127.0.0.1"
    port: int = Field(default=8420, ge=0, le=65535)
    max_upload_bytes: int = 50 * 1024**3
    max_recordings_per_job: int = 1_000_000

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
    torch_threads: int = Field(default=1, ge=1)
    device: str = "auto"  # "auto", "cpu" or "cuda"

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
