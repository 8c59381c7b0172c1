"""The whole runtime on a disk that fills up: nothing is decided meanwhile, everything after, and each thing once."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import structlog.testing
import trio

from chaos.agents import counter_only
from chaos.faults import disk as module
from chaos.faults.disk import FullDisk
from chaos.plan import ALLOWED
from chaos.rows import Rows, copy_store, read_store
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.client import CommandDead, open_client
from meshforge_trio.config import EngineSettings, Settings
from meshforge_trio.envelope import SecurityContext
from meshforge_trio.points import Point
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.runtime import Runtime
from meshforge_trio.server import PrivateServer
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.subjects import EVENTS

USER: Final = SecurityContext("tester", "user")
# A failing command is held, run alone, and dead-lettered: it meets every place where a disk may fill up.
ENGINE: Final = EngineSettings(idle_mark_s=0.05, retry=RetryPolicy(limit=3, delays_s=(0.01,)))


NO_SPACE: Final = "no space left for the store"


class Filling:
    """A probe that fills the disk at a place, once, from when it is armed on. Its clock stands still."""

    def __init__(self, place: str, path: Path) -> None:
        self.disk = FullDisk(path)
        self.now = 0.0
        self.armed = False
        self.before: Rows | None = None
        self._place = place
        self._path = path

    def __call__(self, point: Point) -> None:
        if point.value == self._place and self.armed and self.before is None:
            self.before = self.rows()
            self.disk.fill(1.0)

    def monotonic(self) -> float:
        """The clock of the disk."""
        return self.now

    async def free(self, logs: Sequence[Mapping[str, Any]]) -> None:
        """Let the time pass when the runtime has said that there is no space."""
        while not any(entry["event"].startswith(NO_SPACE) for entry in logs):
            await trio.sleep(0.01)
        self.now += 1.0

    def rows(self) -> Rows:
        """What a process that died now would leave."""
        home = Path(tempfile.mkdtemp(dir=self._path.parent))
        copy_store(self._path, home)
        return read_store(home / "store.db")


@pytest.fixture
def filling(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Filling]:
    made = Filling(request.param, tmp_path / "store.db")
    monkeypatch.setattr(module, "time", made)
    yield made
    made.disk.unregister()


@pytest.mark.parametrize("filling", ALLOWED["worker"]["full"].places, indirect=True)
async def test_the_runtime_comes_through_a_full_disk(
    aio_loop: asyncio.AbstractEventLoop, nats_server: PrivateServer, tmp_path: Path, filling: Filling
) -> None:
    healed = trio.Event()
    token = trio.lowlevel.current_trio_token()
    filling.disk.on_healed = lambda: token.run_sync_soon(healed.set)
    settings = Settings(url=nats_server.url, engine=ENGINE)
    store = await SQLiteEventStore.open(tmp_path / "store.db")
    runtime = Runtime(counter_only, settings, store, lambda: open_broker(nats_server.url), probe=filling)
    with trio.fail_after(60), structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.run)
            nursery.start_soon(filling.free, logs)
            await runtime.engines[0].serving.wait()
            async with open_client(nats_server.url, tenant="default", workspace="demo", principal=USER) as mesh:
                await mesh.call("counter", "add", {"amount": 1}, entity_id="a")
                filling.armed = True
                for number in range(5):
                    await mesh.call("counter", "add", {"amount": number}, entity_id="a")
                with pytest.raises(CommandDead):
                    await mesh.call("counter", "explode", entity_id="b", raise_for_refusal=True)
                await healed.wait()
                assert (await mesh.call("counter", "get", entity_id="a")).payload["total"] == 11
            runtime.stop()
    await store.close()
    assert filling.before is not None
    assert not [entry for entry in logs if "crashed" in entry["event"]]
    rows = filling.rows()
    assert rows.outputs[: len(filling.before.outputs)] == filling.before.outputs
    assert Counter(key.outcome for key in rows.keys) == {"decided": 6, "dead": 1}
    async with open_broker(nats_server.url) as broker:
        events = await broker.read_back(EVENTS, "evt.>", 1, 100)
    assert [m.body for m in events] == [output.body for output in rows.outputs if output.kind in ("event", "record")]
