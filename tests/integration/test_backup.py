"""`meshforge backup`, `restore` and `verify` beside real workers on a real server; damage found wherever it is met."""

from __future__ import annotations

import asyncio
import signal
import stat
from pathlib import Path
from typing import Any

import apsw
import pytest

from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.policy import ExitCode
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import EVENTS

from .cli_world import Running, Shop, shop


@pytest.fixture
def at(tmp_path: Path, nats_server: PrivateServer) -> Shop:
    return shop(tmp_path, nats_server.url)


def create(at: Shop, *entities: str) -> None:
    for entity in entities:
        at.answers("call", "order", "create", '{"items": 1}', "--entity", entity)


def stop(worker: Running) -> None:
    worker.process.send_signal(signal.SIGTERM)
    assert worker.ended() == ExitCode.OK


def told(worker: Running) -> str:
    """Why it ended."""
    return str(worker.said("the runtime ended")[0]["reason"])


async def stored(url: str) -> int:
    async with open_broker(url) as broker:
        return (await broker.stream_facts(EVENTS)).messages


# -- the life of a backup ----------------------------------------------------------------------------------------


def test_a_backup_beside_a_worker_is_checked_and_verify_finds_both_whole(at: Shop) -> None:
    with at.served() as worker:
        create(at, "o-1", "o-2")
        made = at.answers("backup", "b.db")
        create(at, "o-3")
        assert stat.S_IMODE((at.home / "b.db").stat().st_mode) == 0o600
        assert (made["outputs"], made["verified"], made["bytes"]) == (2, True, (at.home / "b.db").stat().st_size)
        assert {each["scope"]: each["outputs"] for each in made["scopes"]} == {
            "default/demo/inventory": 0,
            "default/demo/order": 2,
        }
        live, copy = at.answers("verify"), at.answers("verify", "b.db")
        assert (live["outputs"], copy["outputs"]) == (3, 2)
        assert live["whole"]
        assert copy["whole"]
        told = at.does("backup", "b.db")
        assert (told.code, "exists: `--force` replaces it" in told.err) == (ExitCode.MISCONFIGURED, True)
        assert "3 outputs, checked" in at.does("backup", "b.db", "--force").out
        assert "not checked" in at.does("backup", "c.db", "--no-verify").out
        assert ": whole" in at.does("verify", "b.db").out
        refused = at.does("restore", "b.db")
        assert (refused.code, "stop every process on it first" in refused.err) == (ExitCode.MISCONFIGURED, True)
        create(at, "o-4")
        assert [line["epoch"] for line in worker.said("serving")] == [1, 1]
        stop(worker)


async def test_an_older_store_against_a_newer_stream_is_refused_and_nothing_is_published(
    aio_loop: asyncio.AbstractEventLoop, at: Shop
) -> None:
    with at.served() as worker:
        create(at, "o-1", "o-2")
        at.answers("backup", "b.db")
        create(at, "o-3")
        at.answers("call", "order", "update", '{"items": 2}', "--entity", "o-1")
        stop(worker)
    before = await stored(at.url)
    assert before == 4
    done = at.does("restore", "b.db")
    assert done.code == ExitCode.OK, done
    assert "run `meshforge reconcile` before any worker" in done.out
    for _ in range(2):
        with at.starts("run", "shop:app", "--json") as worker:
            assert worker.ended() == ExitCode.MISCONFIGURED
            assert "the store is older than the stream" in told(worker)
            assert "meshforge reconcile" in told(worker)
    assert await stored(at.url) == before
    aside = next(line.split()[-1] for line in done.out.splitlines() if line.startswith("The store before is"))
    assert at.answers("verify", aside)["outputs"] == 4


