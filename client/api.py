"""The gateway's HTTP API as typed calls. See ``/docs`` of a running gateway for all of it.

    with Gateway("http://127.0.0.1:8420") as gateway:
        job = gateway.create_job("harbour")
        gateway.upload(job.id, "siren.wav", lambda: [Path("siren.wav").read_bytes()])
        gateway.close_job(job.id)

Reading calls are repeated while the gateway is out of reach for a moment. An upload is repeated
only when it certainly did not arrive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict

from client.errors import GatewayUnreachable, Problem, SendingBroke
from common.domain import TERMINAL_STATES, ArtifactKind, JobState, Priority, RunState, Stage

TIMEOUT = httpx.Timeout(300.0, connect=10.0)
TRIES = 6
FIRST_PAUSE_S = 0.25
PAGE_SIZE = 200


class Record(BaseModel):
    """Base of what the gateway sends. Fields that this client does not know are left out."""

    model_config = ConfigDict(frozen=True)


class Job(Record):
    """A job and how far it is. ``rate`` is seconds of audio per second, ``eta_s`` seconds."""

    id: str
    name: str
    state: JobState
    priority: Priority
    stages: list[Stage]
    created_at: datetime
    finished_at: datetime | None
    recordings: int
    counts: dict[Stage, dict[RunState, int]]
    audio_s_total: float
    audio_s_done: float
    rate: float | None
    eta_s: float | None

    @property
    def is_finished(self) -> bool:
        return self.state in (JobState.COMPLETED, JobState.CANCELLED)

    def done(self, stage: Stage) -> int:
        """Return how many recordings a stage is through with, whatever became of them."""
        return sum(n for state, n in self.counts.get(stage, {}).items() if state in TERMINAL_STATES)

    def not_succeeded(self, stage: Stage) -> int:
        """Return how many recordings a stage ended without success on."""
        return self.done(stage) - self.counts.get(stage, {}).get(RunState.SUCCEEDED, 0)


class Run(Record):
    """One stage on one recording."""

    stage: Stage
    state: RunState
    error_code: str | None
    error_detail: str | None


class Artifact(Record):
    """A stored output."""

    kind: ArtifactKind
    media_type: str
    size_bytes: int


class Recording(Record):
    """An uploaded file, its stages and their outputs. Facts are None until it has been decoded."""

    id: str
    position: int
    name: str
    size_bytes: int
    duration_s: float | None = None
    sample_rate: int | None = None
    channels: int | None = None
    runs: list[Run] = []
    artifacts: list[Artifact] = []

    @property
    def succeeded(self) -> bool:
        return all(run.state is RunState.SUCCEEDED for run in self.runs)


class Gateway:
    """A connection to a gateway. Not for several threads at once, except ``download``."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            timeout=TIMEOUT,
            trust_env=not is_loopback(self.url),  # a proxy cannot reach this machine's loopback
            headers={"User-Agent": "soundmill"},
        )

    def __enter__(self) -> Gateway:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    # Jobs

    def create_job(
        self,
        name: str,
        *,
        priority: Priority = Priority.BULK,
        stages: Iterable[Stage] = tuple(Stage),
        params: dict[str, Any] | None = None,
    ) -> Job:
        """Open a job that takes recordings."""
        body = {"name": name, "priority": priority, "stages": list(stages), "params": params or {}}
        return Job.model_validate(self._send("POST", "/v1/jobs", json=body).json())

    def upload(self, job_id: str, name: str, blocks: Callable[[], Iterable[bytes]]) -> Recording:
        """Send one recording. ``blocks`` is called once per try and yields the file's bytes.

        Errors that ``blocks`` raises come through; the gateway keeps nothing of the recording.
        """
        path = f"/v1/jobs/{job_id}/recordings"
        for pause_s in pauses():
            try:
                response = self._http.post(path, params={"name": name}, content=iter(blocks()))
            except httpx.ConnectError as error:
                if pause_s is None:
                    raise self._unreachable() from error
            except httpx.HTTPError as error:
                raise SendingBroke(f"the connection broke: {error}") from error
            else:
                if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or pause_s is None:
                    return Recording.model_validate(checked(response).json())
            time.sleep(pause_s)
        raise self._unreachable()

    def close_job(self, job_id: str) -> Job:
        """Say that no more recordings will come."""
        return Job.model_validate(self._send("POST", f"/v1/jobs/{job_id}/close").json())

    def cancel_job(self, job_id: str) -> Job:
        """Give up what has not been done yet."""
        return Job.model_validate(self._send("POST", f"/v1/jobs/{job_id}/cancel").json())

    def job(self, job_id: str) -> Job:
        """Return a job."""
        return Job.model_validate(self._get(f"/v1/jobs/{job_id}").json())

    def jobs(self) -> Iterator[Job]:
        """Yield all jobs, newest first."""
        for page in self._pages("/v1/jobs"):
            yield from (Job.model_validate(job) for job in page["jobs"])

    # Recordings and results

    def recordings(self, job_id: str) -> Iterator[Recording]:
        """Yield the recordings of a job in its order."""
        for page in self._pages(f"/v1/jobs/{job_id}/recordings"):
            yield from (Recording.model_validate(row) for row in page["recordings"])

    def download(self, recording_id: str, what: str, path: Path) -> None:
        """Write a result to ``path``: ``artifacts/mask``, ``events.csv``, ``manifest`` and so on.

        Raises:
            OSError: the file cannot be written; what there is of it is for the caller to remove.
        """
        url = f"/v1/recordings/{recording_id}/{what}"
        for pause_s in pauses():
            try:
                with self._http.stream("GET", url, follow_redirects=True) as response:
                    if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or pause_s is None:
                        checked(response)
                        with path.open("wb") as file:
                            for block in response.iter_bytes():
                                file.write(block)
                        return
            except httpx.HTTPError as error:
                if pause_s is None:
                    raise self._unreachable() from error
            time.sleep(pause_s or 0)

    # Below

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return checked(self._http.request(method, path, **options))
        except httpx.HTTPError as error:
            raise self._unreachable() from error

    def _get(self, path: str, **options: Any) -> httpx.Response:
        for pause_s in pauses():
            try:
                response = self._http.get(path, **options)
            except httpx.HTTPError as error:
                if pause_s is None:
                    raise self._unreachable() from error
            else:
                if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or pause_s is None:
                    return checked(response)
            time.sleep(pause_s or 0)
        raise self._unreachable()

    def _pages(self, path: str) -> Iterator[dict[str, Any]]:
        options: dict[str, Any] = {"limit": PAGE_SIZE}
        while True:
            page = self._get(path, params=options).json()
            yield page
            if not page["next_cursor"]:
                return
            options["cursor"] = page["next_cursor"]

    def _unreachable(self) -> GatewayUnreachable:
        return GatewayUnreachable(f"No Soundmill gateway answers at {self.url}.")


def checked(response: httpx.Response) -> httpx.Response:
    """Return the response of a request that succeeded.

    Raises:
        Problem: with the gateway's own code and sentence.
    """
    if response.is_success:
        return response
    response.read()
    try:
        document = response.json()
        raise Problem(response.status_code, document["code"], document["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"The gateway answered {response.status_code} {response.reason_phrase}."
        raise Problem(response.status_code, "http_error", detail) from None


def pauses() -> Iterator[float | None]:
    """Yield the pause after each try that may be repeated, None for the last one."""
    for number in range(TRIES - 1):
        yield FIRST_PAUSE_S * 2**number
    yield None


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine's loopback."""
    host = httpx.URL(url).host
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
