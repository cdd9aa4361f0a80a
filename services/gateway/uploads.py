"""Takes recordings in: from a request's body to the object store and the database.

The bytes are stored first, then one transaction records them. When anything goes wrong in between,
the objects are removed again, so that a request that failed leaves neither object nor row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import from_json
from sqlalchemy.exc import DBAPIError

from common import logs, traces
from common.db import new_id
from common.errors import SoundmillError
from common.jobs import NewRecording, recording_key
from common.settings import Settings
from common.storage import ObjectStore, Readable
from common.wording import Wording
from services.gateway import service
from services.gateway.access import Caller
from services.gateway.bodies import Body, Form, Part
from services.gateway.explained import check_explained
from services.gateway.idempotency import Once
from services.gateway.job_schemas import JobRequest
from services.gateway.json_bodies import read_model
from services.gateway.names import clean_name
from services.gateway.observe import FORM, RAW, HttpMetrics
from services.gateway.problems import invalid
from services.gateway.service import Described, Sessions

log = logs.get_logger(__name__)

MEDIA_TYPE = "application/octet-stream"  # what it really is, decoding finds out
MAX_JSON_BYTES = 1 << 20
MAX_FILES_PER_FORM = 10_000
MAX_FIELDS_PER_FORM = 64


@dataclass(frozen=True)
class Taker:
    """Where uploads go, and whose they are."""

    caller: Caller
    once: Once
    settings: Settings
    sessions: Sessions
    store: ObjectStore
    metrics: HttpMetrics
    wording: Wording

    def take_job(self, body: Body) -> str:
        """Create an open job from a JSON body; return its id."""
        request = read_model(body, JobRequest, MAX_JSON_BYTES)
        check_explained(self.wording, request.params.model_dump())
        return service.create_job(self.sessions, self.caller, self.once, request)

    def take_form(self, body: Body, content_type: str) -> str:
        """Create a closed job from a form with its recordings; return its id.

        Parts named ``file`` are recordings; ``name``, ``priority``, ``stages`` and ``params`` (as
        JSON) say what to do with them and may come anywhere.
        """
        job_id = new_id()
        fields: dict[str, Any] = {}
        uploads = _Uploads(self.store, job_id, self.settings.max_upload_bytes)
        with uploads.removed_on_error():
            for number, part in enumerate(Form(body, content_type).parts(), start=1):
                if number > MAX_FILES_PER_FORM + MAX_FIELDS_PER_FORM:
                    raise invalid(
                        "too_many_parts", "Split what is sent, or use the job's own page."
                    )
                if part.name != "file":
                    _read_field(part, fields)
                    continue
                if not uploads.done:
                    self._job_request(fields)  # what is wrong already need not wait for the bytes
                uploads.add(_name(part.filename or ""), part)
            if not uploads.done:
                raise invalid("no_recordings", "The form holds no part named file.")
            service.submit_job(
                self.sessions,
                self.caller,
                self.once,
                job_id,
                self._job_request(fields),
                uploads.done,
                self.settings.max_recordings_per_job,
            )
        uploads.log_stored()
        self.metrics.recordings_stored.labels(FORM).inc(len(uploads.done))
        return job_id

    def take_recording(
        self, body: Body, job_id: str, name: str, sha256: str | None, described: Described
    ) -> str:
        """Add a raw body to an open job as a recording; return its id."""
        check_explained(self.wording, described.params or {})
        service.check_recording(self.sessions, self.caller, self.once, job_id, described)
        clean = _name(name)
        uploads = _Uploads(self.store, job_id, self.settings.max_upload_bytes)
        with uploads.removed_on_error():
            upload = uploads.add(clean, body)
            if sha256 is not None and sha256.lower() != upload.sha256:
                raise invalid(
                    "hash_mismatch",
                    f"The bytes that arrived have the SHA-256 {upload.sha256}.",
                )
            service.add_recording(
                self.sessions,
                self.caller,
                self.once,
                job_id,
                upload,
                described,
                self.settings.max_recordings_per_job,
            )
        uploads.log_stored()
        self.metrics.recordings_stored.labels(RAW).inc()
        return upload.id

    def _job_request(self, fields: dict[str, Any]) -> JobRequest:
        try:
            request = JobRequest.model_validate(fields)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error
        check_explained(self.wording, request.params.model_dump())
        return request


def _read_field(part: Part, fields: dict[str, Any]) -> None:
    text = part.text()
    if part.name == "stages":
        names = [name.strip() for name in text.split(",") if name.strip()]
        fields["stages"] = [*fields.get("stages", []), *names]
    elif part.name == "params":
        try:
            fields["params"] = from_json(text, allow_inf_nan=False)
        except ValueError as error:
            raise invalid("request_invalid", "params: not JSON") from error
    elif len(fields) < MAX_FIELDS_PER_FORM:
        fields[part.name] = text


def _name(raw: str) -> str:
    try:
        return clean_name(raw)
    except ValueError as error:
        raise invalid("name_invalid", f"{error}.".capitalize()) from error


class _Uploads:
    """Stores what one request brings, and removes it again if the request fails."""

    def __init__(self, store: ObjectStore, job_id: str, max_bytes: int) -> None:
        self._store = store
        self._job_id = job_id
        self._max_bytes = max_bytes
        self.done: list[NewRecording] = []

    def add(self, name: str, reader: Readable) -> NewRecording:
        """Store one recording."""
        recording_id = new_id()
        key = recording_key(self._job_id, recording_id)
        stored = self._store.put_stream(key, reader, MEDIA_TYPE, self._max_bytes)
        upload = NewRecording(
            recording_id,
            name,
            key,
            stored.size_bytes,
            stored.sha256,
            traceparent=traces.current(),
        )
        self.done.append(upload)
        return upload

    def log_stored(self) -> None:
        """Tell which recordings there are now."""
        for upload in self.done:
            log.info(
                "recording stored",
                job_id=self._job_id,
                recording_id=upload.id,
                size_bytes=upload.size_bytes,
            )

    @contextmanager
    def removed_on_error(self) -> Iterator[None]:
        """Remove everything that was stored if the block fails."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, DBAPIError) and error.connection_invalidated:
                # The rows may be there: an object too many is better than one too few.
                log.warning("objects left behind", job_id=self._job_id, objects=len(self.done))
                raise
            for upload in self.done:
                try:
                    self._store.delete(upload.object_key)
                except SoundmillError as left:
                    log.warning("object left behind", key=upload.object_key, detail=str(left))
            raise
