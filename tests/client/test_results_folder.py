"""Fetching and reporting: whole folders or none, every failure named."""

from __future__ import annotations

import csv
import errno
import io
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from client.api import Artifact, Gateway, Job, Recording, Run
from client.errors import Problem
from client.fetch import Fetched, fetch_all
from client.report import Report
from client.sources import Source
from client.submission import NotSent, Submission
from client.submit import Sender
from common.domain import ArtifactKind, JobState, Priority, RunState, Stage
from common.errors import DiskFull

EVENTS = {"tags": [{"label": "siren", "confidence": 0.9}], "events": [{"label": "siren"}] * 3}
ALL_KINDS = tuple(ArtifactKind)


class FakeGateway:
    """Hands out small files; ``breaks_at`` names the one it cannot deliver."""

    def __init__(self, breaks_at: str = "", error: Exception | None = None) -> None:
        self.breaks_at = breaks_at
        self.error = error
        self.sent: list[str] = []

    def download(self, recording_id: str, what: str, path: Path) -> None:
        path.write_text(json.dumps(EVENTS) if what == "events.json" else what)
        if what == self.breaks_at and self.error is not None:
            raise self.error

    def upload(
        self, job_id: str, name: str, blocks: Callable[[], Iterable[bytes]], idempotency_key: str
    ) -> None:
        if name == "refused.wav":
            raise Problem(422, "name_invalid", "a name like that is refused")
        content = b"".join(blocks())
        self.sent.append(f"{name} {len(content)}")


def gateway(breaks_at: str = "", error: Exception | None = None) -> Gateway:
    return cast(Gateway, FakeGateway(breaks_at, error))


def recording(
    name: str, state: RunState = RunState.SUCCEEDED, kinds: tuple[ArtifactKind, ...] = ALL_KINDS
) -> Recording:
    detail = "no known audio format" if state is RunState.FAILED else None
    runs = [
        Run(stage=Stage.SEGMENT, state=state, error_code="audio_unreadable", error_detail=detail),
        Run(
            stage=Stage.CLASSIFY,
            state=RunState.SKIPPED if detail else state,
            error_code=None,
            error_detail=None,
        ),
    ]
    artifacts = [Artifact(kind=kind, media_type="audio/flac", size_bytes=1) for kind in kinds]
    return Recording(
        id=name.encode().hex(), position=0, name=name, size_bytes=9, duration_s=None if detail
        else 90.0, runs=runs, artifacts=artifacts,
    )  # fmt: skip


def report(folder: Path) -> Report:
    started = datetime(2026, 1, 1, tzinfo=UTC)
    job = Job(
        id="ab" * 16,
        name="harbour",
        state=JobState.COMPLETED,
        priority=Priority.BULK,
        stages=[Stage.SEGMENT, Stage.CLASSIFY],
        created_at=started,
        finished_at=started + timedelta(seconds=10),
        recordings=2,
        counts={},
        audio_s_total=0,
        audio_s_done=0,
        rate=None,
        eta_s=None,
    )
    return Report(job, job.stages, folder)


def printed(what: Report) -> str:
    out = io.StringIO()
    what.print(Console(file=out, width=100))
    return out.getvalue()


def test_one_folder_per_recording_with_every_result(tmp_path: Path) -> None:
    fetched: list[Fetched] = []
    rows = [recording("a/siren.wav"), recording("siren.wav"), recording("siren.mp3")]
    fetch_all(gateway(), rows, tmp_path, fetched.append)
    assert [item.folder for item in fetched] == [
        tmp_path / name for name in ("a_siren", "siren", "siren-2")
    ]
    assert sorted(path.name for path in (tmp_path / "siren").iterdir()) == [
        "enhanced.flac",
        "events.csv",
        "events.json",
        "explanation.zip",
        "labels.txt",
        "manifest.json",
        "mask.npz",
        "regions.json",
        "removals.json",
        "restored.flac",
    ]


