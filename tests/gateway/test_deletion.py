"""A job that is deleted over the API is gone at once, and its bytes soon after."""

from __future__ import annotations

import io
import threading
import zipfile
from contextlib import closing

from sqlalchemy import func, select

from common.tables import Base
from services.dispatcher.sweeper import Sweeper
from tests.gateway.conftest import STACKS, Gateway, problem


def archive() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("dog.wav", b"RIFF")
    return packed.getvalue()


@STACKS
def test_nothing_of_a_deleted_job_stays(gateway: Gateway) -> None:
    job_id = gateway.new_job()
    recording_id = gateway.upload(job_id)
    gateway.client.post(
        f"/v1/jobs/{job_id}/sources",
        content=archive(),
        headers={"Content-Type": "application/zip"},
    ).raise_for_status()
    assert len(gateway.objects()) == 2
    assert gateway.client.delete(f"/v1/jobs/{job_id}").status_code == 202
    for path in ("", "/events", "/recordings"):
        problem(gateway.client.get(f"/v1/jobs/{job_id}{path}"), 404, "not_found")
    problem(gateway.client.get(f"/v1/recordings/{recording_id}"), 404, "not_found")
    with closing(Sweeper(gateway.settings)) as sweeper:
        while sweeper.turn(threading.Event()):
            pass
    assert gateway.objects() == []
    with gateway.sessions() as session:
        left = [
            table.name
            for table in Base.metadata.sorted_tables
            if session.scalar(select(func.count()).select_from(table))
        ]
    assert left == []
