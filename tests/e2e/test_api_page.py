"""Every block of docs/api.md does what it says: run from top to bottom against a running stack."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import keys
from common.db import make_engine, make_sessions
from common.domain import Scope
from tests.bench import tiny
from tests.bench.rig import ROOT, Kind, running

PAGE = ROOT / "docs" / "api.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> str:
    """Return all blocks of a language, joined."""
    return "\n".join(text for found, text in BLOCK.findall(PAGE.read_text()) if found == language)


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Where the gateway is, and a key for it."""
    with running(Kind.EMBEDDED) as rig:
        engine = make_engine(rig.settings)
        with make_sessions(engine).begin() as session:
            secret = keys.make(session, "page", {Scope.SUBMIT, Scope.READ}).secret
        engine.dispose()
        yield {
            **os.environ,
            "SOUNDMILL_URL": rig.url,
            "SOUNDMILL_API_KEY": secret,
            "PYTHONPATH": str(ROOT),
        }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the page names."""
    (tmp_path / "tapes").mkdir()
    for number, name in enumerate(("tapes/a.wav", "tapes/b.wav", "december.wav")):
        (tmp_path / name).write_bytes(tiny.recording("page", number))
    tiny.write_zip(tmp_path / "tapes.zip", "packed", 3)
    tiny.write_manifest(tmp_path / "list.jsonl", "listed", ["file:///nowhere/a.wav"])
    return tmp_path


@pytest.mark.parametrize(
    ("language", "command"),
    [
        ("sh", ["bash", "-euo", "pipefail", "-c"]),
        ("python", [sys.executable, "-W", "error", "-c"]),
    ],
)
def test_the_page(
    language: str, command: list[str], environment: dict[str, str], folder: Path
) -> None:
    script = blocks(language)
    assert script
    done = subprocess.run(
        [*command, script], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (folder / "events.csv").read_text().count("dog") >= 1
    assert "not_found" in done.stdout
