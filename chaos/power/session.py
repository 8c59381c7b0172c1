"""A run to be recorded: the real runtime on a real nats-server, in sessions one after another, with its disk on tape.

1  the workload; the runtime drains and closes its store, which empties the log
2  what is sent afterwards; the runtime ends as a killed process does, its log stays behind
3  nothing is sent; the log is found and the store closed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import attrs
import orjson
import trio

from chaos.evidence import Sent
from chaos.observer import Observer, open_observer
from chaos.power.images import FILES, Operation, put
from chaos.power.tape import Tape, TapeError
from chaos.power.vfs import RecordingDisk
from chaos.power.witness import watched
from chaos.world import FAST_ENGINE, FAST_RETRY
from meshforge_trio.broker.bridge import open_loop
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.broker.port import Broker
from meshforge_trio.config import EngineSettings, Settings
from meshforge_trio.envelope import decode_command
from meshforge_trio.launch import connect_options, load_app, pull_expires_s
from meshforge_trio.points import Point
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.runtime import App, Runtime
from meshforge_trio.server import PrivateServer
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import Scope
from meshforge_trio.telemetry import set_up_logging

__all__ = ["TAPE", "check_complete", "record", "sent_of"]

#: The file that a recording is written to.
TAPE = "tape.jsonl"


def record(order: Mapping[str, Any]) -> None:
    """Run what `order` says, and write the tape; see `chaos.power.record`.

    Raises:
        TooSlowError: not everything was decided by the deadline.
        TapeError: the tape is not all that was done.
    """
    set_up_logging("error")
    run, home = order["run"], Path(order["home"])
    tape = Tape(run)
    path = home / "store" / "meshforge.db"
    path.parent.mkdir()
    disk = RecordingDisk(path, tape)
    with PrivateServer(scratch=home) as server:
        settings = Settings(
            url=server.url,
            store=path,
            workspaces=tuple(run["workspaces"]),
            lease_ttl_s=run["lease_ttl_s"],
            engine=EngineSettings(
                **{**FAST_ENGINE, **run["engine"]}, retry=RetryPolicy(**{**FAST_RETRY, **run["retry"]})
            ),
        )
        trio.run(_Recording(settings, load_app(run["app"]), tape, disk.name, run["deadline_s"]).play, sent_of(run))
    disk.unregister()
    check_complete(tape, path)
    tape.save(home / TAPE)


def check_complete(tape: Tape, path: Path) -> None:
    """Make sure that the tape tells of everything that was done to the files of the database at `path`.

    Raises:
        TapeError: somebody wrote to them past the tape.
    """
    files = {file: bytearray() for file in FILES}
    put(files, [step for step in tape.steps if isinstance(step, Operation)])
    for file, told in files.items():
        found = path.with_name(path.name + file)
        if (found.read_bytes() if found.exists() else b"") != told:
            raise TapeError(f"the tape does not come to what {found.name} is: it was written to past the recording VFS")


@attrs.frozen
class _Recording:
    """What its sessions share."""

    settings: Settings
    app: App
    tape: Tape
    vfs: str
    deadline_s: float

    async def play(self, sent: Sequence[Sent]) -> None:
        """All sessions."""
        window_s = self.settings.engine.duplicate_window_s
        async with open_loop(), open_observer(self.settings.url, duplicate_window_s=window_s) as observer:
            main = [each for each in sent if each.phase != "after"]
            after = [each for each in sent if each.phase == "after"]
            await self._session(1, main, observer, clean=True)
            await self._session(2, after, observer, clean=False)
            await self._session(3, (), observer, clean=True)

    async def _session(self, number: int, sent: Sequence[Sent], observer: Observer, *, clean: bool) -> None:
        """Serve until all of `sent` is decided; `clean` says whether the store is closed, or left as by a kill."""
        self.tape.note("session", number=number)
        with trio.fail_after(self.deadline_s):
            store = await SQLiteEventStore.open(self.settings.store, ttl_s=self.settings.lease_ttl_s, vfs=self.vfs)
            runtime = Runtime(self.app, self.settings, store, watched(self._dial, self.tape), probe=self._passed)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(runtime.run)
                for engine in runtime.engines:
                    await engine.serving.wait()
                await observer.send(sent)
                await observer.drained()
                runtime.stop()
            if clean:
                await store.close()
            else:
                store.abandon()

    def _dial(self) -> AbstractAsyncContextManager[Broker]:
        settings = self.settings
        return open_broker(
            connect_options(settings), pull_batch=settings.engine.batch, pull_expires_s=pull_expires_s(settings)
        )

    def _passed(self, point: Point) -> None:
        self.tape.note("point", point=point.value)


def sent_of(run: Mapping[str, Any]) -> Sequence[Sent]:
    """The commands of a run, as `Case.as_run` told them; every one of them was accepted."""
    return [
        Sent(
            decode_command(orjson.dumps(told["command"])),
            query=told["query"],
            expect=tuple(told["expect"]),
            phase=told["phase"],
            repeatable=told["repeatable"],
            at=None if told["at"] is None else Scope(*told["at"].split("/")),
            key=told["key"],
            digest=bytes.fromhex(told["digest"]),
        )
        for told in run["sent"]
    ]
