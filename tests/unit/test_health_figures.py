"""What the store's file tells beside whoever writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw
import pytest

from meshforge_trio.health.figures import read_figures
from meshforge_trio.health.report import ScopeHealth
from meshforge_trio.points import no_probe
from meshforge_trio.store.port import Attempt, Commit, DeadLetter, KeyRecord, Mark, Output
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import Scope

SCOPE = Scope("t", "w", "a")
NOW = 1_000.0


async def written(path: Path, *commits: dict[str, Any], close: bool = False) -> SQLiteEventStore:
    """A store with one scope and these commits."""
    store = await SQLiteEventStore.open(path, synchronous="OFF")
    rows = store.scope(SCOPE)
    lease = await rows.take_lease("S")
    assert lease is not None
    for commit in commits:
        await rows.commit(Commit(lease.epoch, **commit), no_probe)
    if close:
        await store.close()
    return store


def outputs(*numbers: int, ts: float = 900.0) -> dict[str, Any]:
    """A commit of outputs of one decision each."""
    made = [Output(n, "event", f"k{n}", f"e{n}", "x", "evt.t.w.a.x", f"m{n}", b'{"ts":%f}' % ts) for n in numbers]
    return {"outputs": made, "keys": [KeyRecord(f"k{n}", b"h" * 32, "decided", n, n) for n in numbers]}


def of_scope(path: Path) -> ScopeHealth:
    figures = read_figures(path, NOW, probe=True)
    assert figures.store.problem == ""
    return figures.scopes[SCOPE]


async def test_a_served_store_names_its_holder(tmp_path: Path) -> None:
    store = await written(tmp_path / "s.db", outputs(1))
    found = of_scope(tmp_path / "s.db")
    assert (found.scope, found.holder, found.holder_alive, found.epoch) == ("t/w/a", store.term.holder, True, 1)
    await store.close()
    found = of_scope(tmp_path / "s.db")
    assert (found.holder, found.holder_alive, found.epoch) == (None, False, 1)


async def test_a_dead_holder_is_told_before_its_term_is_over(tmp_path: Path) -> None:
    store = await written(tmp_path / "s.db")
    assert of_scope(tmp_path / "s.db").holder_alive
    store.abandon()
    found = of_scope(tmp_path / "s.db")
    assert (found.holder, found.holder_alive) == (store.term.holder, False)
    # Looking has changed nothing: a successor takes the scope at once.
    successor = await written(tmp_path / "s.db")
    assert of_scope(tmp_path / "s.db").epoch == 2
    await successor.close()


async def test_the_outbox_is_what_lies_above_the_newest_mark(tmp_path: Path) -> None:
    mark = Mark(2, 2, "m2", 0, "", 950.0)
    store = await written(tmp_path / "s.db", outputs(1, 2), {"mark": mark})
    assert (of_scope(tmp_path / "s.db").outbox, of_scope(tmp_path / "s.db").outbox_age_s) == (0, None)
    await store.close()
    for name, ts, age in (("old", 900.0, 50.0), ("new", 990.0, 10.0)):
        path = tmp_path / f"{name}.db"
        store = await written(path, outputs(1, 2), outputs(3, 4, 5, ts=ts) | {"mark": mark})
        found = of_scope(path)
        # Not older than its command, nor than the mark below it.
        assert (found.outbox, found.outbox_age_s) == (3, age)
        await store.close()


async def test_an_output_that_is_no_json_has_the_age_of_the_mark(tmp_path: Path) -> None:
    raw = Output(1, "dead", "k", "e", "dead", "failed.x", "m", b"\xff no json")
    store = await written(tmp_path / "s.db", {"outputs": [raw], "keys": [KeyRecord("k", b"h" * 32, "dead", 1, 1)]})
    found = of_scope(tmp_path / "s.db")
    assert (found.outbox, found.outbox_age_s) == (1, NOW)
    await store.close()


async def test_what_waits_is_counted(tmp_path: Path) -> None:
    attempts = [Attempt(f"k{i}", None, 1, NOW + wait, 1.0, 1.0, "boom") for i, wait in enumerate((30.0, 5.0))]
    letters = [DeadLetter(f"d{i}", 0, i, "cmd.t.w.a.x", b"", b"", "poison", "bad", 1, 1.0, 1.0) for i in range(1, 4)]
    store = await written(tmp_path / "s.db", {"attempts": attempts}, {"dead": letters})
    store.connection.execute("UPDATE dead_letters SET state = 1 WHERE key = 'd1'")
    found = of_scope(tmp_path / "s.db")
    assert (found.parked, found.parked_next_s, found.dead) == (2, 5.0, 2)
    await store.close()


def test_a_store_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    figures = read_figures(tmp_path / "sub" / "none.db", NOW, probe=True)
    assert "there is no store" in figures.store.problem
    assert figures.store.disk_free > 0
    assert not list(tmp_path.iterdir()), "looking made something"


def test_a_store_whose_directory_is_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    figures = read_figures(tmp_path / "taken" / "s.db", NOW, probe=True)
    assert "there is no store" in figures.store.problem
    assert (figures.store.size, figures.scopes) == (0, {})


async def test_a_locked_store_is_read_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshforge_trio.health.figures._BUSY_TIMEOUT_MS", 10)
    store = await written(tmp_path / "s.db", outputs(1))
    store.connection.execute("BEGIN IMMEDIATE")
    figures = read_figures(tmp_path / "s.db", NOW, probe=True)
    assert "locked by another process" in figures.store.problem
    assert figures.scopes[SCOPE].outbox == 1
    assert read_figures(tmp_path / "s.db", NOW, probe=False).store.problem == ""
    store.connection.execute("ROLLBACK")
    await store.close()


async def test_another_file_is_told(tmp_path: Path) -> None:
    other = apsw.Connection(str(tmp_path / "o.db"))
    other.execute("CREATE TABLE t(x)")
    other.close()
    assert "schema version 0" in read_figures(tmp_path / "o.db", NOW, probe=True).store.problem
    (tmp_path / "t.db").write_text("no database at all, but long enough to be looked at" * 20)
    assert "not a database" in read_figures(tmp_path / "t.db", NOW, probe=True).store.problem


async def test_looking_leaves_the_log_to_those_who_serve(tmp_path: Path) -> None:
    store = await written(tmp_path / "s.db", outputs(1))
    store.abandon()
    log = (tmp_path / "s.db-wal").read_bytes()
    of_scope(tmp_path / "s.db")
    assert (tmp_path / "s.db-wal").read_bytes() == log