def test_recording_without_results_gets_no_folder(tmp_path: Path) -> None:
    fetched: list[Fetched] = []
    rows = [recording("bad.wav", RunState.FAILED, kinds=())]
    fetch_all(gateway(), rows, tmp_path, fetched.append)
    assert fetched[0].folder is None
    assert list(tmp_path.iterdir()) == []


def test_fetching_again_replaces(tmp_path: Path) -> None:
    (tmp_path / "siren").mkdir()
    (tmp_path / "siren" / "old.txt").write_text("from before")
    fetch_all(gateway(), [recording("siren.wav")], tmp_path, lambda _: None)
    assert not (tmp_path / "siren" / "old.txt").exists()
    assert (tmp_path / "siren" / "manifest.json").exists()


def test_full_disk_says_so_and_leaves_nothing_partial(tmp_path: Path) -> None:
    full = gateway("artifacts/mask", OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(DiskFull, match="The disk is full"):
        fetch_all(full, [recording("siren.wav")], tmp_path, lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_broken_download_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "siren").mkdir()
    broken = gateway("manifest", Problem(500, "internal_error", "went wrong"))
    with pytest.raises(Problem, match="went wrong"):
        fetch_all(broken, [recording("siren.wav")], tmp_path, lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["siren"]


def test_report_names_every_failure_and_its_reason(tmp_path: Path) -> None:
    what = report(tmp_path)
    rows = [recording("siren.wav"), recording("bad.wav", RunState.FAILED, kinds=())]
    fetch_all(gateway(), rows, tmp_path, what.add)
    what.add_not_sent([NotSent("gone.wav", "the file is no longer there")])
    assert [row.name for row in what.failures] == ["bad.wav", "gone.wav"]
    text = printed(what)
    assert "failed: bad.wav: segment: no known audio format" in text
    assert "failed: gone.wav: not sent: the file is no longer there" in text
    assert "1 of 3 recordings succeeded in every stage; 90 s of audio in 10 s." in text
    assert "Speed: 9.0 audio hours processed per hour." in text
    assert f"Results: {tmp_path}/" in text
    assert what.as_json()["failed"] == 2


def test_job_that_goes_on_is_no_failure(tmp_path: Path) -> None:
    what = report(tmp_path)
    what.job = what.job.model_copy(update={"state": JobState.CLOSED, "finished_at": None})
    rows = [recording("siren.wav"), recording("next.wav", RunState.RUNNING, kinds=())]
    fetch_all(gateway(), rows, tmp_path, what.add)
    assert what.failures == []
    assert "1 recordings are not through yet" in printed(what)


def test_long_report_shows_the_first_rows(tmp_path: Path) -> None:
    what = report(tmp_path)
    fetch_all(gateway(), [recording(f"{k:03}.wav") for k in range(50)], tmp_path, what.add)
    text = printed(what)
    assert "019.wav" in text
    assert "020.wav" not in text
    assert "and 30 more" in text


def test_csv_holds_every_recording_and_no_formula(tmp_path: Path) -> None:
    what = report(tmp_path)
    fetch_all(gateway(), [recording("=cmd().wav"), recording("b.wav")], tmp_path, what.add)
    with what.write_csv().open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["'=cmd().wav", "b.wav"]
    assert rows[1]["top_label"] == "siren"
    assert rows[1]["events"] == "3"
    assert rows[1]["segment"] == "succeeded"


def test_one_bad_file_does_not_stop_the_others(tmp_path: Path) -> None:
    for name in ("a.wav", "refused.wav", "z.wav"):
        (tmp_path / name).write_bytes(b"123")
    sources = [Source(p.name, p) for p in sorted(tmp_path.iterdir())]
    sources.insert(1, Source("gone.wav", tmp_path / "gone.wav"))
    fake = FakeGateway()
    submission = Submission(total=4)
    Sender(cast(Gateway, fake), "job", submission, lambda: None).send_files(sources)
    assert sorted(fake.sent) == ["a.wav 3", "z.wav 3"]
    assert submission.sent == 2
    assert sorted(submission.not_sent, key=lambda failure: failure.name) == [
        NotSent("gone.wav", "the file is no longer there"),
        NotSent("refused.wav", "a name like that is refused"),
    ]
