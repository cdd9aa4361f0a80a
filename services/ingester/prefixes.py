"""Everything below s3://bucket/prefix or file:///folder, in a stable order.

A listing may change while it is read, so reading goes on after a name, not after a number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from common.errors import NotFound, SourceInvalid, UrlForbidden
from common.sources import ManifestLine, PrefixSpec
from common.storage.s3_client import s3_errors
from services.ingester.entries import Entry, Found, Names, Refused, Tally, show
from services.ingester.locators import Locators, import_path


@dataclass(frozen=True)
class _Item:
    """A file or object below the prefix. ``path`` is relative to it."""

    path: str
    url: str

    @property
    def mark(self) -> str:
        return quote(os.fsencode(self.path))  # what any database can keep


def read_prefix(locators: Locators, spec: PrefixSpec, start: int, tally: Tally) -> Iterator[Found]:
    """Yield what lies below a prefix, numbered from ``start``, after the mark of the spec.

    Raises:
        SourceInvalid: prefix_forbidden, source_unavailable.
    """
    items = _objects(locators, spec) if spec.url.startswith("s3://") else _files(locators, spec)
    names = Names(all_files=False)
    number = start
    for item in items:
        reason = names.left_out(item.path)
        if reason is not None:
            tally.left_out[reason] += 1
            continue
        name = show(item.path)
        again = {"url": item.url, "name": name}
        try:
            line = ManifestLine(url=item.url, name=name)
        except ValueError:
            yield Refused(
                number, name, code="name_invalid", detail="the name cannot be kept", mark=item.mark
            )
        else:
            yield Entry(number, name, again=again, mark=item.mark, open=locators.locate(line))
        number += 1


def _objects(locators: Locators, spec: PrefixSpec) -> Iterator[_Item]:
    try:
        place = locators.bucket(spec.url)
    except UrlForbidden as error:
        raise SourceInvalid("prefix_forbidden", str(error)) from error
    folder = place.key[: place.key.rfind("/") + 1]
    after = None if spec.after is None else folder + _unmark(spec.after)
    try:
        with s3_errors("listing what is to be imported"):
            for found in place.client.list_objects(
                place.bucket, place.key, recursive=True, start_after=after
            ):
                key = found.object_name or ""
                if not key.endswith("/"):
                    yield _Item(key.removeprefix(folder), f"s3://{place.bucket}/{key}")
    except NotFound as error:
        raise SourceInvalid("source_unavailable", "there is no such bucket") from error


def _files(locators: Locators, spec: PrefixSpec) -> Iterator[_Item]:
    if not spec.url.startswith("file://"):
        raise SourceInvalid("prefix_forbidden", "a prefix begins with s3:// or file://")
    try:
        root, steps = import_path(locators.settings, spec.url)
    except UrlForbidden as error:
        raise SourceInvalid("prefix_forbidden", str(error)) from error
    real = Path(os.path.realpath(root))
    top = real.joinpath(*steps)
    if Path(os.path.realpath(top)) != top:
        raise SourceInvalid("prefix_forbidden", "the path leads over a link")
    if not top.is_dir():
        raise SourceInvalid("source_unavailable", "there is no such folder")
    shown = root.joinpath(*steps)
    after = tuple(_unmark(spec.after).split("/")) if spec.after is not None else ()
    for path in _walk(top, ()):
        if path > after:
            yield _Item("/".join(path), f"file://{quote(os.fsencode(shown.joinpath(*path)))}")


def _unmark(mark: str) -> str:
    return os.fsdecode(unquote_to_bytes(mark))


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the files below a folder as paths relative to it, sorted; links are not followed."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:  # gone meanwhile, or not to be read
        return
    for entry in entries:
        path = (*above, entry.name)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, path)
        elif entry.is_file(follow_symlinks=False):
            yield path
