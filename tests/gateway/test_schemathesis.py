"""The whole API against its own description: no 5xx, answers as documented, bad input refused.

Schemathesis sends what the description allows and what it forbids, with the right key and without,
and lets later requests use what earlier ones made. The requests are the same in every run: the
boundaries of every parameter, and ``EXAMPLES`` random ones per operation.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common import keys
from common.domain import Scope, Stage
from common.settings import Settings
from services.gateway import follow
from tests.gateway.conftest import STACKS, Gateway

EXAMPLES = 8
HOOKS = Path(__file__).with_name("schemathesis_hooks.py")

# Not checked: that all the description allows is accepted. What no schema can say (a cursor of
# this list, a label that a stage knows) is refused with 422.
CONFIG = """
hooks = "{hooks}"
continue-on-failure = true
max-stream-events = 2
request-timeout = 120

[auth.openapi.HTTPBearer]
bearer = "{secret}"

[generation]
max-examples = {examples}
deterministic = true

[checks]
positive_data_acceptance.enabled = false
"""
DICTIONARY = """
[dictionaries.{name}]
values = ["{value}"]
"""
SOMETIMES = """"path.{name}" = {{ dictionary = "{name}", probability = 0.9 }}\n"""
ALWAYS = """"path.{name}" = "{value}"\n"""
OF_ITS_OWN = """
[[operations]]
include-operation-id = "{operation}"
parameters = {{ "path.{name}" = "{value}" }}
"""


@dataclass(frozen=True)
class Plan:
    """What is done to a stack. ``known`` says how often a path holds a known id."""

    phases: str
    known: str


PLANS = {  # each phase once: the boundaries where the database is the stricter one
    "sqlite": Plan("fuzzing,stateful", SOMETIMES),
    "postgresql": Plan("examples,coverage", ALWAYS),
}


@pytest.fixture
def gateway_settings(gateway_settings: Settings) -> Settings:
    """A gateway that asks for keys."""
    return gateway_settings.model_copy(update={"embedded": False})


def made(gateway: Gateway, path: str, **body: Any) -> str:
    answer = gateway.client.post(path, json=body)
    assert answer.status_code == 201, answer.text
    thing: str = answer.json()["id"]
    return thing


def things(gateway: Gateway) -> dict[str, str]:
    """Make one of everything; return the ids by the names that they have in paths."""
    job_id = gateway.new_job(name="described")
    recording_id = gateway.upload(job_id)
    for stage in Stage:
        gateway.succeed(recording_id, stage)
    item = {"url": "https://archive.example.org/dog.wav"}
    return {
        "job_id": job_id,
        "recording_id": recording_id,
        "source_id": made(gateway, f"/v1/jobs/{job_id}/sources", kind="urls", items=[item]),
        "upload_id": made(gateway, "/v1/uploads", name="dog.wav", size_bytes=4),
        "webhook_id": made(gateway, "/v1/webhooks", url="https://hooks.example.org/"),
    }


def doomed(gateway: Gateway) -> dict[str, tuple[str, str]]:
    """Make what operations may end; return the id of each by operation and name."""
    jobs = ("close_job", "cancel_job", "delete_job")
    return {
        **{operation: ("job_id", gateway.new_job(name=operation)) for operation in jobs},
        "delete_upload": ("upload_id", made(gateway, "/v1/uploads", name="b.wav", size_bytes=4)),
        "delete_webhook": (
            "webhook_id",
            made(gateway, "/v1/webhooks", url="https://hooks.example.org/"),
        ),
    }


@pytest.fixture(autouse=True)
def short_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams of events end soon, since each request waits for the end of its answer."""
    monkeypatch.setattr(follow, "STREAM_S", 0.3)
    monkeypatch.setattr(follow, "HEARTBEAT_S", 0.4)


@STACKS
def test_every_answer_is_as_described(gateway: Gateway, tmp_path: Path) -> None:
    with gateway.sessions.begin() as session:
        secret = keys.make(session, "tests", set(Scope)).secret
        backend = session.get_bind().dialect.name
    gateway.client.headers["Authorization"] = f"Bearer {secret}"
    plan = PLANS[backend]
    text = CONFIG.format(secret=secret, examples=EXAMPLES, hooks=HOOKS)
    known = things(gateway)
    text += "".join(DICTIONARY.format(name=name, value=known[name]) for name in known)
    text += "[parameters]\n"
    text += "".join(plan.known.format(name=name, value=known[name]) for name in known)
    for operation, (name, value) in doomed(gateway).items():
        text += OF_ITS_OWN.format(operation=operation, name=name, value=value)
    config = tmp_path / "schemathesis.toml"
    config.write_text(text)
    command = ["--no-color", "--config-file", config, "run", f"{gateway.url}/v1/openapi.json"]
    run = subprocess.run(
        [Path(sys.executable).with_name("st"), *command, "--phases", plan.phases],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    unforeseen = [entry for entry in gateway.log if entry["log_level"] == "error"]
    assert run.returncode == 0, run.stdout + run.stderr + repr(unforeseen)
    assert not unforeseen
