"""One key never sees or changes what belongs to another, on any route: new ones included.

The routes are those of the application itself, and what they are sent is what the description of
the interface gives as examples, with the ids of another key's things.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from sqlalchemy import select

from common.domain import Scope, Stage
from common.tables import ApiKey, Base, IdempotencyKey, Rejection
from services.gateway.app import create_app
from tests.gateway.conftest import STACKS, Gateway, problem

pytestmark = STACKS
BOTH = (Scope.READ, Scope.SUBMIT)


@dataclass(frozen=True)
class Operation:
    """One method of one address, and what its description says of it."""

    method: str
    path: str
    described: dict[str, Any]

    @property
    def ids(self) -> list[str]:
        return [part[1:-1] for part in self.path.replace(".", "/").split("/") if part[:1] == "{"]

    def send(self, client: httpx.Client, headers: dict[str, str], known: dict[str, str]) -> Any:
        """Send the first example with these ids; return the status, the text unless it streams."""
        params = {
            parameter["name"]: example(parameter)
            for parameter in self.described.get("parameters", [])
            if parameter["in"] == "query" and parameter["required"]
        }
        body = self.described.get("requestBody", {}).get("content", {})
        options: dict[str, Any] = {}
        for media_type, content in list(body.items())[:1]:
            value = next(iter(content["examples"].values()))["value"]
            options["headers"] = {"Content-Type": media_type}
            options["content" if isinstance(value, str) else "json"] = value
        options["headers"] = {**headers, **options.get("headers", {})}
        url = self.path.format(**known)
        with client.stream(self.method, url, params=params, **options) as answer:
            if "event-stream" not in answer.headers.get("content-type", ""):
                answer.read()
            return answer


def example(parameter: dict[str, Any]) -> Any:
    """Return a value that a parameter takes."""
    if "example" in parameter:
        return parameter["example"]
    schema = parameter["schema"]
    return schema.get("items", schema)["enum"][0]


def operations(app: FastAPI) -> Iterator[Operation]:
    """Yield every operation of the application."""
    paths = app.openapi()["paths"]
    for route in iter_route_contexts(app.routes):
        for method in sorted(route.methods or ()):
            path = str(route.path)
            yield Operation(
                method, path, resolved(paths.get(path, {}).get(method.lower(), {}), app)
            )


def resolved(described: dict[str, Any], app: FastAPI) -> dict[str, Any]:
    """Return a description whose parameters refer to nothing."""
    schemas = app.openapi()["components"]["schemas"]
    parameters = []
    for parameter in described.get("parameters", []):
        schema = dict(parameter["schema"])
        schema = {
            **schema,
            **({"items": look_up(schema["items"], schemas)} if "items" in schema else {}),
        }
        parameters.append({**parameter, "schema": look_up(schema, schemas)})
    return {**described, "parameters": parameters}


def look_up(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (
        schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    )
    return found


@dataclass(frozen=True)
class Owned:
    """Things of one key."""

    headers: dict[str, str]
    ids: dict[str, str]  # by the name that paths give them


def own(gateway: Gateway) -> Owned:
    """Make one of everything for a new key."""
    headers = gateway.new_key(BOTH)
    gateway.client.headers.update(headers)
    job_id = gateway.new_job(name="secret name")
    recording_id = gateway.upload(job_id, name="secret name.wav")
    for stage in Stage:
        gateway.succeed(recording_id, stage)

    def post(path: str, body: dict[str, Any]) -> str:
        answer = gateway.client.post(path, json=body)
        assert answer.status_code == 201, answer.text
        made: str = answer.json()["id"]
        return made

    items = [{"url": "https://example.org/a.wav"}]
    source_id = post(f"/v1/jobs/{job_id}/sources", {"kind": "urls", "items": items})
    with gateway.sessions.begin() as session:
        session.add(
            Rejection(
                job_id=job_id,
                source_id=source_id,
                entry=0,
                name="secret name",
                error_code="url_status",
                error_detail="404",
            )
        )
    upload_id = post("/v1/uploads", {"name": "secret name", "size_bytes": 10_000_000})
    webhook_id = post("/v1/webhooks", {"url": "https://example.org/hook"})
    gateway.client.headers.pop("Authorization")
    ids = {
        "job_id": job_id,
        "recording_id": recording_id,
        "source_id": source_id,
        "upload_id": upload_id,
        "webhook_id": webhook_id,
    }
    return Owned(headers, ids)


def everything(gateway: Gateway) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table and the key of every object."""
    passing = {ApiKey.__tablename__, IdempotencyKey.__tablename__}
    with gateway.sessions() as session:
        rows = {
            table.name: sorted((tuple(row) for row in session.execute(select(table))), key=repr)
            for table in Base.metadata.sorted_tables
            if table.name not in passing
        }
    return {**rows, "objects": [(key,) for key in gateway.objects()]}


