"""The supervisor of the embedded mode: all of Soundmill on one machine, in processes of its own.

Starts redis-server, the gateway, the dispatcher and the workers; starts again what dies; stops all
of it in order. It computes nothing and talks to no queue.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import httpx
import psutil
import redis

from client import broker_server
from client.children import Child, ending, importable_environment, kill_leftovers, wait_all
from client.errors import PortInUse, StackFailed
from client.home import Home, StackState
from client.targets import free_ports, targets, watched_at
from common.domain import SERVICE_OF, Priority, Stage, queue_name
from common.metrics import MULTIPROC_DIR
from common.monitor import is_well
from common.settings import Settings

STARTED_WITHIN_S = 180.0
WORK_GRACE_S = 25.0  # a worker takes up to 20, see common.worker
HURRIED_GRACE_S = 3.0  # asked again, a worker gives back what it works on, too
TURN_S = 0.2


class Interrupted(Exception):
    """Asked to stop while still starting."""


@dataclass(frozen=True)
class Options:
    """How to run a stack. ``port`` None: the default one, or any free one when that is taken."""

    host: str = "127.0.0.1"
    port: int | None = None
    workers: int = 0  # copies of each worker; 0: one per four cores, at least one


def choose_port(host: str, port: int | None) -> int:
    """Return a port on which the gateway can listen.

    Raises:
        PortInUse: ``port`` was asked for and something else listens on it.
        StackFailed: the host is not one of this machine, or the port needs more rights.
    """
    default = Settings.model_fields["port"].default
    candidates = [port] if port is not None else [default, 0]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in candidates:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
                return int(probe.getsockname()[1])
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise StackFailed(
                        f"The gateway cannot listen on {host} port {candidate}: {error.strerror}."
                    ) from error
    raise port_in_use(host, port)


def port_in_use(host: str, port: int | None) -> PortInUse:
    return PortInUse(
        f"Port {port} on {host} is in use by another program. Name another with --port,"
        " or leave --port out to take any free one."
    )


class Supervisor:
    """Runs one stack in one home from ``run`` until SIGTERM, SIGINT or SIGHUP."""

    def __init__(self, home: Home, options: Options, say: Callable[[str], None]) -> None:
        self.home = home
        self.options = options
        self.say = say
        self.children: list[Child] = []
        self.stop_requests = 0
        self.state = StackState(uuid.uuid4().hex, os.getpid(), options.host, 0)

    def run(self) -> None:
        """Start everything, keep it running, stop it when asked.

        Raises:
            AlreadyRunning: a stack runs in this home.
            PortInUse, StackFailed: it could not start; nothing is left running.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._ask_to_stop)
        with self.home.locked():
            clean_up(self.home)
            port = choose_port(self.options.host, self.options.port)
            folder = broker_server.socket_folder(self.home)
            elsewhere = "" if folder == self.home.broker else str(folder)
            self._publish(port=port, socket_dir=elsewhere)
            try:
                self._start(folder / "redis.sock")
                self._keep_running()
            except Interrupted:
                pass
            finally:
                self._stop()

    def _ask_to_stop(self, _signal: int, _frame: FrameType | None) -> None:
        self.stop_requests += 1

    def _publish(self, **changes: object) -> None:
        processes = {
            child.name: child.process.pid for child in self.children if child.process is not None
        }
        self.state = self.state.with_(processes=processes, **changes)
        self.home.write_state(self.state)
        self.home.write_targets(targets(self.state, self.children))

    # Starting

    def _start(self, redis_socket: Path) -> None:
        environment = self._environment(redis_socket)
        self.say("starting redis-server")
        self._start_redis(redis_socket, environment)
        self.say("preparing the database")
        self._migrate(environment)
        self.say("starting gateway, dispatcher, ingester and workers")
        gateway = self._add("gateway", ["-m", "services.gateway"], environment)
        copies = self.options.workers or max(1, (os.cpu_count() or 1) // 4)
        ports = iter(free_ports(2 + copies * len(Stage)))
        for name in ("dispatcher", "ingester"):
            watched = environment | watched_at(next(ports))
            self._add(name, ["-m", f"services.{name}"], watched)
        for stage in Stage:
            for number in range(1, copies + 1):
                name = f"{SERVICE_OF[stage]}-{number}"
                shared = {MULTIPROC_DIR: str(self.home.metrics / name)}
                watched = environment | watched_at(next(ports)) | shared
                self._add(name, worker_arguments(stage, name), watched)
        self._wait_for_gateway(gateway)
        self._publish(status="ready")
        self.say(f"ready at {self.state.url}")

    def _environment(self, redis_socket: Path) -> dict[str, str]:
        """Return the environment of every child: settings, one thread each, the stack's mark."""
        return {
            "OMP_NUM_THREADS": "1",
            **importable_environment(),
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
            "SOUNDMILL_EMBEDDED": "true",
            "REMAP_SIGTERM": "SIGQUIT",  # Celery: a SIGTERM to a whole group leaves children alone
            "SOUNDMILL_HOME": str(self.home.folder),
            "SOUNDMILL_HOST": self.state.host,
            "SOUNDMILL_PORT": str(self.state.port),
            "SOUNDMILL_REDIS_URL": f"unix://{redis_socket}",
            "SOUNDMILL_STACK_ID": self.state.stack_id,
        }

    def _child(self, name: str, command: list[str], environment: dict[str, str]) -> Child:
        child = Child(name, command, dict(environment), self.home.folder, self.home.log(name))
        self.children.append(child)
        return child

    def _add(self, name: str, arguments: list[str], environment: dict[str, str]) -> Child:
        child = self._child(name, [sys.executable, *arguments], environment)
        child.start()
        self._publish()
        return child

    def _start_redis(self, redis_socket: Path, environment: dict[str, str]) -> None:
        config = broker_server.write_config(self.home, redis_socket)
        command = [broker_server.find_server(), str(config)]
        child = self._child("redis", command, environment)
        child.on_orphaned = signal.SIGTERM  # it writes its file to the end first

        def answers() -> bool:
            connection = redis.Redis.from_url(f"unix://{redis_socket}", socket_timeout=5)
            with connection, suppress(redis.RedisError):
                return bool(connection.ping())
            return False

        child.start()
        self._publish()
        try:
            self._wait_for(child, answers)
        except StackFailed:
            if child.is_alive or not broker_server.set_aside(self.home):
                raise
            self.say("redis-server could not read its file; it is set aside (no work is lost)")
            child.start()
            self._wait_for(child, answers)

    def _migrate(self, environment: dict[str, str]) -> None:
        log = self.home.log("migrate")
        with log.open("wb") as output:
            done = subprocess.run(
                [sys.executable, "-m", "common.migrate"],
                env=environment,
                cwd=self.home.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            )
        if self.stop_requests:
            raise Interrupted
        if done.returncode != 0:
            words = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise StackFailed(f"The database could not be prepared: {' '.join(words)} (see {log})")

    def _wait_for_gateway(self, gateway: Child) -> None:
        while True:
            try:
                self._wait_for(gateway, lambda: self._gateway_is_ready(gateway))
                return
            except StackFailed:
                if not lost_its_port(gateway):
                    raise
            if self.options.port is not None:
                raise port_in_use(self.options.host, self.options.port)
            self._move(gateway)
            gateway.start()

    def _move(self, gateway: Child) -> None:
        """Give the gateway another port: a program took ours after we had looked."""
        port = choose_port(self.options.host, 0)
        gateway.environment["SOUNDMILL_PORT"] = str(port)
        self._publish(port=port)

    def _gateway_is_ready(self, gateway: Child) -> bool:
        """Whether our gateway is ready, and not that of another stack at the same port."""
        if gateway.process is None or not listens(gateway.process.pid, self.state.port):
            return False
        try:
            answer = httpx.get(f"{self.state.url}/ready", timeout=5, trust_env=False)
        except httpx.HTTPError:
            return False
        if answer.is_success:
            return True
        short = only_lacks_room(answer)
        if short:
            self.say(f"make room on the disk, or jobs will wait for it: {short}")
        return short is not None

    def _wait_for(self, child: Child, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + STARTED_WITHIN_S
        while not condition():
            if self.stop_requests:
                raise Interrupted
            if not child.is_alive and child.process is not None:
                reason = f"{child.name} did not start ({ending(child.process)})"
            elif time.monotonic() > deadline:
                reason = f"{child.name} did not get ready within {STARTED_WITHIN_S:g} s"
            else:
                time.sleep(0.05)
                continue
            raise StackFailed(f"{reason}. Its last words, from {child.log}:\n{child.last_words()}")

    # Running and stopping

    def _keep_running(self) -> None:
        while not self.stop_requests:
            for child in self.children:
                if child.name == "gateway" and self.options.port is None and lost_its_port(child):
                    with suppress(OSError):
                        self._move(child)
            started = [child for child in self.children if child.keep_alive(self.say)]
            if started:
                with suppress(OSError):
                    self._publish()
            for child in self.children:
                child.rotate_log()
            time.sleep(TURN_S)

    def _stop(self) -> None:
        """Workers first, so that they can still report; redis-server last."""
        with suppress(OSError):  # a full disk must not keep processes running
            self._publish(status="stopping")
        asked = self.stop_requests
        gateway = [child for child in self.children if child.name == "gateway"]
        broker = [child for child in self.children if child.name == "redis"]
        workers = [child for child in self.children if child not in gateway + broker]
        if workers:
            self.say("stopping: work in progress gets 20 s, stop again to cut it short")
        for group, grace_s in ((workers, WORK_GRACE_S), (gateway, 5.0), (broker, 10.0)):
            for child in group:
                child.signal(signal.SIGTERM)
            ended = wait_all(group, grace_s, hurry=lambda: self.stop_requests > max(asked, 1))
            if group is workers and not ended:
                for child in group:
                    child.signal(signal.SIGTERM)
                wait_all(group, HURRIED_GRACE_S, hurry=lambda: False)
            for child in group:
                child.kill()
        remove_sockets(self.home, self.state)
        self.home.remove_state()
        self.say("stopped")


def lost_its_port(gateway: Child) -> bool:
    """Whether the gateway ended because its port was taken."""
    return gateway.process is not None and gateway.process.poll() == os.EX_UNAVAILABLE


def only_lacks_room(answer: httpx.Response) -> str | None:
    """Return what a gateway says of its disk, if that alone keeps it from being ready.

    It must come up then, so that jobs can be deleted.
    """
    try:
        wrong = {n: text for n, text in answer.json()["checks"].items() if not is_well(text)}
    except (ValueError, KeyError, AttributeError):
        return None
    return wrong["disk"] if set(wrong) == {"disk"} else None


def listens(pid: int, port: int) -> bool:
    """Whether a process of ours listens on a TCP port."""
    try:
        connections = psutil.Process(pid).net_connections(kind="tcp")
    except psutil.Error:
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)


def worker_arguments(stage: Stage, name: str) -> list[str]:
    """Return Python's arguments that run one copy of a stage's worker: one process, one model."""
    queues = ",".join(queue_name(stage, priority) for priority in Priority)
    app = f"services.{SERVICE_OF[stage]}.tasks:app"
    options = ["--pool", "prefork", "--concurrency", "1", "--queues", queues]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO"]
    return [
        "-m",
        "celery",
        "-A",
        app,
        "--quiet",
        "worker",
        "--hostname",
        f"{name}@%h",
        *options,
        *quiet,
    ]


def remove_sockets(home: Home, state: StackState) -> None:
    """Remove what redis-server leaves in the file system, and the socket's folder if it is ours."""
    (home.broker / "redis.sock").unlink(missing_ok=True)
    folder = Path(state.socket_dir)
    if state.socket_dir and folder.name.startswith("soundmill-"):
        shutil.rmtree(folder, ignore_errors=True)


def clean_up(home: Home) -> None:
    """Remove what a killed supervisor left behind: processes, socket, state. Needs the lock."""
    state = home.read_state()
    if state is not None:
        kill_leftovers(state.stack_id)
        remove_sockets(home, state)
    home.remove_state()
