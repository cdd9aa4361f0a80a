"""``query``, ``similar`` and ``text``: where something sounds, by words or by example."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from heapq import nlargest
from typing import Annotated

import typer

from client.api import Alike, Gateway, Job, Recording, Similar
from client.commands.options import (
    DEFAULT_HOME,
    HomeOption,
    JobArgument,
    JsonOption,
    KeyOption,
    UrlOption,
)
from client.commands.output import say, say_json, told_plainly
from client.errors import InputInvalid
from client.home import Home
from client.place import Place, find_job
from common.settings import Settings
from common.text.understanding import WHY, Understood
from common.wording import wording_of

SHOWN = 5  # events of a recording
PAGE = 100  # hits of one request
RECORDING_ID = re.compile(r"[0-9a-f]{32}")
COUNTS = ("looked_at", "without_vectors", "other_weights", "unreadable")


def query(
    job: JobArgument,
    text: Annotated[str, typer.Argument(help="What to look for: `dogs barking`.")],
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    key: KeyOption = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many recordings.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Name the recordings of a job in which something sounds, asked for in words."""
    with told_plainly(as_json), Place(Home.at(home), url, key).gateway() as gateway:
        found = find_job(gateway, job)
        page = gateway.search(found.id, text)
        hits, unreadable = list(page.hits), page.unreadable
        while page.next_cursor is not None and len(hits) < limit:
            page = gateway.search(found.id, text, cursor=page.next_cursor)
            hits.extend(page.hits)
            unreadable += page.unreadable
        hits = hits[:limit]
        if as_json:
            content = [hit.model_dump(mode="json") for hit in hits]
            say_json(
                {
                    "job": found.id,
                    "labels": page.labels,
                    "hits": content,
                    "unreadable": unreadable,
                }
            )
            return
        say(f"{text!r} is taken for: {', '.join(page.labels)}")
        for hit in hits:
            times = ", ".join(
                f"{event.label} {event.onset_s:.1f} s" for event in hit.events[:SHOWN]
            )
            more = f" and {len(hit.events) - SHOWN} more" if len(hit.events) > SHOWN else ""
            say(f"{hit.recording_id}  {hit.name}: {times}{more}")
        if not hits:
            say("No recording has it.")
        if unreadable:
            say(f"Left out, since they could not be read: {unreadable}.")


def similar(
    job: JobArgument,
    recording: Annotated[str, typer.Argument(help="Id, name or custom id of a recording.")],
    from_s: Annotated[float, typer.Option("--from", min=0.0, help="Where it begins, in seconds.")],
    to_s: Annotated[float, typer.Option("--to", min=0.0, help="Where it ends, in seconds.")],
    home: HomeOption = DEFAULT_HOME,
    url: UrlOption = "",
    key: KeyOption = None,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="In every job, not in this one alone.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many stretches.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Find what sounds like a stretch of a recording.

    The job must have been submitted with the parameters {"classify": {"embeddings": true}}.
    """
    with told_plainly(as_json), Place(Home.at(home), url, key).gateway() as gateway:
        found = find_job(gateway, job)
        example = find_recording(gateway, found, recording)
        hits: list[Alike] = []
        counts: Counter[str] = Counter()
        for page in similar_pages(gateway, example.id, from_s, to_s, everywhere, min(limit, PAGE)):
            hits = nlargest(limit, [*hits, *page.hits], key=lambda hit: hit.similarity)
            counts.update({name: getattr(page, name) for name in COUNTS})
        if as_json:
            content = [hit.model_dump(mode="json") for hit in hits]
            say_json({"recording": example.id, "hits": content, **counts})
            return
        for hit in hits:
            label = f"  {hit.label}" if hit.label else ""
            place = f"{hit.onset_s:.1f} to {hit.offset_s:.1f} s"
            say(f"{hit.similarity:.3f}  {hit.recording_id}  {hit.name}: {place}{label}")
        say(f"{counts['looked_at']} recordings compared{_left_out(counts)}.")


def similar_pages(
    gateway: Gateway, recording_id: str, from_s: float, to_s: float, everywhere: bool, limit: int
) -> Iterator[Similar]:
    """Yield page after page of what sounds alike."""
    cursor: str | None = None
    while True:
        page = gateway.similar(
            recording_id, from_s, to_s, everywhere=everywhere, limit=limit, cursor=cursor
        )
        yield page
        cursor = page.next_cursor
        if cursor is None:
            return


def find_recording(gateway: Gateway, job: Job, name: str) -> Recording:
    """Return a recording of a job by its id, its name or its custom id.

    Raises:
        InputInvalid: no recording is called so, or several are.
    """
    if RECORDING_ID.fullmatch(name):
        return gateway.recording(name)
    named = [found for found in gateway.recordings(job.id, name=name) if found.name == name]
    found = named or list(gateway.recordings(job.id, custom_id=name))
    if len(found) != 1:
        count = "No recording" if not found else f"{len(found)} recordings"
        raise InputInvalid(f"{count} of job {job.id} is called {name!r}: give its id.")
    return found[0]


def text(
    words: Annotated[str, typer.Argument(help="A request: `remove the barking dog`.")],
    as_json: JsonOption = False,
) -> None:
    """Tell how a request in words is understood. Needs no gateway.

    Leaves with 1 where it is not. Labels of your own and an encoder are those of the settings here.
    """
    wording = wording_of(Settings(), lambda why: typer.echo(f"soundmill: {why}.", err=True))
    meant = wording.understand(words)
    if as_json:
        why = WHY[meant.abstained] if meant.abstained else None
        known = wording.labels
        say_json({"labels": meant.labels, **asdict(meant), "detail": why, "known": known})
    else:
        _say_meaning(meant, wording.labels)
    if meant.abstained:
        raise typer.Exit(1)


def _say_meaning(meant: Understood, known: tuple[str, ...]) -> None:
    for guess in meant.guesses:
        say(f"{guess.label}  {guess.confidence:.2f}{'  by the encoder' if meant.judged else ''}")
    for name, found in (
        ("perhaps", [f"{guess.label} ({guess.confidence:.2f})" for guess in meant.unsure]),
        ("not meant", meant.excluded),
        ("known as something else", meant.others),
        ("not understood", meant.unknown),
    ):
        if found:
            say(f"{name}: {', '.join(found)}")
    if meant.abstained:
        say(f"{WHY[meant.abstained]} Known: {', '.join(known)}.")


def _left_out(counts: Counter[str]) -> str:
    said = [
        f"{counts[name]} {words}"
        for name, words in (
            ("without_vectors", "have no vectors"),
            ("other_weights", "have vectors of other weights"),
            ("unreadable", "could not be read"),
        )
        if counts[name]
    ]
    return f"; {', '.join(said)}" if said else ""
