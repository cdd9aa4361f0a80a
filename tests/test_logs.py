"""Log lines: JSON whatever happens, with the service and the ids, and without secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from common.logs import Redactor, own_secrets
from common.settings import Settings

KEY = "sm_Zm9vYmFyYmF6cXV4cXV1eGNvcmdlZ3JhdWx0Z2FycGx5"
WEBHOOK = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SIGNATURE = "9bd2e0c0f8d4a6b8a1c2d3e4f5061728394a5b6c7d8e9f00112233445566778899"
PRESIGNED = (
    "http://s3:9000/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAEXAMPLE%2F2026"
    f"&X-Amz-Date=20261120T000000Z&X-Amz-Expires=900&X-Amz-Signature={SIGNATURE}"
)
SIGNED = f"AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE/2026/s3, Signature={SIGNATURE}"
TEXTS = {  # what is logged, and what of it must not be seen
    f"key {KEY} refused": [KEY],
    f"secret {WEBHOOK}": [WEBHOOK],
    PRESIGNED: [SIGNATURE, "AKIAEXAMPLE"],
    PRESIGNED.replace("&", "%26").replace("=", "%3D"): [SIGNATURE],
    SIGNED: [SIGNATURE, "AKIAEXAMPLE"],
    "https://a.blob.core.windows.net/c/a.wav?sv=1&sig=ab%2Bcd%3D&se=2026": ["ab%2Bcd"],
    "https://h/x?access_token=opaque-value": ["opaque-value"],
    "postgresql+psycopg://soundmill:hunter2secret@db:5432/soundmill": ["hunter2secret"],
    "redis://:p@ss\"w'\\rd@redis:6379/0 is gone": ["p@ss", "rd@redis"],
    f"Authorization: Bearer {KEY}": [KEY],
    "Authorization: Bearer abc.def-ghi": ["abc.def-ghi"],
    "authorization: Basic dXNlcjpwYXNzd29yZA==": ["dXNlcjpwYXNzd29yZA"],
    json.dumps({"headers": {"Authorization": "opaque-value"}}): ["opaque-value"],
    str({"password": "opaque-value", "token": "other-value"}): ["opaque-value", "other-value"],
    "dsn: host=db user=soundmill password=opaque-value": ["opaque-value"],
}
OWN = "a secret of the settings"

PROGRAM = """
import json, logging, sys, threading, warnings
from common import logs
from common.settings import get_settings

texts = json.load(sys.stdin)
logs.configure(get_settings(), "gateway")
log = logs.get_logger("services.test")
with logs.bind(job_id="j", trace_id="t"):
    log.info("bound")
    for text in texts:
        log.info(text)
        log.info("as a value", text=text, nested={"deep": [text]}, object=RuntimeError(text))
        logging.getLogger("library").warning("%s", text)
        try:
            raise RuntimeError(text)
        except RuntimeError:
            log.exception("failed")
            logging.getLogger("library").exception("failed")
log.info("fields", password="opaque-value", Authorization="opaque-value")
log.info("unusual", raw=b"\\xff", path=__import__("pathlib").Path("/x"))
warnings.warn("a warning of Python's")
thread = threading.Thread(target=lambda: 1 / 0, name="breaks")
thread.start()
thread.join()
raise LookupError("nobody catches this")
"""


def log_lines(tmp_path: Path) -> list[dict[str, Any]]:
    """Return what a process writes that logs every secret in every way."""
    env = {
        **os.environ,
        "SOUNDMILL_HOME": str(tmp_path),
        "SOUNDMILL_S3_SECRET_KEY": OWN,
        "SOUNDMILL_DATABASE_URL": "postgresql://soundmill:own%20password@db/soundmill",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=env,
        input=json.dumps([*TEXTS, f"it is {OWN}!", "own password"]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    hidden = [secret for secrets in TEXTS.values() for secret in secrets]
    for secret in [*hidden, OWN, "own password", "opaque-value"]:
        assert secret not in done.stderr
        assert json.dumps(secret)[1:-1] not in done.stderr
    return lines


def test_every_line_is_json_and_holds_no_secret(tmp_path: Path) -> None:
    lines = log_lines(tmp_path)
    for line in lines:
        assert {"timestamp", "level", "event", "service", "logger"} <= set(line), line
        assert line["service"] == "gateway"
    (bound,) = [line for line in lines if line["event"] == "bound"]
    assert (bound["job_id"], bound["trace_id"], bound["level"]) == ("j", "t", "info")
    failed = [line for line in lines if line["event"] == "failed"]
    assert len(failed) == 2 * (len(TEXTS) + 2)
    assert {line["logger"] for line in failed} == {"services.test", "library"}
    assert all("RuntimeError" in line["exception"] for line in failed)
    (warned,) = [line for line in lines if line["logger"] == "py.warnings"]
    assert "a warning of Python's" in warned["event"]
    thread, main = [line for line in lines if line["event"] == "uncaught"]
    assert "ZeroDivisionError" in thread["exception"]
    assert thread["thread"] == "breaks"
    assert "LookupError: nobody catches this" in main["exception"]
    assert main["level"] == "critical"
    (fields,) = [line for line in lines if line["event"] == "fields"]
    assert fields["password"] == fields["Authorization"] == "[redacted]"


@pytest.mark.parametrize(
    "harmless",
    [
        "source read",
        "http://127.0.0.1:8420/v1/jobs?name=a@b",
        "segmenter-1@host ready.",
        "Connected to redis://redis:6379/0",
        "job sm_short is no key",
        "13 tokens left; the secret is out",
        "turn given up: token expired",
    ],
)
def test_what_is_no_secret_stays(harmless: str) -> None:
    line = json.dumps({"event": harmless})
    assert Redactor()(None, "info", line) == line


@given(st.dictionaries(st.text(), st.recursive(st.text(), lambda inner: st.lists(inner))))
def test_json_stays_json(line: dict[str, Any]) -> None:
    json.loads(Redactor(["secret words", 'quo"ted\\'])(None, "info", json.dumps(line)))


@given(
    st.sampled_from([*TEXTS, '{"password": "', "'token': '", '\\"secret\\": \\"', "://:"]),
    st.text(st.sampled_from("ab\"'\\/:@=& \n{}")),
)
def test_json_stays_json_around_secrets(text: str, rest: str) -> None:
    line = {"event": text + rest, "password": rest, "next": text, "last": rest + text}
    json.loads(Redactor()(None, "info", json.dumps(line)))


def test_the_secrets_of_the_settings() -> None:
    settings = Settings(
        database_url=SecretStr("postgresql://u:p%40ss@db/x"),
        redis_url=SecretStr("redis://:redispass@r/0"),
        s3_access_key=SecretStr("soundmill"),
        s3_secret_key=SecretStr("s3secret"),
    )
    assert own_secrets(settings) == {"p%40ss", "p@ss", "redispass", "s3secret"}
    assert own_secrets(Settings(database_url=SecretStr("http://[broken"))) == {"http://[broken"}
    for password in ("with/slash", "with#hash", "with?mark"):
        unescaped = Settings(database_url=SecretStr(f"postgresql://u:{password}@db:5432/x"))
        assert own_secrets(unescaped) == {password}
