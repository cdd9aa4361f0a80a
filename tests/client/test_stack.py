"""The embedded stack with its real processes: started, found, stopped, killed, started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from client import control
from client.api import Gateway
from client.errors import AlreadyRunning, NotRunning, PortInUse
from client.home import Home, StackState
from client.stack import Options, choose_port

PATIENCE_S = 240.0
NAMES = {"redis", "gateway", "dispatcher", "ingester"} | {
    f"{worker}-1" for worker in ("segmenter", "classifier", "enhancer", "restorer")
}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def processes_of(stack_id: str) -> list[psutil.Process]:
    """Return every process that carries the mark of a stack."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SOUNDMILL_STACK_ID") == stack_id:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return [process for process in found if process.is_running()]


def current(home: Home) -> StackState:
    state = home.read_state()
    assert state is not None
    return state


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home with a running stack."""
    home = Home.at(tmp_path_factory.mktemp("home"))
    control.start_detached(home, Options(port=choose_port("127.0.0.1", 0), workers=1))
    yield home
    state = control.find(home)
    if state is not None:
        control.stop(home)
        assert processes_of(state.stack_id) == []


def soundmill(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "client.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_every_process_runs_and_the_gateway_answers(home: Home) -> None:
    state = current(home)
    assert state.status == "ready"
    assert set(state.processes) == NAMES
    assert all(psutil.pid_exists(pid) for pid in state.processes.values())
    with Gateway(state.url) as gateway:
        assert list(gateway.jobs()) == []


def test_every_process_tells_its_metrics_where_the_file_says(home: Home) -> None:
    targets = json.loads(home.targets_path.read_text())
    services = sorted(target["labels"]["job"] for target in targets)
    assert services == sorted(name.removesuffix("-1") for name in NAMES - {"redis"})
    for target in targets:
        (address,) = target["targets"]

        def page(address: str = address) -> str:
            try:
                return httpx.get(f"http://{address}/metrics").raise_for_status().text
            except httpx.TransportError:
                return ""

        until(lambda: bool(page()))
        service = target["labels"]["job"]
        assert f'soundmill_build_info{{service="{service}",version="' in page()
    answer = soundmill("status", "--home", str(home.folder))
    assert str(home.targets_path) in answer.stdout


def test_redis_listens_on_no_port(home: Home) -> None:
    redis = psutil.Process(current(home).processes["redis"])
    assert [c for c in redis.net_connections() if c.status == psutil.CONN_LISTEN] == []


def test_second_up_says_so_and_leaves_the_first_alone(home: Home) -> None:
    before = current(home)
    answer = soundmill("up", "--home", str(home.folder))
    assert answer.returncode == 0
    assert f"already runs in {home.folder} at {before.url}" in answer.stdout
    with pytest.raises(AlreadyRunning):
        control.start_detached(home, Options())
    assert current(home) == before
    assert control.ensure_running(home, Options()).started_here is False


def test_child_that_dies_is_started_again(home: Home) -> None:
    before = current(home).processes["dispatcher"]
    os.kill(before, signal.SIGKILL)
    until(lambda: current(home).processes["dispatcher"] != before)
    assert psutil.pid_exists(current(home).processes["dispatcher"])


def test_port_in_use_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        answer = soundmill("up", "--home", str(tmp_path / "h"), "--port", str(port))
        detached = soundmill("up", "--detach", "--home", str(tmp_path / "h"), "--port", str(port))
    for said in (answer, detached):
        assert said.returncode == 1
        assert f"Port {port} on 127.0.0.1 is in use" in said.stderr
    home = Home.at(tmp_path / "h")
    assert not home.is_running()
    assert not home.state_path.exists()


def test_default_port_gives_way_but_a_port_asked_for_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse):
            choose_port("127.0.0.1", port)
    assert choose_port("127.0.0.1", None) > 0


LOSES_ITS_PORT = """
import sys
from pathlib import Path
from client import stack
from client.home import Home

look = stack.choose_port
answers = [int(sys.argv[2])]  # a port that somebody takes right after it was free
stack.choose_port = lambda host, port: answers.pop() if answers else look(host, port)
stack.Supervisor(Home.at(Path(sys.argv[1])), stack.Options(workers=1), print).run()
"""


def test_gateway_moves_when_another_program_takes_its_port(tmp_path: Path, home: Home) -> None:
    """The other program is the gateway of another stack, which answers just as ours would."""
    other = current(home)
    arguments = [sys.executable, "-c", LOSES_ITS_PORT, str(tmp_path), str(other.port)]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as supervisor:
        try:
            mine = control.wait_until_ready(Home.at(tmp_path), supervisor)
            assert mine.port != other.port
            with Gateway(mine.url) as gateway:
                gateway.create_job("mine")
            with Gateway(other.url) as gateway:
                assert list(gateway.jobs()) == []
        finally:
            supervisor.terminate()


def test_stop_leaves_nothing_behind(home: Home) -> None:
    state = control.stop(home)
    assert processes_of(state.stack_id) == []
    assert not home.state_path.exists()
    assert not home.targets_path.exists()
    assert not (home.broker / "redis.sock").exists()
    assert control.find(home) is None
    with pytest.raises(NotRunning):
        control.stop(home)


def test_killed_supervisor_takes_its_children_along_and_up_works_again(tmp_path: Path) -> None:
    """In a home whose path is too long for a socket, with a Redis file that cannot be read."""
    home = Home.at(tmp_path / ("long" * 30))
    home.make()
    (home.broker / "appendonly.aof").write_bytes(b"*3\r\nnot a command\r\n" * 3)
    options = Options(port=choose_port("127.0.0.1", 0), workers=1)
    first = control.start_detached(home, options)
    assert (home.broker / "appendonly.unreadable").exists()
    assert Path(first.socket_dir).stat().st_mode & 0o777 == 0o700

    os.kill(first.pid, signal.SIGKILL)
    until(lambda: not home.is_running())
    if sys.platform == "linux":
        until(lambda: processes_of(first.stack_id) == [])
    assert control.find(home) is None
    assert home.state_path.exists()

    second = control.start_detached(home, options)
    try:
        assert second.stack_id != first.stack_id
        assert not Path(first.socket_dir).exists()
        assert processes_of(first.stack_id) == []
    finally:
        control.stop(home)
    assert processes_of(second.stack_id) == []
    assert not Path(second.socket_dir).exists()