async def test_the_newest_backup_goes_on_where_the_store_ended(aio_loop: asyncio.AbstractEventLoop, at: Shop) -> None:
    """Nothing happened since it was made: the streams agree, and each command still has its one effect."""
    with at.served() as worker:
        at.answers("call", "order", "create", '{"items": 1}', "--entity", "o-1", "--key", "k-1")
        at.answers("backup", "b.db")
        stop(worker)
    at.store.unlink()
    assert at.answers("restore", "b.db")["aside"] == ""
    with at.served() as worker:
        again = at.answers("call", "order", "create", '{"items": 1}', "--entity", "o-1", "--key", "k-1")
        assert again["payload"] == {"items": 1, "entity_version": 1}
        updated = at.answers("call", "order", "update", '{"items": 2}', "--entity", "o-1")
        assert updated["payload"]["entity_version"] == 2
        stop(worker)
    assert await stored(at.url) == 2
    assert at.answers("verify")["whole"]


# -- damage ------------------------------------------------------------------------------------------------------


def flip(path: Path, start: int, length: int = 1) -> None:
    """Change the lowest bit of bytes of a file."""
    with path.open("r+b") as file:
        file.seek(start)
        content = file.read(length)
        file.seek(start)
        file.write(bytes(byte ^ 1 for byte in content))


def flip_body(path: Path, event_id: str) -> None:
    """Another digit in an event's payload, in the file: no page is any the worse for it."""
    content = path.read_bytes()
    body = content.index(b'{"id":"%b"' % event_id.encode())
    flip(path, content.index(b'"items":', body) + len(b'"items":'))


def sold(at: Shop) -> Any:
    """Three orders by a worker that has ended; the event that changed the second."""
    with at.served() as worker:
        create(at, "o-1", "o-2", "o-3")
        changed = at.answers("call", "order", "update", '{"items": 2}', "--entity", "o-2")
        at.answers("call", "order", "update", '{"items": 3}', "--entity", "o-2")
        stop(worker)
    return changed


def test_a_changed_bit_is_found_where_its_entity_is_read_and_by_verify(at: Shop) -> None:
    changed = sold(at)
    flip_body(at.store, changed["id"])
    connection = apsw.Connection(str(at.store))
    assert connection.pragma("integrity_check") == "ok"
    connection.close()
    with at.served() as worker:
        create(at, "o-4")
        at.does("send", "order", "update", '{"items": 4}', "--entity", "o-2")
        assert worker.ended() == ExitCode.STORE_BROKEN
        assert "the event of version 2 of entity 'o-2'" in told(worker)
        assert "`meshforge restore BACKUP`" in told(worker)
    found = at.does("verify", "--json")
    assert found.code == ExitCode.STORE_BROKEN
    (finding,) = found.document["findings"]

    assert (finding["check"], finding["scope"], finding["entity_id"]) == ("chain", "default/demo/order", "o-2")
    told_plainly = at.does("verify")
    assert told_plainly.code == ExitCode.STORE_BROKEN
    assert "chain: default/demo/order entity 'o-2' output 4: version 2 does not hash to its chain" in told_plainly.out
    assert "DAMAGED, 1 findings" in told_plainly.out
    refused = at.does("backup", "b.db")
    assert (refused.code, (at.home / "b.db").exists()) == (ExitCode.STORE_BROKEN, False)


def test_a_damaged_page_is_found_at_start_and_a_backup_mends_it(at: Shop) -> None:
    sold(at)
    at.answers("backup", "b.db")
    connection = apsw.Connection(str(at.store))
    ((page,),) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'heads'").fetchall()
    connection.close()
    assert isinstance(page, int)
    flip(at.store, (page - 1) * 8192, 8)
    with at.starts("run", "shop:app", "--json") as worker:
        assert worker.ended() == ExitCode.STORE_BROKEN
        assert "`meshforge restore BACKUP` puts a backup in its place" in told(worker)
    found = at.does("verify")
    assert (found.code, "pages: " in found.out) == (ExitCode.STORE_BROKEN, True)
    assert at.does("restore", "b.db").code == ExitCode.OK
    with at.served() as worker:
        assert at.answers("call", "order", "get", "--entity", "o-2")["payload"]["items"] == 3
        stop(worker)
