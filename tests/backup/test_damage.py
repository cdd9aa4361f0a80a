"""A backup that is damaged, or made to do harm, is refused; the database stays as it was."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.cli import app
from common.backup.make import make_backup
from common.backup.manifest import LISTING, MANIFEST, Backup, checksum_of, open_backup
from common.backup.restore import check_backup, restore_backup
from common.errors import BackupInvalid
from tests.backup.conftest import EMBEDDED, MakePlace, fill


@pytest.fixture
def backup(make_place: MakePlace, tmp_path: Path) -> Backup:
    place = make_place(EMBEDDED)
    fill(place)
    return make_backup(place.settings, tmp_path / "backup").backup


def write(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


def an_object(backup: Backup) -> Path:
    return min(backup.objects.rglob("mask.npz"))


def change_manifest(backup: Backup, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest as somebody would who knows how its checksum is made."""
    path = backup.folder / MANIFEST
    content = json.loads(path.read_text())
    del content["checksum"]
    change(content)
    path.write_text(json.dumps({**content, "checksum": checksum_of(content)}))


def change_lines(backup: Backup, name: str, change: Callable[[list[Any]], None]) -> None:
    """Change the lines of a packed file, and the manifest with them."""
    path = backup.copy / name
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    change(lines)
    data = gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode())
    write(path, data)
    file = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def note(content: dict[str, Any]) -> None:
        if name == LISTING:
            content["objects"] |= {"file": file, "count": len(lines)}
            content["objects"]["size_bytes"] = sum(line[1] for line in lines)
            return
        (table,) = [one for one in content["tables"] if f"{one['name']}.jsonl.gz" == name]
        table |= {"file": file, "rows": len(lines)}

    change_manifest(backup, note)


def truncated_object(backup: Backup) -> None:
    write(an_object(backup), an_object(backup).read_bytes()[:-1])


def changed_object(backup: Backup) -> None:
    write(an_object(backup), an_object(backup).read_bytes()[:-1] + b"!")


def missing_object(backup: Backup) -> None:
    an_object(backup).unlink()


def linked_object(backup: Backup) -> None:
    path = an_object(backup)
    other = path.rename(backup.folder.parent / "elsewhere")
    path.symlink_to(other)


def linked_folder(backup: Backup) -> None:
    folder = backup.objects / "artifacts"
    other = folder.rename(backup.folder.parent / "elsewhere")
    folder.symlink_to(other)


def truncated_table(backup: Backup) -> None:
    path = backup.copy / "recording.jsonl.gz"
    write(path, path.read_bytes()[:-20])


def missing_table(backup: Backup) -> None:
    (backup.copy / "recording.jsonl.gz").unlink()


def missing_list(backup: Backup) -> None:
    (backup.copy / LISTING).unlink()


def changed_manifest(backup: Backup) -> None:
    path = backup.folder / MANIFEST
    path.write_text(path.read_text().replace('"revision": "0', '"revision": "1'))


def truncated_manifest(backup: Backup) -> None:
    path = backup.folder / MANIFEST
    path.write_text(path.read_text()[:-30])


def no_manifest(backup: Backup) -> None:
    (backup.folder / MANIFEST).unlink()


def another_version(backup: Backup) -> None:
    change_manifest(backup, lambda content: content.update(version=2))


def newer_schema(backup: Backup) -> None:
    change_manifest(backup, lambda content: content.update(revision="9999"))


def a_copy_elsewhere(backup: Backup) -> None:
    change_manifest(backup, lambda content: content.update(copy_name="../../etc"))


def a_table_elsewhere(backup: Backup) -> None:
    change_manifest(backup, lambda content: content["tables"][0].update(name="../../etc/passwd"))


def an_object_elsewhere(backup: Backup) -> None:
    change_lines(backup, LISTING, lambda lines: lines[0].__setitem__(0, "../../../etc/passwd"))


def an_absolute_object(backup: Backup) -> None:
    change_lines(backup, LISTING, lambda lines: lines[0].__setitem__(0, "/etc/passwd"))


def an_object_twice(backup: Backup) -> None:
    change_lines(backup, LISTING, lambda lines: lines.insert(0, lines[0]))


def another_table(backup: Backup) -> None:
    change_manifest(backup, lambda content: content["tables"][0].update(name="alembic_version"))


def a_column_less(backup: Backup) -> None:
    change_manifest(backup, lambda content: content["tables"][0]["columns"].pop())


def a_short_row(backup: Backup) -> None:
    change_lines(backup, "recording.jsonl.gz", lambda lines: lines[0].pop())


def a_row_that_is_none(backup: Backup) -> None:
    change_lines(backup, "recording.jsonl.gz", lambda lines: lines.__setitem__(0, {"id": 1}))


