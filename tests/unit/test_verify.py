"""Checking a store from end to end: whole stores pass, and whatever is changed in one is found and named."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
from kept import BASE, ONE, decide, keep, tampered

from meshforge_trio.errors import Misconfigured, StoreBroken
from meshforge_trio.store import audit
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.verify import verify_store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "store.db"
    trio.run(keep, path)
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    """A store of one's own."""
    return Path(shutil.copyfile(whole, tmp_path / "store.db"))


def found(path: Path) -> list[str]:
    return [str(finding) for finding in verify_store(path).findings]


def test_a_store_with_one_of_everything_is_whole(path: Path) -> None:
    report = verify_store(path)
    assert report.whole, report.findings
    assert (report.scopes, report.entities, report.dead_letters, report.snapshots) == (2, 4, 6, 2)
    assert (report.outputs, report.events, report.keys) == (2 * 96, 2 * 77, 2 * 84)
    assert report.bytes == path.stat().st_size


def test_progress_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_STRIDE", 50)
    told: list[tuple[str, int, int]] = []
    report = verify_store(path, lambda *args: told.append(args))
    outputs = [(done, total) for what, done, total in told if what == "outputs"]
    assert outputs == [(done, report.outputs) for done in range(50, report.outputs + 1, 50)]
    assert ("keys", 50, 0) in told


async def test_it_reads_as_of_one_moment_beside_a_running_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_STRIDE", 1)
    store = await SQLiteEventStore.open(tmp_path / "store.db", synchronous="OFF")
    await decide(store.scope(ONE), ONE)
    asked = 0

    def commit_more(what: str, done: int, total: int) -> None:
        nonlocal asked
        if what == "pages" or asked:
            return
        asked += 1
        other = apsw.Connection(str(tmp_path / "store.db"))
        other.execute("DELETE FROM outputs")
        other.close()

    before = verify_store(tmp_path / "store.db").outputs
    report = verify_store(tmp_path / "store.db", commit_more)
    assert (report.whole, report.outputs, asked) == (True, before, 1)
    await store.close()


