"""The messages on the queues: versioned JSON that holds ids, never audio, never masks.

How a new version comes in beside an old one is decision 0011.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.db import ID_LENGTH
from common.domain import SERVICE_OF, Stage
from common.errors import MessageRefused

VERSION = 1
SHARD_ID = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")


class ShardMessage(BaseModel):
    """Asks a worker to claim and run a shard: the StageRuns whose ``shard_id`` this is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    shard_id: Annotated[str, Field(pattern=rf"^{SHARD_ID.pattern}$")]
    stage: Stage


def read_shard_message(content: Any, stage: Stage) -> ShardMessage:
    """Return what a worker of ``stage`` was sent.

    Raises:
        MessageRefused: another version or stage, or nothing that we would send. In every version a
            message is an object that names its ``version`` and ``shard_id``.
    """
    fields = content if isinstance(content, dict) else {}
    shard_id = fields.get("shard_id")
    if not (isinstance(shard_id, str) and SHARD_ID.fullmatch(shard_id)):
        shard_id = None
    version = fields.get("version")
    if type(version) is int and version != VERSION:
        raise MessageRefused(f"version {version}, this worker knows {VERSION}", shard_id)
    try:
        message = ShardMessage.model_validate(content)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise MessageRefused(f"not valid: {wrong}", shard_id) from error
    if message.stage is not stage:
        raise MessageRefused(f"for {message.stage}, this worker does {stage}", shard_id)
    return message


def task_name(stage: Stage) -> str:
    """Return the name of the one Celery task of a stage's worker."""
    return f"{SERVICE_OF[stage]}.run_shard"