SEEN_BY_BOTH = [
    (truncated_object, "another size"),
    (changed_object, "SHA-256 does not fit"),
    (missing_object, "is missing"),
    (linked_object, "cannot be opened"),
    (linked_folder, "leads out of the backup"),
    (truncated_table, "another size"),
    (missing_table, "is missing"),
    (missing_list, "is missing"),
    (changed_manifest, "its checksum does not fit"),
    (truncated_manifest, "is damaged"),
    (no_manifest, "no complete backup"),
    (another_version, "not of this kind"),
    (a_copy_elsewhere, "copy_name"),
    (a_table_elsewhere, r"tables\.0\.name"),
    (an_object_elsewhere, "is no object"),
    (an_absolute_object, "is no object"),
    (an_object_twice, "not in order"),
    (a_short_row, "recording"),
    (a_row_that_is_none, "something else than rows"),
]
SEEN_BY_RESTORE = [
    (newer_schema, "newer Soundmill"),
    (another_table, "is missing"),
    (a_column_less, "its tables are not those"),
]


@pytest.mark.parametrize(
    ("harm", "said"),
    SEEN_BY_BOTH + SEEN_BY_RESTORE,
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damage_is_refused(
    backup: Backup, make_place: MakePlace, harm: Callable[[Backup], None], said: str
) -> None:
    harm(backup)
    if (harm, said) in SEEN_BY_BOTH:
        with pytest.raises(BackupInvalid, match=said):
            check_backup(backup.folder)
    target = make_place(EMBEDDED)
    with pytest.raises(BackupInvalid, match=said):
        restore_backup(target.settings, backup.folder)
    assert all(not rows for rows in target.rows().values())


def hostile_rows() -> list[tuple[str, str, Any]]:
    return [
        ("recording", "id", {"a": 1}),
        ("recording", "job_id", "nobody's"),
        ("recording", "position", "first"),
        ("stage_run", "state", None),
        ("job", "name", None),
    ]


@pytest.mark.parametrize(("table", "column", "value"), hostile_rows())
@pytest.mark.parametrize("into", ["embedded", "cluster"])
def test_rows_that_do_not_fit(
    backup: Backup, make_place: MakePlace, into: str, table: str, column: str, value: Any
) -> None:
    """Made with the right hashes: the database itself refuses them, and takes nothing."""
    if into == EMBEDDED and value == "first":
        pytest.skip("SQLite keeps text in a column of numbers")
    (found,) = [one for one in backup.manifest.tables if one.name == table]
    place = found.columns.index(column)
    change_lines(backup, found.file_name, lambda lines: lines[0].__setitem__(place, value))
    target = make_place(into)
    with pytest.raises(BackupInvalid, match=f"a row of {table} cannot be stored"):
        restore_backup(target.settings, backup.folder)
    assert all(not rows for rows in target.rows().values())


def test_damage_that_is_repaired(backup: Backup, make_place: MakePlace, tmp_path: Path) -> None:
    """The same restore goes on; a restore of another backup does not."""
    target = make_place(EMBEDDED)
    good = tmp_path / "good"
    shutil.copytree(backup.folder, good)
    changed_object(backup)
    with pytest.raises(BackupInvalid, match="SHA-256 does not fit"):
        restore_backup(target.settings, backup.folder)
    shutil.copyfile(good / an_object(backup).relative_to(backup.folder), an_object(backup))
    restore_backup(target.settings, backup.folder)
    assert len(target.objects()) == backup.manifest.objects.count


def test_an_earlier_backup_heals_when_it_is_made_again(
    make_place: MakePlace, tmp_path: Path
) -> None:
    """What is gone, or has another size, is copied again."""
    place = make_place(EMBEDDED)
    fill(place)
    backup = make_backup(place.settings, tmp_path / "backup").backup
    truncated_object(backup)
    max(backup.objects.rglob("mask.npz")).unlink()
    assert make_backup(place.settings, backup.folder).copied == 2
    check_backup(backup.folder)


def test_told_plainly_by_the_command(
    backup: Backup, make_place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made, looked at, restored, refused: with the exit codes and in one sentence."""

    def soundmill(*arguments: str, exit_code: int = 0) -> Any:
        command = [arguments[0], str(folder), *arguments[1:], "--home", str(home), "--json"]
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout or result.stderr)

    folder, target = backup.folder, make_place(EMBEDDED)
    home = target.settings.home
    assert soundmill("backup", "--check")["objects"] == backup.manifest.objects.count
    assert soundmill("restore", "--disable-webhooks")["runs_begun_anew"] == 2
    assert [hook["disabled_at"] is None for hook in target.rows()["webhook"]] == [False]
    assert soundmill("restore", exit_code=1)["error"]["code"] == "not_empty"
    folder = folder.with_name("again")
    made = soundmill("backup")
    assert (made["copied"], made["kept"], made["flaws"]) == (backup.manifest.objects.count, 0, 0)
    lost = next(iter(target.store.list("artifacts/")))
    target.store.delete(lost.key)
    assert soundmill("backup")["kept"] == made["copied"]  # the backup has it still
    folder = folder.with_name("anew")
    assert soundmill("backup", exit_code=3)["flaws"] == 1
    assert open_backup(folder).manifest.flaws[0].key == lost.key
    write(folder / MANIFEST, b"{}")
    assert soundmill("backup", "--check", exit_code=1)["error"]["code"] == "backup_invalid"
    home = make_place(EMBEDDED).settings.home
    monkeypatch.setenv("SOUNDMILL_DATABASE_URL", "postgresql+psycopg://n:secret@127.0.0.1:9/none")
    said = soundmill("restore", exit_code=1)["error"]["detail"]
    assert "secret" not in said
