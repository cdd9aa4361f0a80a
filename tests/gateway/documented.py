"""Which problems the API's own description knows at an address, for every test to be held to."""

from __future__ import annotations

import re
from functools import cache

import httpx
from pydantic import SecretStr

from common.settings import Settings
from services.gateway import api_document
from services.gateway.app import create_app

Known = set[tuple[int, str]]


@cache
def operations() -> list[tuple[str, re.Pattern[str], Known]]:
    """Return method, path and known problems (status, code) of every operation."""
    nowhere = Settings(database_url=SecretStr("postgresql+psycopg://nobody@127.0.0.1/nothing"))
    document = api_document.build(create_app(nowhere))
    found = []
    for path, item in document["paths"].items():
        pattern = re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)))
        for method, operation in item.items():
            known = {
                (int(status), code)
                for status, response in operation["responses"].items()
                for schema in [response.get("content", {}).get(api_document.MEDIA_TYPE, {})]
                for code in schema.get("examples", {})
            }
            found.append((method.upper(), pattern, known))
    return found


def is_documented(request: httpx.Request, status: int, code: str) -> bool:
    """Return whether a request may be answered so. What is asked of no operation may not be."""
    path = request.url.raw_path.decode().partition("?")[0]
    here = [known for method, pattern, known in operations() if pattern.fullmatch(path)]
    mine = [
        known
        for method, pattern, known in operations()
        if method == request.method.replace("HEAD", "GET") and pattern.fullmatch(path)
    ]
    if mine:
        return any((status, code) in known for known in mine)
    return code in ("method_not_allowed" if here else "not_found", "request_invalid")
