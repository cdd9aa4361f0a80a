"""How many requests a key may send. Counted in Redis, so that several gateways count together.

Source: the sliding window counter of the ``limits`` library: two counters per key, however many
requests come.
"""

from __future__ import annotations

import math
import time
from http import HTTPStatus

from limits import RateLimitItemPerMinute, WindowStats
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter as SharedLimiter
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter as OwnLimiter
from redis.asyncio import BlockingConnectionPool
from redis.exceptions import RedisError

from common import logs
from common.metrics import count_broker_error
from services.gateway.problems import Problem

log = logs.get_logger(__name__)

REDIS_TIMEOUT_S = 0.5
REDIS_CONNECTIONS = 32
AGAIN_AFTER_S = 5.0  # an outage of Redis costs one request its timeout, not every one


class RateLimiter:
    """Counts requests per key. While Redis does not answer, this process counts alone."""

    def __init__(self, redis_url: str, per_minute: int) -> None:
        self._per_minute = per_minute
        self._pool = BlockingConnectionPool.from_url(
            redis_url,
            max_connections=REDIS_CONNECTIONS,
            timeout=REDIS_TIMEOUT_S,
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
        )
        storage = RedisStorage(
            "async+redis://",
            implementation="redispy",
            key_prefix="soundmill:rate",
            connection_pool=self._pool,  # type: ignore[arg-type]  # declared too narrowly
        )
        self._shared = SharedLimiter(storage)
        self._own = OwnLimiter(MemoryStorage())
        self._down_until = float("-inf")

    async def check(self, key_id: str, per_minute: int | None) -> None:
        """Count a request of a key.

        Args:
            per_minute: The key's own limit; None: everybody's.

        Raises:
            Problem: too many in the last minute.
        """
        limit = RateLimitItemPerMinute(self._per_minute if per_minute is None else per_minute)
        if time.monotonic() >= self._down_until:
            try:
                if await self._shared.hit(limit, key_id):
                    return
                raise _too_many(limit, await self._shared.get_window_stats(limit, key_id))
            except RedisError as error:
                self._down_until = time.monotonic() + AGAIN_AFTER_S
                count_broker_error(error)
                log.warning("rates not counted in Redis", detail=str(error))
        if not self._own.hit(limit, key_id):
            raise _too_many(limit, self._own.get_window_stats(limit, key_id))

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


def _too_many(limit: RateLimitItemPerMinute, window: WindowStats) -> Problem:
    wait_s = max(1, math.ceil(window.reset_time - time.time()))
    return Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        "rate_limited",
        f"More than {limit.amount} requests of this key within a minute.",
        {"Retry-After": str(wait_s)},
    )
