"""Server-sent events as they come over the wire, made into ``JobEvent``."""

from __future__ import annotations

import json
from collections.abc import Iterator

from client.api.records import JobEvent


class EventReader:
    """Takes the bytes of a stream and gives its events; knows the id of the last one.

    Lines end with CR, LF or both and nothing else, as the HTML standard has it.
    """

    def __init__(self, after: int | None = None) -> None:
        self.last_id = after
        self._rest = b""
        self._fields: dict[str, str] = {}

    @property
    def headers(self) -> dict[str, str]:
        """The headers that ask for what comes after the last event."""
        place = {} if self.last_id is None else {"Last-Event-ID": str(self.last_id)}
        return {"Accept": "text/event-stream", **place}

    def begin_anew(self) -> None:
        """Forget half an event: the connection broke in the middle of it."""
        self._rest, self._fields = b"", {}

    def feed(self, block: bytes) -> Iterator[JobEvent]:
        """Yield the events that are whole with these bytes."""
        text = self._rest + block
        held = b"\r" if text.endswith(b"\r") else b""  # the LF of it may follow
        text = text.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._rest = rest + held
        for line in lines:
            event = self._line(line.decode(errors="replace"))
            if event is not None:
                yield event

    def _line(self, line: str) -> JobEvent | None:
        if line:
            name, _, value = line.partition(":")
            if name:  # a line that begins with a colon is a comment
                value = value.removeprefix(" ")
                before = self._fields.get(name) if name == "data" else None
                self._fields[name] = value if before is None else f"{before}\n{value}"
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        number = fields.get("id", "")
        event_id = int(number) if number.isascii() and number.isdigit() else None
        if event_id is not None:
            self.last_id = event_id
        return JobEvent(
            id=event_id, kind=fields.get("event", "message"), data=json.loads(fields["data"])
        )
