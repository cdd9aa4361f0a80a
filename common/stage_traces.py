"""Attempts as spans: what was committed of each, below the request that brought its recording."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from common import traces
from common.domain import Outcome
from common.runs import Claim
from common.traces import Kind, Stretch

PHASES = ("download", "decode", "infer", "encode", "upload")
WELL = (Outcome.SUCCEEDED.value, Outcome.REUSED.value)


def tell_ends(claims: Iterable[Claim], attempts: Iterable[Mapping[str, Any]]) -> None:
    """Send a span for each attempt that has ended and had begun.

    Args:
        claims: What the attempts were at.
        attempts: Columns of their rows, as they were committed.
    """
    by_run = {claim.stage_run_id: claim for claim in claims}
    for row in attempts:
        if row["started_at"] is not None:
            _tell(by_run[row["run"]], row)


def _tell(claim: Claim, row: Mapping[str, Any]) -> None:
    phases_s = {phase: row[f"{phase}_s"] for phase in PHASES if row.get(f"{phase}_s") is not None}
    took_s = row["finished_at"] - row["started_at"]
    ids = {f"soundmill.{name}": value for name, value in claim.ids.items() if name != "trace_id"}
    traces.record(
        f"{claim.stage} attempt",
        traces.parse(claim.traceparent),
        Kind.CONSUMER,
        Stretch(row["started_at"], took_s, phases_s),
        {
            **ids,
            "soundmill.stage": claim.stage.value,
            "soundmill.outcome": row["outcome"],
            "soundmill.device": row["device"],
            "soundmill.audio_s": row["audio_s"],
            "soundmill.queue_wait_s": claim.queue_wait_s,
            "error.type": row["error_code"],
        },
        None if row["outcome"] in WELL else row["error_code"],
    )
