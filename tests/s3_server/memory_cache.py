"""A paste filter that gives Swift's proxy a cache in its own memory, in the place of memcached."""

import time as clock


class MemoryCache:
    """The part of Swift's memcache client that its middleware calls."""

    def __init__(self):
        self._entries = {}

    def get(self, key, raise_on_error=False, **_):
        value, expires_at = self._entries.get(key, (None, 0))
        if expires_at and expires_at < clock.time():
            del self._entries[key]
            return None
        return value

    def set(self, key, value, serialize=True, time=0, **_):
        self._entries[key] = (value, clock.time() + time if time else 0)

    def delete(self, key, server_key=None, **_):
        self._entries.pop(key, None)

    def incr(self, key, delta=1, time=0, **_):
        value = max(0, int(self.get(key) or 0) + int(delta))
        self.set(key, value, time=time)
        return value

    def decr(self, key, delta=1, time=0, **_):
        return self.incr(key, -delta, time)

    def get_multi(self, keys, server_key=None, **_):
        return [self.get(key) for key in keys]

    def set_multi(self, entries, server_key=None, serialize=True, time=0, **_):
        for key, value in entries.items():
            self.set(key, value, time=time)


def filter_factory(global_conf, **local_conf):
    """Return the filter: every request finds the same cache in its environment."""
    cache = MemoryCache()

    def with_cache(app):
        def handle(environ, start_response):
            environ["swift.cache"] = cache
            return app(environ, start_response)

        return handle

    return with_cache
