"""A whole soak: the deployment, round after round on it, and the judgement of what is there at the end."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Protocol

import orjson
import trio

from benchmarks.soak_growth import Sample, blocks_in_use, open_files, private_kib, trends
from benchmarks.soak_image import size_of_store
from benchmarks.soak_judge import RoundVerdict
from benchmarks.soak_load import WORKSPACES
from benchmarks.soak_report import SoakResult, concluded
from benchmarks.soak_round import APP, LIMIT, Round
from benchmarks.soak_storm import LEASE_S, draw_frames, draw_plan
from benchmarks.soak_world import SURVIVOR, SoakWorld
from chaos.evidence import Sent
from chaos.faults.proxy import Proxy, open_proxy
from chaos.history import History
from chaos.mutants.patch import Patch
from chaos.observer import Observer, open_observer, resent
from chaos.plan import Rule
from chaos.replayer import ReplayerError, open_replayer
from chaos.rows import Rows, copy_store, read_store
from chaos.world import WorldError
from chaos.zygote import open_zygote
from meshforge_trio.broker.bridge import open_loop
from meshforge_trio.errors import MeshForgeError
from meshforge_trio.launch import load_app
from meshforge_trio.server import PrivateServer
from meshforge_trio.subjects import Scope

__all__ = ["Soak", "recorded_last"]

#: Near what runs in production, but for what would make every round wait: a redelivery after a lost ACK.
_ENGINE: Final[dict[str, Any]] = {
    "batch": 64,
    "publish_burst": 8,
    "ack_wait_s": 4.0,
    "publish_timeout_s": 3.0,
    "idle_mark_s": 0.25,
    "standby_poll_s": 0.1,
    # Small, so that it is full after the first rounds.
    "cache_entities": 200,
}
#: Longer than anybody is stopped: the watchdog would take him for one whose handler never returns.
_RETRY: Final[dict[str, Any]] = {"limit": LIMIT, "delays_s": (0.1, 0.3), "handler_limit_s": 60.0}
_SAMPLE_S: Final = 1.0
_STORE_OF_SERVER_MAX: Final = 64 << 30
_REBUILD_S: Final = 600.0
_ASK_S: Final = 120.0
#: How many commands of a round are sent again at the end of all.
_KEPT_PER_ROUND: Final = 5
#: Another hash seed and zone than anybody's, under which everything is rebuilt.
_ELSEWHERE: Final = (101, "Pacific/Kiritimati")


class Tell(Protocol):
    """Is told how it goes. `lasting` is for what should stay on the screen."""

    def __call__(self, text: str, *, lasting: bool = False) -> None: ...


class Soak:
    """One soak in the directory `home`, which exists and is empty."""

    def __init__(self, seed: str, home: Path, *, workers: int, tell: Tell, patch: Patch | None = None) -> None:
        """`patch` plants a bug in the workers."""
        self._seed = seed
        self._home = home
        self._size = workers
        self._tell = tell
        self._patch = patch
        self._serial = 0
        self._begun = 0.0
        self._label = ""
        self._log_peak = 0
        self._decided: Counter[str] = Counter()
        self._decided_of_survivor: Counter[int] = Counter()
        self._kept: list[Sent] = []
        self.samples: list[Sample] = []
        self.verdicts: list[RoundVerdict] = []
        self.broken: list[str] = []
        self.reasons: list[str] = []

    async def run(self, seconds: float, round_s: float, rate: float) -> SoakResult:
        """Soak for so long, in rounds of `round_s`."""
        self._begun = trio.current_time()
        live = self._home / "live"
        live.mkdir()
        server = PrivateServer(store_dir=self._home / "streams", max_file_store=_STORE_OF_SERVER_MAX)
        try:
            server.start()
            async with open_loop():
                ends = await self._deployed(server, live, seconds, round_s, rate)
                await self._rebuild(live / "store" / "meshforge.db")
        except* (MeshForgeError, WorldError, OSError, RuntimeError, trio.TooSlowError) as errors:
            self.reasons += [f"{type(error).__name__}: {error}" for error in _leaves(errors)]
            ends = 0
        finally:
            server.kill()
            server.stop()
        result = concluded(
            self._seed,
            trio.current_time() - self._begun,
            self.verdicts,
            self.samples,
            trends(self.samples),
            ends,
            self.broken,
            self.reasons,
        )
        if result.status == "pass":
            shutil.rmtree(live)
            shutil.rmtree(self._home / "streams", ignore_errors=True)
        return result

    async def _deployed(self, server: PrivateServer, live: Path, seconds: float, round_s: float, rate: float) -> int:
        async with AsyncExitStack() as stack:
            history = History.open(live / "history.jsonl", "harness")
            stack.callback(history.close)
            zygote = await stack.enter_async_context(open_zygote(self._patch))
            proxy = await stack.enter_async_context(
                open_proxy(server.port, draw_frames(self._seed), history.of("proxy"))
            )
            observer = await stack.enter_async_context(open_observer(server.url, history=history.of("client")))
            world = SoakWorld(
                APP,
                url=proxy.url,
                zygote=zygote,
                home=live,
                scopes=len(load_app(APP).scopes(WORKSPACES)),
                server=server,
                size=self._size,
                plan_of=self._plan_of,
                engine=_ENGINE,
                retry=_RETRY,
                workspaces=WORKSPACES,
                lease_ttl_s=LEASE_S,
            )
            await stack.enter_async_context(world)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.keep)
                nursery.start_soon(self._watch, world)
                if await self._rounds(world, proxy, observer, seconds, round_s, rate):
                    await self._ask_again(world, observer)
                world.stop_replacing()
                await self._drain(world)
                nursery.cancel_scope.cancel()
            self.broken += world.unplanned
            self.reasons += [f"the proxy could not read {what}" for what in proxy.misread]
            return world.ends

    def _plan_of(self, number: int) -> Sequence[Rule]:
        self._serial += 1
        return () if number == SURVIVOR else draw_plan(self._seed, self._serial, number)

    async def _rounds(
        self, world: SoakWorld, proxy: Proxy, observer: Observer, seconds: float, round_s: float, rate: float
    ) -> bool:
        """Round after round until time is up; false if one did not drain, which nothing can follow."""
        number = 0
        while trio.current_time() - self._begun < seconds:
            number += 1
            self._log_peak = 0

            def tell(text: str, number: int = number) -> None:
                self._label = f"round {number}, {text}"

            home = self._home / f"round-{number}"
            played = Round(self._seed, number, world, proxy, observer, home, tell)
            verdict = await played.run(round_s, rate)
            await self._note(number, world, verdict)
            self._kept += [sent for sent in played.sent if sent.expect == ("decided",)][-_KEPT_PER_ROUND:]
            if verdict.broken or verdict.failures:
                self._tell(f"round {number}: {', '.join(verdict.broken_ids) or 'a checker failed'}", lasting=True)
            else:
                shutil.rmtree(home)
            if not played.drained:
                return False
        return True

    async def _note(self, number: int, world: SoakWorld, verdict: RoundVerdict) -> None:
        """Keep what a round showed, and how large everything is after it."""
        self.verdicts.append(verdict)
        self.broken += [f"round {number}, {text}" for text in verdict.broken]
        self.reasons += [f"round {number}: the checker failed: {text}" for text in verdict.failures]
        self._decided.update(verdict.decided)
        survivor = world.survivor
        if survivor is not None:
            self._decided_of_survivor[survivor.pid] += verdict.decided.get(survivor.name, 0)
            size = size_of_store(world.store)
            self.samples.append(
                Sample(
                    at_s=round(trio.current_time() - self._begun, 1),
                    pid=survivor.pid,
                    decided=self._decided_of_survivor[survivor.pid],
                    decided_in_all=self._decided.total(),
                    rss_kib=private_kib(survivor.pid),
                    blocks=await trio.to_thread.run_sync(blocks_in_use, world.health_port),
                    files=open_files(survivor.pid),
                    database=size.database,
                    log=size.log,
                    log_peak=max(self._log_peak, size.log),
                )
            )

    async def _ask_again(self, world: SoakWorld, observer: Observer) -> None:
        """Send commands of all rounds once more: nothing is decided again, and the first answer is heard."""
        before = size_of_store(world.store).outputs
        observer.received.clear()
        with trio.move_on_after(_ASK_S) as waited:
            await observer.send([resent(sent, len(self.verdicts)) for sent in self._kept])
            await observer.drained()
            await observer.caught_up()
        more = size_of_store(world.store).outputs - before
        if waited.cancelled_caught:
            self.broken.append(f"G12 broken: {len(self._kept)} commands of earlier rounds, sent again, do not drain")
        if more:
            self.broken.append(f"G2 broken: commands of earlier rounds, sent again, were decided again: {more} outputs")
        answered = {(told.get("tenant"), told.get("idempotency_key")) for told in map(_told, observer.received)}
        silent = [sent.key for sent in self._kept if (sent.scope.tenant, sent.key) not in answered]
        if silent:
            self.broken.append(f"G8 broken: sent again at the end and not answered: {', '.join(silent[:10])}")

    async def _watch(self, world: SoakWorld) -> None:
        """How it goes, every second; and the largest that the log becomes in between."""
        log = world.store.with_name(f"{world.store.name}-wal")
        while True:
            size = log.stat().st_size if log.exists() else 0
            self._log_peak = max(self._log_peak, size)
            survivor = world.survivor
            rss = private_kib(survivor.pid) / 1024 if survivor is not None else 0
            faults = sum(len(verdict.fired) for verdict in self.verdicts) + len(world.events.faults)
            passed = trio.current_time() - self._begun
            self._tell(
                f"{self._label}: {self._decided.total():,} decisions, {self._decided.total() / passed:,.0f}/s, "
                f"{faults} faults, {world.ends} ends, RSS {rss:.0f} MiB, log {size / (1 << 20):.0f} MiB"
            )
            await trio.sleep(_SAMPLE_S)

    async def _drain(self, world: SoakWorld) -> None:
        """End every worker in good order: each records the hash of its states."""
        for worker in list(world.workers):
            world.tell_to_end(worker)
        with trio.move_on_after(30):
            while world.workers:
                await trio.sleep(0.05)
        for worker in list(world.workers):
            self.broken.append(f"{worker.name} did not end within 30 s of SIGTERM; it said:\n{worker.tail(12)}")
            worker.send_signal(signal.SIGKILL)

    async def _rebuild(self, store: Path) -> None:
        """Rebuild every state of the whole soak in another process, and compare with what workers recorded."""
        self._tell("rebuilding all states")
        copy = self._home / "copy"
        copy.mkdir()
        copy_store(store, copy)
        recorded = recorded_last(read_store(copy / "store.db"))
        seed, zone = _ELSEWHERE
        with trio.fail_after(_REBUILD_S):
            try:
                async with open_replayer(seed, zone) as replayer:
                    rebuilt = await replayer.rebuild(copy / "store.db", APP, WORKSPACES)
            except ReplayerError as error:
                self.broken.append(f"G7: {error}")
                return
        if not recorded:
            self.reasons.append("no worker recorded the hash of its states at the end")
        for scope, value in recorded.items():
            if rebuilt.get(scope) != value:
                self.broken.append(f"G7 broken: {scope} recorded {value} and is rebuilt as {rebuilt.get(scope)}")
        shutil.rmtree(copy)


def recorded_last(rows: Rows) -> Mapping[Scope, str]:
    """The hashes that speak of all that was decided. A term that ended uncleanly leaves the one before in place."""
    last: dict[Scope, int] = {}
    for output in rows.outputs:
        last[output.scope] = max(last.get(output.scope, 0), output.n)
    return {scope: value for scope, (n, value) in rows.state_hashes.items() if n == last.get(scope, 0)}


def _told(heard: tuple[str, bytes]) -> dict[str, Any]:
    told: dict[str, Any] = orjson.loads(heard[1])
    return told


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]
