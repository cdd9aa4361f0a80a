"""The form reader, fed in pieces of every size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.bodies import Form
from services.gateway.problems import Problem

CONTENT_TYPE = 'multipart/form-data; boundary="a b"'
CONTENTS = st.binary(max_size=200) | st.lists(
    st.sampled_from([b"\r\n", b"--a b", b"\r\n--a", b"--", b"-", b"\r", b"\n", b"x"]), max_size=12
).map(b"".join)


class Pieces:
    """A body that arrives in given pieces."""

    def __init__(self, data: bytes, sizes: Iterator[int]) -> None:
        self._rest = data
        self._sizes = sizes

    def read(self, _size: int, /) -> bytes:
        size = next(self._sizes)
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece


def encode(parts: list[tuple[str, bytes]]) -> bytes:
    body = b""
    for name, data in parts:
        disposition = f'Content-Disposition: form-data; name="{name}"; filename="{name}.wav"'
        body += b"--a b\r\n" + disposition.encode() + b"\r\n\r\n" + data + b"\r\n"
    return body + b"--a b--\r\n"


def form(data: bytes, sizes: list[int]) -> Form:
    def forever() -> Iterator[int]:
        while True:
            yield from sizes

    body: Any = Pieces(data, forever())
    return Form(body, CONTENT_TYPE)


def read_all(parts: Form) -> list[tuple[str, bytes]]:
    found = []
    for part in parts.parts():
        content = b""
        while piece := part.read(7):
            assert len(piece) <= 7
            content += piece
        assert part.read(7) == b""
        assert part.filename == f"{part.name}.wav"
        found.append((part.name, content))
    return found


@given(
    st.lists(st.tuples(st.sampled_from(["file", "name", "ä"]), CONTENTS), min_size=1, max_size=5),
    st.lists(st.integers(1, 50), min_size=1, max_size=10),
)
def test_parts_come_out_as_they_went_in(parts: list[tuple[str, bytes]], sizes: list[int]) -> None:
    if any(b"\r\n--a b" in b"\r\n" + data for _, data in parts):
        return  # no sender would have chosen this boundary
    assert read_all(form(encode(parts), sizes)) == parts


@given(st.lists(st.integers(1, 50), min_size=1, max_size=10), st.lists(st.booleans(), min_size=3))
def test_what_is_left_unread_is_passed_over(sizes: list[int], reads: list[bool]) -> None:
    parts = [("first", b"x" * 100), ("second", b"y" * 100), ("third", b"z" * 100)]
    names = []
    for part, read in zip(form(encode(parts), sizes).parts(), reads, strict=False):
        names.append(part.name)
        if read:
            part.read(10)
    assert names == ["first", "second", "third"]


@given(st.integers(0, 120), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_a_form_cut_anywhere_is_no_form(cut: int, sizes: list[int]) -> None:
    whole = encode([("file", b"some content")])
    cut = min(cut, len(whole) - 5)
    with pytest.raises(Problem, match="Not a valid form"):
        read_all(form(whole[:cut], sizes))


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_any_bytes_are_a_form_or_a_problem(data: bytes, sizes: list[int]) -> None:
    with suppress(Problem):
        read_all(form(b"--a b\r\n" + data, sizes))
