"""What is examined: a deployment by the settings of the environment, or the home of a stack."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from client import control
from client.children import SERVERS
from client.home import Home, StackState
from common.checks import ALL_PARTS
from common.settings import Settings


@dataclass(frozen=True)
class Target:
    """A deployment. ``home`` is set for a stack on this machine, ``state`` while that runs."""

    settings: Settings
    home: Home | None = None
    state: StackState | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """What can be looked at: of a stack that does not run, only what lies on the disk."""
        if self.home is None or self.state is not None:
            return ALL_PARTS
        return ("database", "store", "disk") if self.is_used else ("disk",)

    @property
    def is_used(self) -> bool:
        """Whether there is a database to look into."""
        return self.home is None or (self.home.folder / "soundmill.db").exists()


def target_of(home: Home, is_asked_for: bool) -> Target:
    """Return the deployment of the environment if it names servers, else the stack in a home.

    Args:
        is_asked_for: The user named the home: it is what is meant, whatever the environment says.
    """
    if not is_asked_for and any(os.environ.get(name) for name in SERVERS):
        return Target(Settings())
    state = control.find(home)
    folder = Path(state.socket_dir) if state and state.socket_dir else home.broker
    settings = Settings(
        home=home.folder,
        embedded=True,
        database_url=SecretStr(""),  # as the stack does: what the environment says is not meant
        store_url="",
        redis_url=SecretStr(f"unix://{folder / 'redis.sock'}"),
    )
    if state:
        settings = settings.model_copy(update={"host": state.host, "port": state.port})
    return Target(settings, home, state)
