"""Results: artifacts, events in several formats, the manifest."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from fastapi import Request, Response
from fastapi.responses import RedirectResponse

from common import results
from common.domain import ArtifactKind
from services.gateway import downloads, queries
from services.gateway.access import Caller, Reader
from services.gateway.context import PRESIGNED_FOR_S, Around, Surroundings, new_router
from services.gateway.names import ascii_name, content_disposition, download_name

router = new_router()


@router.head(
    "/recordings/{recording_id}/artifacts/{kind}",
    response_class=Response,
    include_in_schema=False,
)
@router.get("/recordings/{recording_id}/artifacts/{kind}", response_class=Response)
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


@router.get("/recordings/{recording_id}/events.json", response_class=Response)
def get_events_json(around: Around, caller: Reader, recording_id: str) -> Response:
    """Return events and tags as JSON."""
    return _events(around, caller, recording_id, results.events_json, "json", "application/json")


@router.get("/recordings/{recording_id}/events.csv", response_class=Response)
def get_events_csv(around: Around, caller: Reader, recording_id: str) -> Response:
    """Return events as CSV."""
    return _events(
        around, caller, recording_id, results.events_csv, "csv", "text/csv; charset=utf-8"
    )


@router.get("/recordings/{recording_id}/events.txt", response_class=Response)
def get_events_txt(around: Around, caller: Reader, recording_id: str) -> Response:
    """Return events as a label track of Audacity."""
    return _events(
        around, caller, recording_id, results.audacity_labels, "txt", "text/plain; charset=utf-8"
    )


@router.get("/recordings/{recording_id}/manifest", response_class=Response)
def get_manifest(around: Around, caller: Reader, recording_id: str) -> Response:
    """Tell where the results come from: input hash, model digests, parameters, versions."""
    with around.readers() as session:
        detail = queries.get_recording(session, caller, recording_id)
    name = download_name(detail.name, "manifest.json")
    return Response(
        results.manifest(detail.model_dump(mode="json")),
        media_type="application/json",
        headers={"Content-Disposition": content_disposition(name)},
    )


def _result(
    around: Surroundings, caller: Caller, recording_id: str, kind: ArtifactKind
) -> queries.StoredResult:
    with around.readers() as session:
        return queries.get_result(session, caller, recording_id, kind)


def _events(
    around: Surroundings,
    caller: Caller,
    recording_id: str,
    render: Callable[[results.Events], str],
    suffix: str,
    media_type: str,
) -> Response:
    found = _result(around, caller, recording_id, ArtifactKind.EVENTS)
    with around.store.open(found.artifact.object_key) as blocks:
        text = render(results.parse_events(b"".join(blocks)))
    name = download_name(found.recording_name, f"events.{suffix}")
    return Response(
        text,
        media_type=media_type,
        headers={"Content-Disposition": content_disposition(name)},
    )