# Output 27 is version 7 of entity a, decided under k100; its row in the first scope is {row}.
N = 27
A, B = "t/w/counter entity 'a'", "t/w/counter entity 'b'"
CHANGES = {
    "body": (
        "outputs SET body = CAST(replace(body, ':1', ':2') AS BLOB) WHERE id = {row}",
        f"chain: {A} output 27: version 7 does",
    ),
    "chain": ("outputs SET chain = zeroblob(32) WHERE id = {row}", f"chain: {A} output 27: version 7 does not hash"),
    "version": ("outputs SET version = 9 WHERE id = {row}", f"link: {A} output 27: version 9 is not linked"),
    "entity": ("outputs SET entity_id = 'b' WHERE id = {row}", f"link: {B} output 27: version 7 is not linked"),
    "link": ("outputs SET prev = prev - 1 WHERE id = {row}", f"link: {A} output 27: version 7 is not linked"),
    "no link": ("outputs SET prev = NULL WHERE id = {row}", f"link: {A} output 27: version 7 is not linked"),
    "forward": ("outputs SET prev = 40 WHERE id = {row}", f"link: {A} output 27: version 7 is not linked"),
    "link of none": ("outputs SET prev = 3 WHERE id = {row} - 4", "link: t/w/counter output 23: a link without"),
    "event id": ("outputs SET event_id = 'x' WHERE id = {row}", f"row: {A} key 'k100' output 27: its event_id is 'x'"),
    "key": ("outputs SET key = 'x' WHERE id = {row}", f"row: {A} key 'x' output 27: its key is 'x', its body says 'k"),
    "key of record": ("outputs SET key = 'x' WHERE id = {row}", "key: t/w/counter key 'k100': of its outputs 27 to 27"),
    "msg id": ("outputs SET msg_id = 'x' WHERE id = {row}", f"row: {A} key 'k100' output 27: its msg_id is 'x'"),
    "subject": ("outputs SET subject = 'evt.x' WHERE id = {row}", f"row: {A} key 'k100' output 27: its subject is"),
    "kind": ("outputs SET kind = 9 WHERE id = {row}", f"row: {A} key 'k100' output 27: its kind is 9"),
    "no JSON": ("outputs SET body = x'7b' WHERE id = {row}", f"row: {A} key 'k100' output 27: its body is no JSON"),
    "command": (
        "outputs SET name = 'x' WHERE id = {row} - 3",
        "row: t/w/counter entity 'a' key 'k20' output 24: its n",
    ),
    "dead letter": (
        "outputs SET key = 'x' WHERE id = {row} - 10",
        "row: t/w/counter key 'x' output 17: its key is 'x'",
    ),
    "event gone": ("FROM outputs WHERE id = {row}", "number: t/w/counter output 28: the outputs from 27 to 27 are"),
    "newest gone": ("FROM outputs WHERE id = {row} + 69", f"head: {A} output 96: the head says version 76"),
    "record gone": (
        "FROM keys WHERE scope = 1 AND key = 'k100'",
        "key: t/w/counter key 'k100' output 27: an output wit",
    ),
    "record of others": (
        "keys SET first_n = 26 WHERE scope = 1 AND key = 'k100'",
        "key: t/w/counter key 'k100': of its outputs 26 to 27 2 are there and 1 carry this key",
    ),
    "outcome": ("keys SET outcome = 7 WHERE scope = 1 AND key = 'k100'", "key: t/w/counter key 'k100': no record: out"),
    "refusal gone": ("FROM mismatches WHERE scope = 1", "key: t/w/counter key 'k1' output 9: an output without a rec"),
    "refusal twice": (
        "mismatches SET first_n = 1, last_n = 1 WHERE scope = 1",
        "key: t/w/counter key 'k1': of its outputs 1 to 1 one is another record's",
    ),
    "head behind": (
        "heads SET last_n = 27, version = 7, chain = (SELECT chain FROM outputs WHERE id = {row})"
        " WHERE scope = 1 AND entity_id = 'a'",
        f"head: {A} output 27: the head is at version 7, and there are later events",
    ),
    "chain of head": (
        "heads SET chain = x'00' WHERE scope = 1 AND entity_id = 'b'",
        f"head: {B} output 6: the head of",
    ),
    "head gone": ("FROM heads WHERE scope = 1 AND entity_id = 'b'", f"head: {B} output 6: neither a head nor a later"),
    "letter gone": ("FROM dead_letters WHERE n = 17", "letter: t/w/counter output 17: what was sent to the dead let"),
    "letter of record": ("FROM dead_letters WHERE n = 17", "letter: t/w/counter key 'k9': dead, and the letter of ge"),
    "letter moved": ("dead_letters SET n = 3 WHERE n = 17", "letter: t/w/counter key 'k9' output 3: its letter of ge"),
    "letter changed": (
        "dead_letters SET subject = 'x' WHERE n = 17",
        "letter: t/w/counter key 'k9' output 17: sent as",
    ),
    "redriven": ("FROM generations WHERE scope = 1", "key: t/w/counter key 'k7' output 13: an output without a record"),
    "snapshot": (
        "snapshots SET state = x'7b' WHERE scope = 1",
        f"snapshot: {A}: the snapshot of version 64 is no JSON",
    ),
    "snapshot ahead": ("snapshots SET version = 99 WHERE scope = 1", f"snapshot: {A}: a snapshot of version 99, and"),
    "mark": (
        "marks SET n = 999 WHERE n = 96",
        "mark: t/w/counter output 999: marks name output 999, and the newest is",
    ),
    "nameless scope": ("FROM scopes WHERE id = 2", "scope: scope 2: keys has rows of a scope without a name"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_found_and_named(path: Path, change: str, said: str) -> None:
    change = change.replace("{row}", str(BASE + N))
    tampered(path, f"DELETE {change}" if change.startswith("FROM ") else f"UPDATE {change}")
    lines = found(path)
    assert any(line.startswith(said) for line in lines), "\n".join(lines)


def test_two_events_of_one_version_are_a_fork(path: Path) -> None:
    """Both are linked well and hash well: a second decision on an old state."""
    columns = "kind, entity_id, version, prev, chain, key, event_id, name, subject, msg_id, body"
    tampered(
        path, f"INSERT INTO outputs(id, {columns}) SELECT {BASE + 97}, {columns} FROM outputs WHERE id = {BASE + N}"
    )
    assert f"link: {A} output 97: version 7 is there twice: both follow output 26" in found(path)
    assert f"head: {A} output 97: neither a head nor a later event leads here" in found(path)


def test_a_link_to_a_later_output_is_none(path: Path) -> None:
    """That of the version before, too: what is decided later cannot come before."""
    tampered(path, f"UPDATE outputs SET id = {BASE + 97} WHERE id = {BASE + 26}")
    tampered(path, f"UPDATE outputs SET prev = 97 WHERE id = {BASE + N}")
    assert f"link: {A} output 27: version 7 is not linked to the one before, but to output 97" in found(path)


def test_there_is_no_output_before_the_first(path: Path) -> None:
    tampered(path, f"UPDATE outputs SET id = {BASE} WHERE id = {BASE + 96}")
    assert any(line.startswith("number: t/w/counter output 0: ") for line in found(path))


def test_a_store_far_out_of_number_is_told_and_not_searched(path: Path) -> None:
    tampered(path, f"UPDATE outputs SET id = {BASE + (1 << 39)} WHERE id = {BASE + 96}")
    assert f"number: t/w/counter output {1 << 39}: the outputs from 96 to {(1 << 39) - 1} are missing" in found(path)


# -- pages -------------------------------------------------------------------------------------------------------


def pages_of(path: Path, table: str) -> list[int]:
    connection = apsw.Connection(str(path))
    rows: list[Any] = connection.execute(
        "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf'", (table,)
    ).fetchall()
    connection.close()
    return [number for (number,) in rows]


@pytest.mark.parametrize("table", ["outputs", "keys", "heads", "dead_letters", "scopes"])
def test_a_page_of_garbage_is_found_and_the_rest_is_checked_all_the_same(path: Path, table: str) -> None:
    page = pages_of(path, table)[0]
    with path.open("r+b") as file:
        file.seek((page - 1) * 8192)
        file.write(b"\xa5" * 8192)
    lines = found(path)
    assert any(line.startswith("pages: ") for line in lines), lines
    assert len(lines) < 500


def test_one_bit_of_an_event_that_no_page_check_sees(path: Path) -> None:
    """The body still is JSON, of the same length, at the same place."""
    content = path.read_bytes()
    at = content.index(b'"amount":1', content.index(b'"id":"c150_added"'))
    with path.open("r+b") as file:
        file.seek(at + len('"amount":'))
        file.write(b"3")
    lines = found(path)
    assert len(lines) == 1
    assert re.match(
        r"chain: t/(w|other)/counter entity 'a' output \d+: version \d+ does not hash to its chain", lines[0]
    )


# -- what cannot be checked --------------------------------------------------------------------------------------


def test_what_is_no_store_is_refused(tmp_path: Path, path: Path) -> None:
    with pytest.raises(Misconfigured, match="there is no store"):
        verify_store(tmp_path / "nowhere.db")
    theirs = apsw.Connection(str(tmp_path / "theirs.db"))
    theirs.execute("CREATE TABLE t(x)")
    theirs.close()
    with pytest.raises(Misconfigured, match="is no event store"):
        verify_store(tmp_path / "theirs.db")
    (tmp_path / "text.db").write_bytes(b"not a database " * 1000)
    with pytest.raises(StoreBroken, match="damaged or not a database"):
        verify_store(tmp_path / "text.db")
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", 99)
    connection.close()
    with pytest.raises(Misconfigured, match=r"schema version 99.*pip install --upgrade"):
        verify_store(path)


def test_nothing_is_changed(path: Path) -> None:
    before = path.read_bytes()
    assert not found(path)
    assert path.read_bytes() == before
