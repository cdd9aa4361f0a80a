"""Results: artifacts, events in several formats, the manifest."""

from __future__ import annotations

import json
from http import HTTPStatus

from fastapi import Request, Response
from fastapi.responses import RedirectResponse

from common.domain import ArtifactKind
from common.results import parse_events
from common.tables import Job
from services.gateway import downloads, queries
from services.gateway.access import Caller, Reader
from services.gateway.context import PRESIGNED_FOR_S, Around, Surroundings, new_router
from services.gateway.downloads import documents
from services.gateway.events import MEDIA_TYPES, EventsFormat, origin_of, render
from services.gateway.manifests import manifests
from services.gateway.names import ascii_name, content_disposition, download_name

router = new_router()


@router.head(
    "/recordings/{recording_id}/artifacts/{kind}",
    response_class=Response,
    include_in_schema=False,
)
@router.get(
    "/recordings/{recording_id}/artifacts/{kind}",
    response_class=Response,
    responses={
        **documents(["application/zip", "application/json", "audio/flac", "audio/wav"]),
        206: {"description": "The range that was asked for."},
        304: {"description": "What `If-None-Match` names is still what there is."},
        307: {"description": "With `redirect`: where the store itself gives it out, for a while."},
    },
)
def get_artifact(
    request: Request,
    around: Around,
    caller: Reader,
    recording_id: str,
    kind: ArtifactKind,
    redirect: bool = False,
) -> Response:
    """Download an artifact: whole, a range of it, or (``redirect``) from the store itself."""
    found = _result(around, caller, recording_id, kind)
    artifact = found.artifact
    suffix = artifact.object_key.rpartition(".")[2]
    name = download_name(found.recording_name, f"{kind}.{suffix}")
    if redirect:
        url = around.store.presigned_get(artifact.object_key, PRESIGNED_FOR_S, ascii_name(name))
        if url is not None:
            return RedirectResponse(url, HTTPStatus.TEMPORARY_REDIRECT)
    return downloads.answer(
        request,
        around.store,
        artifact.object_key,
        size_bytes=artifact.size_bytes,
        etag=f'"{artifact.sha256}"',
        media_type=artifact.media_type,
        disposition=content_disposition(name),
    )


@router.get(
    "/recordings/{recording_id}/events.{form}",
    response_class=Response,
    responses=documents(MEDIA_TYPES.values()),
)
def get_events(around: Around, caller: Reader, recording_id: str, form: EventsFormat) -> Response:
    """Return the events of a recording: what the classifier found, and when."""
    with around.readers() as session:
        recording = caller.recording(session, recording_id)
        artifact = queries.get_result(session, caller, recording_id, ArtifactKind.EVENTS).artifact
    with around.store.open(artifact.object_key) as blocks:
        found = parse_events(b"".join(blocks))
    name = download_name(recording.name, f"events.{form}")
    return Response(
        b"".join(render(found, origin_of(recording), form)),
        media_type=MEDIA_TYPES[form],
        headers={"Content-Disposition": content_disposition(name)},
    )


@router.get(
    "/recordings/{recording_id}/manifest",
    response_class=Response,
    responses=documents(["application/json"]),
)
def get_manifest(around: Around, caller: Reader, recording_id: str) -> Response:
    """Tell where the results come from: input hash, model digests, parameters, versions."""
    with around.readers() as session:
        recording = caller.recording(session, recording_id)
        job = session.get_one(Job, recording.job_id)
        (manifest,) = manifests(session, job, [recording])
    name = download_name(recording.name, "manifest.json")
    return Response(
        json.dumps(manifest, indent=2, ensure_ascii=False) + "\n",
        media_type="application/json",
        headers={"Content-Disposition": content_disposition(name)},
    )


def _result(
    around: Surroundings, caller: Caller, recording_id: str, kind: ArtifactKind
) -> queries.StoredResult:
    with around.readers() as session:
        return queries.get_result(session, caller, recording_id, kind)
