"""``soundmill submit --dry-run``: what an order comes to, without processing anything.

What lies on this machine is looked at here and not sent, but for archives and manifests, which only
the server reads.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

from client.api import Estimate, Gateway, Job
from client.sources import Source, Unreadable
from common.domain import JobState


def estimate_files(sources: Iterable[Source]) -> Estimate:
    """Return what recordings on this machine come to, from their first and last bytes."""
    files = size_bytes = unknown_length = 0
    audio_s = 0.0
    fails: Counter[str] = Counter()
    for source in sources:
        try:
            length_s = length_of(source)
        except Unreadable:
            fails["unreadable"] += 1
            continue
        if source.size_bytes() == 0:
            fails["audio_empty"] += 1
            continue
        files += 1
        size_bytes += source.size_bytes()
        audio_s += length_s or 0.0
        unknown_length += length_s is None
    return Estimate(
        files=files,
        size_bytes=size_bytes,
        audio_s=audio_s,
        unknown_length=unknown_length,
        would_fail=dict(fails),
    )


def length_of(source: Source) -> float | None:
    """Return the likely length in seconds, None where it cannot be told without decoding.

    Raises:
        Unreadable: the file is gone or may not be read.
    """
    if source.entry is not None:
        return None
    source.identity()
    try:
        from common.probe import HEAD_BYTES, TAIL_BYTES, probe_s
    except ImportError:  # of soundmill[gateway]; without it nothing can be told
        return None
    try:
        with source.path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(0, size_bytes - TAIL_BYTES))
            return probe_s(head, file.read(), size_bytes)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from error


def together(first: Estimate, second: Estimate, seconds_per_audio_s: float | None) -> Estimate:
    """Return two estimates as one; the time it takes follows from the pace, where one is known."""
    audio_s = first.audio_s + second.audio_s
    pace = seconds_per_audio_s
    if second.eta_s is not None and second.audio_s > 0:
        pace = second.eta_s / second.audio_s
    return Estimate(
        files=first.files + second.files,
        size_bytes=first.size_bytes + second.size_bytes,
        audio_s=audio_s,
        unknown_length=first.unknown_length + second.unknown_length,
        would_fail=dict(Counter(first.would_fail) + Counter(second.would_fail)),
        eta_s=None if pace is None else pace * audio_s,
    )


def pace_of(gateway: Gateway, stages: list[str]) -> float | None:
    """Return the seconds a second of audio took in the newest completed job with these stages."""
    for job in gateway.jobs(state=JobState.COMPLETED):
        took_s = elapsed_s(job)
        if not job.dry_run and job.audio_s_done > 0 and took_s and set(job.stages) == set(stages):
            return took_s / job.audio_s_done
    return None


def elapsed_s(job: Job) -> float | None:
    """Return how long a job took, None before its end."""
    if job.finished_at is None:
        return None
    return (job.finished_at - job.created_at).total_seconds()
