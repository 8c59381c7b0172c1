"""A deployment that is made to recover: worker processes with default settings on one store, under a steady load.

What is measured is exact: from the fault to the commit of a command that was sent after it, seen in the store.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

import apsw
import attrs
import trio

from benchmarks.measure import SCOPE, commands
from chaos.observer import Observer, open_observer
from meshforge_trio.broker.port import Message
from meshforge_trio.envelope import CommandEnvelope, encode
from meshforge_trio.errors import SessionLost
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import command_subject

__all__ = ["PHASES", "Life", "Recovered", "Rig", "open_rig"]

#: What a session goes through until it decides, in order.
PHASES: Final = ("started", "imported", "after_lease", "after_reset", "after_recovery", "received", "after_store")
_POLL_S: Final = 0.001
_LOAD_GAP_S: Final = 0.01
_RECOVER_S: Final = 60.0


@attrs.frozen
class Recovered:
    """A recovery: `seconds` from the fault to the first new decision, and when each phase was reached, in seconds."""

    seconds: float
    phases: Mapping[str, float]


@attrs.define(eq=False)
class Life:
    """One worker process, and the file in which it says what it reached when."""

    process: subprocess.Popen[bytes]
    told: Path

    def since(self, at_ns: int) -> Mapping[str, float]:
        """When it reached what after `at_ns`, in seconds from then: the first time of each."""
        found: dict[str, float] = {}
        for line in self.told.read_text().splitlines() if self.told.exists() else ():
            name, _, when = line.partition(" ")
            if int(when) >= at_ns:
                found.setdefault(name, (int(when) - at_ns) / 1e9)
        return found

    def end(self) -> None:
        """SIGKILL it, if it runs, and wait for its end."""
        self.process.kill()
        self.process.wait()


class Rig:
    """Made by `open_rig`."""

    def __init__(self, server: PrivateServer, store: Path, observer: Observer) -> None:
        self.server = server
        self.store = store
        self._observer = observer
        self._lives: list[Life] = []

    def start(self) -> Life:
        """Start a worker process."""
        told = self.store.parent / f"told-{len(self._lives)}"
        command = [sys.executable, "-m", "benchmarks.recovery_worker", str(told), self.server.url, str(self.store)]
        # What it says of a server that is away is expected here.
        with told.with_suffix(".log").open("wb") as log:
            life = Life(subprocess.Popen(command, start_new_session=True, stderr=log), told)
        self._lives.append(life)
        return life

    def end(self) -> None:
        """End every worker."""
        for life in self._lives:
            life.end()

    async def ready(self, holders: int) -> None:
        """Return when as many workers have opened the store, one of them serves, and the others stand by."""
        await self.decided(self.next_command())
        with closing(await self._reader()) as reader, trio.fail_after(_RECOVER_S):
            while reader.execute("SELECT count(*) FROM holders").fetchall() != [(holders,)]:
                await trio.sleep(_POLL_S * 10)
        # The row of one that stands by is written before it has dialled.
        await trio.sleep(0.5)

    async def publish_last(self) -> None:
        """Publish the newest event of a store that was written without a broker, and let the newest mark name it.

        As with a store whose older events have expired from the stream.
        """
        broker = await self._observer.broker()
        with closing(apsw.Connection(str(self.store))) as connection:
            newest = "SELECT subject, body, msg_id FROM outputs ORDER BY id DESC LIMIT 1"
            ((subject, body, msg_id),) = connection.execute(newest).fetchall()
            (ack,) = await broker.publish([Message(str(subject), _as_bytes(body), str(msg_id))], 10.0)
            named = "UPDATE marks SET event_seq = ?, event_id = ? WHERE id = (SELECT max(id) FROM marks)"
            connection.execute(named, (ack.seq, msg_id))

    def next_command(self) -> CommandEnvelope:
        """One more command."""
        return next(commands(1, random_keys=False))

    async def send(self, command: CommandEnvelope) -> None:
        """Put it into the command stream, once, however often the server goes."""
        message = Message(command_subject(SCOPE, command.action), encode(command), command.id)
        while True:
            broker = await self._observer.broker()
            try:
                await broker.publish([message], 2.0)
            except SessionLost:
                continue
            return

    async def load(self) -> None:
        """Send a command every hundredth of a second, until cancelled."""
        while True:
            await self.send(self.next_command())
            await trio.sleep(_LOAD_GAP_S)

    async def decided(self, command: CommandEnvelope) -> int:
        """Send `command` and return when it was committed, in nanoseconds of the monotonic clock."""
        await self.send(command)
        with closing(await self._reader()) as reader, trio.fail_after(_RECOVER_S):
            while not self._committed(reader, command.idempotency_key or ""):
                await trio.sleep(_POLL_S)
        return time.monotonic_ns()

    async def recovered(self, since_ns: int, by: Life) -> Recovered:
        """The recovery `by` a worker from a fault at `since_ns`, of which this is called at once."""
        at_ns = await self.decided(self.next_command())
        return Recovered((at_ns - since_ns) / 1e9, by.since(since_ns))

    async def _reader(self) -> apsw.Connection:
        """A reader of the store beside its workers, as soon as the first of them has made it."""
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        with trio.fail_after(_RECOVER_S):
            while True:
                try:
                    connection = apsw.Connection(f"file:{self.store}?mode=ro", flags=flags)
                    connection.set_busy_timeout(1_000)
                    connection.execute("SELECT 1 FROM keys LIMIT 1").fetchall()
                except (apsw.CantOpenError, apsw.SQLError, apsw.BusyError):
                    await trio.sleep(_POLL_S * 10)
                    continue
                return connection

    def _committed(self, reader: apsw.Connection, key: str) -> bool:
        return bool(reader.execute("SELECT 1 FROM keys WHERE scope = 1 AND key = ?", (key,)).fetchall())


def _as_bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


@asynccontextmanager
async def open_rig(folder: Path, store: Path | None = None) -> AsyncIterator[Rig]:
    """A server and no worker yet, in `folder`, which exists. The bridge's loop must be open.

    `store` is the database (default: one in `folder` that does not exist yet).
    """
    with PrivateServer(store_dir=folder / "streams") as server:
        async with open_observer(server.url) as observer:
            rig = Rig(server, store or folder / "bench.db", observer)
            try:
                yield rig
            finally:
                rig.end()
