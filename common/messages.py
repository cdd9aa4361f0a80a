"""The messages on the queues: versioned JSON that holds ids, never audio, never masks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from common.db import ID_LENGTH
from common.domain import SERVICE_OF, Stage


class ShardMessage(BaseModel):
    """Asks a worker to claim and run a shard: the StageRuns whose ``shard_id`` this is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    shard_id: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{ID_LENGTH}}}$")]
    stage: Stage


def task_name(stage: Stage) -> str:
    """Return the name of the one Celery task of a stage's worker."""
    return f"{SERVICE_OF[stage]}.run_shard"
