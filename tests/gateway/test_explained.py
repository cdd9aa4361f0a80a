"""Labels that are to be explained are asked for when a job is made, also those of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from common.labels import LABELS
from common.settings import Settings
from tests.gateway.conftest import Gateway, problem, running

EMBEDDED = pytest.mark.parametrize(
    ("database_url", "store_options"), [("sqlite", "directory")], indirect=True
)


def asked(*labels: str) -> dict[str, Any]:
    return {"classify": {"explain": ["grad_cam"], "explain_labels": labels}}


def refusals(gateway: Gateway, label: str) -> list[str]:
    """Return what a job, a form and a recording say that ask for a label to be explained."""
    params, job_id = asked("dog", label), gateway.new_job()
    text = json.dumps(params)
    before = gateway.job_rows(), gateway.objects()
    answers = [
        gateway.client.post("/v1/jobs", json={"params": params}),
        gateway.client.post("/v1/jobs", data={"params": text}, files={"file": ("a.wav", b"RIFF")}),
        gateway.client.post(
            f"/v1/jobs/{job_id}/recordings",
            params={"name": "a.wav", "params": text},
            content=b"RIFF",
        ),
    ]
    assert (gateway.job_rows(), gateway.objects()) == before
    return [problem(answer, 422, "parameters_invalid")["detail"] for answer in answers]


@EMBEDDED
def test_unknown_labels_are_refused_at_once(gateway: Gateway) -> None:
    known = f"unknown label 'Great_Tit'; known: {', '.join(LABELS)}"
    assert refusals(gateway, "Great_Tit") == [f"classify.explain_labels: {known}"] * 3


@EMBEDDED
def test_labels_of_weights_of_ones_own_are_known(
    gateway_settings: Settings, tmp_path: Path
) -> None:
    weights = tmp_path / "own.safetensors"
    config = json.dumps({"labels": ["Great_Tit", "wren"]})
    save_file({"w": np.zeros(2, np.float32)}, weights, metadata={"config": config})
    settings = gateway_settings.model_copy(update={"classifier_weights": weights})
    with running(settings) as gateway:
        job = gateway.get(f"/v1/jobs/{gateway.new_job(params=asked('Great_Tit', 'dog'))}")
        assert job["params"]["classify"]["explain_labels"] == ["Great_Tit", "dog"]
        assert "known: air_conditioner" in refusals(gateway, "Blue_Tit")[0]