def path_values(operation: Operation, owned: Owned) -> dict[str, str]:
    """Return what stands in the path: ids of what is owned, else an example."""
    described = {p["name"]: p for p in operation.described.get("parameters", [])}
    values = {"kind": "mask", "number": "1"}
    return {
        name: owned.ids.get(name) or values.get(name) or example(described[name])
        for name in operation.ids
    }


def test_nothing_of_another_key_is_seen_or_changed(gateway_with_keys: Gateway) -> None:
    gateway = gateway_with_keys
    app = create_app(gateway.settings)
    owner = own(gateway)
    stranger = gateway.new_key(BOTH)
    of_someone = [op for op in operations(app) if set(op.ids) & set(owner.ids)]
    assert len(of_someone) > 30
    before = everything(gateway)
    for op in of_someone:
        answer = op.send(gateway.client, stranger, path_values(op, owner))
        assert answer.status_code == 404, f"{op.method} {op.path}: {answer.status_code}"
        if op.method != "HEAD":
            problem(answer, 404, "not_found")
        assert everything(gateway) == before, f"{op.method} {op.path} changed something"

    # That was because of the key alone: its owner is answered. What takes things away comes last.
    last = ("/cancel", "/close")
    for op in sorted(of_someone, key=lambda op: (op.method == "DELETE", op.path.endswith(last))):
        if op.method == "DELETE" and op.ids == ["job_id"]:
            continue
        answer = op.send(gateway.client, owner.headers, path_values(op, owner))
        said = f"{op.method} {op.path}: {answer.status_code}"
        assert answer.status_code not in (401, 403, 404, 405), said
    job = f"/v1/jobs/{owner.ids['job_id']}"
    assert gateway.client.get(job, headers=gateway.new_key([Scope.ADMIN])).status_code == 200
    problem(gateway.client.get(job, headers=gateway.new_key([Scope.SUBMIT])), 403, "scope_missing")
    assert gateway.client.delete(job, headers=owner.headers).status_code == 202


def test_lists_hold_ones_own_things_alone(gateway_with_keys: Gateway) -> None:
    gateway = gateway_with_keys
    owner, other = own(gateway), own(gateway)
    lists = [op for op in operations(create_app(gateway.settings)) if not op.ids]
    lists = [op for op in lists if op.method == "GET" and op.path[:4] == "/v1/"]
    assert {"/v1/jobs", "/v1/webhooks"} <= {op.path for op in lists}
    for op in lists:
        text = op.send(gateway.client, owner.headers, {}).text
        assert not any(thing in text for thing in other.ids.values()), op.path
    assert owner.ids["job_id"] in gateway.client.get("/v1/jobs", headers=owner.headers).text


def test_an_upload_of_another_key_becomes_no_recording(gateway_with_keys: Gateway) -> None:
    gateway = gateway_with_keys
    owner, stranger = own(gateway), own(gateway)
    body = {"kind": "upload", "upload_id": owner.ids["upload_id"]}
    answer = gateway.client.post(
        f"/v1/jobs/{stranger.ids['job_id']}/sources", json=body, headers=stranger.headers
    )
    problem(answer, 404, "not_found")


def test_every_route_asks_who_asks(gateway_with_keys: Gateway) -> None:
    gateway = gateway_with_keys
    free = {"/health", "/ready", "/metrics", "/v1/openapi.json"}
    for op in operations(create_app(gateway.settings)):
        if op.path not in free:
            answer = op.send(gateway.client, {}, dict.fromkeys(op.ids, "1"))
            assert answer.status_code == 401, f"{op.method} {op.path}: {answer.status_code}"
