"""Health of a dispatcher or worker container: exits 0 if database and Redis answer.

The process itself is watched by the container engine; what it cannot see is whether the process can
reach what it needs.
"""

from __future__ import annotations

import redis
from sqlalchemy import create_engine, text

from common.settings import get_settings

TIMEOUT_S = 4


def main() -> None:
    settings = get_settings()
    broker = redis.Redis.from_url(
        settings.redis_url.get_secret_value(),
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
    )
    broker.ping()
    engine = create_engine(settings.database_url.get_secret_value())
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))


if __name__ == "__main__":
    main()
