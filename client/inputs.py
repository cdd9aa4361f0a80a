"""What a submission is made of: recordings sent one by one, archives and manifests sent whole,
addresses that the server reads itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from client.api.source_calls import Use
from client.errors import InputInvalid, NoAudio
from client.sources import AUDIO_SUFFIXES, Source, clean_name, is_archive, list_sources, show

ARCHIVES = {  # by the end of the name; the server looks at the content
    ".zip": "application/zip",
    ".tar": "application/x-tar",
    ".tar.gz": "application/gzip",
    ".tgz": "application/gzip",
    ".tar.zst": "application/zstd",
    ".tzst": "application/zstd",
}
MANIFESTS = {
    ".jsonl": "application/x-ndjson",
    ".ndjson": "application/x-ndjson",
    ".csv": "text/csv",
}


@dataclass(frozen=True)
class Bundle:
    """A file that is sent whole and holds or names many recordings."""

    source: Source
    use: Use
    media_type: str


@dataclass(frozen=True)
class Inputs:
    """Everything to submit. ``skipped`` counts by reason what was left out."""

    files: list[Source] = field(default_factory=list)
    bundles: list[Bundle] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)

    def without_files(self) -> Inputs:
        """Return what only the server can look into."""
        return replace(self, files=[])

    @property
    def size_bytes(self) -> int:
        """How much there is to send."""
        sources = [*self.files, *(bundle.source for bundle in self.bundles)]
        return sum(source.size_bytes() for source in sources)


def read_inputs(arguments: list[str]) -> Inputs:
    """Return what the arguments of ``soundmill submit`` mean.

    Raises:
        NoAudio: a path does not exist, or holds nothing that looks like audio.
        InputInvalid: an address of a kind that nobody reads.
    """
    inputs = Inputs()
    for argument in arguments:
        if "://" in argument:
            add_address(inputs, argument)
        else:
            add_path(inputs, Path(argument))
    return inputs


def add_address(inputs: Inputs, address: str) -> None:
    """An object or a page is one recording; anything else is everything below it."""
    scheme, _, rest = address.partition("://")
    if scheme not in ("http", "https", "s3", "file"):
        raise InputInvalid(f"{show(address)}: not http, https, s3 or file.")
    is_one = PurePosixPath(rest).suffix.lower() in AUDIO_SUFFIXES
    if scheme in ("http", "https") or is_one:
        inputs.urls.append(address)
    else:
        inputs.prefixes.append(address)


def add_path(inputs: Inputs, path: Path) -> None:
    """An archive or a manifest by its name is sent whole; the rest is what ``process`` takes."""
    if path.is_file():
        bundle = as_bundle(path)
        if bundle is not None:
            inputs.bundles.append(bundle)
            return
    listing = list_sources([path])
    inputs.files.extend(listing.sources)
    for reason, number in listing.skipped.items():
        inputs.skipped[reason] = inputs.skipped.get(reason, 0) + number


def as_bundle(path: Path) -> Bundle | None:
    """Return a file as an archive or a manifest, None when it is taken for a recording."""
    name = path.name.lower()
    source = Source(clean_name(path.name), path)
    if path.stat().st_size == 0 and name.endswith((*ARCHIVES, *MANIFESTS)):
        raise NoAudio(f"{show(str(path))} is empty.")
    for suffix, media_type in ARCHIVES.items():
        if name.endswith(suffix):
            return Bundle(source, "archive", media_type)
    for suffix, media_type in MANIFESTS.items():
        if name.endswith(suffix):
            return Bundle(source, "manifest", media_type)
    return Bundle(source, "archive", ARCHIVES[".zip"]) if is_archive(path) else None
