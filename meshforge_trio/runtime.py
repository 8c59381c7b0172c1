"""The runtime of one process: one nursery tree over store, broker session and engines.

    run → keep_alive (the lease), stop on signals, watchdog
        → broker sessions, one after another
            → engines, one per scope, each restarted with back-off

What an error causes is `policy.disposition`'s word; how often something may crash is bounded here.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import FrameType
from typing import Any, Final, NoReturn

import attrs
import structlog
import trio

from meshforge_trio.agent import AgentAdapter
from meshforge_trio.broker.port import Broker
from meshforge_trio.clock import Clock, SystemClock
from meshforge_trio.codec import Codecs
from meshforge_trio.config import Settings
from meshforge_trio.engine import RuntimeEngine
from meshforge_trio.errors import Fenced, Misconfigured, Poison, SessionLost, Transient
from meshforge_trio.keyring import codecs_of
from meshforge_trio.metrics import WorkerMetrics
from meshforge_trio.permissions import Permissions
from meshforge_trio.points import Probe, no_probe
from meshforge_trio.policy import BACKOFF_MAX_S, Disposition, ExitCode, backoff, disposition, worst
from meshforge_trio.security import Access
from meshforge_trio.signing import KeyRegistry, Signer
from meshforge_trio.store.port import EventStore
from meshforge_trio.subjects import Scope
from meshforge_trio.turnstile import Turnstile

__all__ = [
    "App",
    "Intensity",
    "NotDrained",
    "Runtime",
    "TooManyRestarts",
    "exit_code",
    "stop_on_signals",
    "watch_for_stuck_handlers",
]

_CRASHES_MAX: Final = 5
_CRASH_WINDOW_S: Final = 60.0
#: How long at most between two dials: a server that is back should be noticed soon.
_DIAL_MAX_S: Final = 0.5
_COLLECT_EVERY_S: Final = 1.0
#: Engines that compare store and streams at once: all of them begin together when the server is back.
_RECOVERIES_MAX: Final = 2

Dial = Callable[[], AbstractAsyncContextManager[Broker]]


class TooManyRestarts(Exception):
    """Something crashed again and again; restarting it would only hide that."""


class NotDrained(Exception):
    """The drain's deadline passed with work in hand. Nothing is lost: it comes again."""


@attrs.frozen
class App:
    """What `meshforge run` runs: the agents of every workspace, and the codecs of tenants without a key ring."""

    agents: Sequence[AgentAdapter[Any]]
    codecs: Codecs | None = None

    def scopes(self, workspaces: Sequence[str]) -> Sequence[tuple[Scope, AgentAdapter[Any]]]:
        """Each agent in each `tenant/workspace`.

        Raises:
            Misconfigured: a workspace is not `tenant/workspace`, a name is no token, or two agents share one.
        """
        names = [agent.name for agent in self.agents]
        if len(set(names)) != len(names):
            raise Misconfigured(f"two agents of the app have the same name: {', '.join(sorted(names))}")
        made = []
        for workspace in workspaces:
            tenant, slash, name = workspace.partition("/")
            if not slash:
                raise Misconfigured(f"workspace {workspace!r} is not <tenant>/<workspace>")
            for agent in self.agents:
                try:
                    made.append((Scope.checked(tenant, name, agent.name), agent))
                except Poison as error:
                    raise Misconfigured(f"workspace {workspace!r}, agent {agent.name!r}: {error}") from error
        return made


class Intensity:
    """Counts crashes in a sliding window."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def crashed(self, what: str, error: BaseException) -> None:
        """Count one. Raises `TooManyRestarts` past the limit."""
        now = trio.current_time()
        self._times.append(now)
        while self._times[0] < now - _CRASH_WINDOW_S:
            self._times.popleft()
        if len(self._times) > _CRASHES_MAX:
            raise TooManyRestarts(
                f"{what} crashed {len(self._times)} times in {_CRASH_WINDOW_S:g} s; the last time: "
                f"{type(error).__name__}: {error}"
            ) from error


class Runtime:
    """Engines for every scope of an app, over one store and one broker connection."""

    def __init__(
        self,
        app: App,
        settings: Settings,
        store: EventStore,
        dial: Dial,
        *,
        probe: Probe = no_probe,
        worker: int = 0,
        workers: int = 1,
        metrics: WorkerMetrics | None = None,
        turnstile: Turnstile | None = None,
    ) -> None:
        """`turnstile` is that of the process, where several runtimes share it."""
        self.metrics = metrics if metrics is not None else WorkerMetrics(worker)
        self._clock: Clock = SystemClock()
        self._settings = settings
        self._store = store
        self._dial = dial
        self._stopping = trio.Event()
        self._collected_at = -_COLLECT_EVERY_S
        self._late = False
        self._intensity = Intensity()
        self._log = structlog.get_logger("meshforge")
        unknown = settings.agents.keys() - {agent.name for agent in app.agents}
        if unknown:
            raise Misconfigured(
                f"settings name agents that the app does not have: {', '.join(sorted(unknown))}; it has: "
                + ", ".join(sorted(agent.name for agent in app.agents))
            )
        access = Access(Permissions.of(settings.permissions), KeyRegistry.of(settings.signing_keys))
        codecs = codecs_of(settings.codec_keys, app.codecs)
        signer = None if settings.signing_seed_file is None else Signer.from_file(settings.signing_seed_file)
        recoveries = trio.CapacityLimiter(_RECOVERIES_MAX)
        turnstile = turnstile if turnstile is not None else Turnstile()
        self.engines = [
            RuntimeEngine(
                scope,
                adapter,
                store,
                settings=attrs.evolve(settings.engine, retry=settings.retry_of(scope.agent, adapter.retry)),
                probe=probe,
                access=access,
                signer=signer,
                recoveries=recoveries,
                turnstile=turnstile,
                codecs=codecs,
                # Each scope has one worker that may claim it at once; the others leave it a moment.
                first_claim_after_s=0.0 if i % workers == worker else 0.75,
            )
            for i, (scope, adapter) in enumerate(app.scopes(settings.workspaces))
        ]
        self.metrics.store_open = True
        self.metrics.scopes = {engine.scope: engine.metrics for engine in self.engines}

    def stop(self) -> None:
        """Drain: pull no more, finish the turns, write the marks, end the leases."""
        self._stopping.set()
        self.metrics.stopping = True
        for engine in self.engines:
            engine.stop()

    async def run(self) -> None:
        """Serve until `stop`. Returns when drained.

        Raises:
            NotDrained: the drain's deadline passed.
            Misconfigured, StoreBroken, TooManyRestarts: the process should end; see `exit_code`.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_alive)
            nursery.start_soon(self._bound_drain, nursery.cancel_scope)
            await self._sessions()
            nursery.cancel_scope.cancel()
        if self._late:
            raise NotDrained(f"not drained within {self._settings.drain_s:g} s; what was in hand comes again")

    async def _keep_alive(self) -> None:
        while True:
            try:
                await self._store.keep_alive()
                self.metrics.store_refused = ""
            except Transient as error:
                self.metrics.store_refused = str(error)
                self._log.error("the lease could not be renewed: the store is full or locked", reason=str(error))
            except Fenced as error:
                # Its engines see that the term is over, and stand by.
                self._log.warning("the term of this process ran out", reason=str(error))
            await trio.sleep(self._settings.lease_ttl_s / 4)

    async def _bound_drain(self, everything: trio.CancelScope) -> None:
        await self._stopping.wait()
        await trio.sleep(self._settings.drain_s)
        self._late = True
        everything.cancel()

    async def _sessions(self) -> None:
        waits = backoff(_DIAL_MAX_S)
        while not self._stopping.is_set():
            started = trio.current_time()
            try:
                await self._session()
            except Exception as error:
                leaf = worst(error)
                self._end_if_final(leaf)
                self.metrics.disconnected(leaf)
                if disposition(leaf) is Disposition.CRASHED:
                    self.metrics.crashed(leaf)
                    self._log.error("the session crashed", exc_info=leaf)
                    self._intensity.crashed("the broker session", leaf)
                else:
                    self._log.warning("the broker session ended", reason=str(leaf))
                # With it goes the traceback, whose frames hold the session.
                del leaf
            self._collect()
            if trio.current_time() - started > BACKOFF_MAX_S:
                waits = backoff(_DIAL_MAX_S)
            with trio.move_on_after(next(waits)):
                await self._stopping.wait()

    def _collect(self) -> None:
        """Have the collector take what a session left: cycles, mostly, which it would come to next to never.

        The generations are sized for turns, which leave nothing (`launch`). Many engines end at once, so not for each.
        """
        now = trio.current_time()
        if now - self._collected_at >= _COLLECT_EVERY_S:
            self._collected_at = now
            gc.collect()

    async def _session(self) -> None:
        async with self._dial() as broker, trio.open_nursery() as nursery:
            self.metrics.connected(self._clock.now())
            nursery.start_soon(_raise_when_lost, broker)
            async with trio.open_nursery() as engines:
                for engine in self.engines:
                    engines.start_soon(self._engine, engine, broker)
            nursery.cancel_scope.cancel()

    async def _engine(self, engine: RuntimeEngine, broker: Broker) -> None:
        """One engine on this broker session, restarted until it is stopped."""
        waits = backoff()
        while not self._stopping.is_set():
            started = trio.current_time()
            try:
                await engine.run_session(broker)
            except Exception as error:
                leaf = worst(error)
                self._end_if_final(leaf)
                engine.metrics.ended(leaf, self._clock.now())
                self._tell(engine, leaf)
                del leaf
                self._collect()
            if trio.current_time() - started > BACKOFF_MAX_S:
                waits = backoff()
            with trio.move_on_after(next(waits)):
                await self._stopping.wait()

    def _tell(self, engine: RuntimeEngine, leaf: BaseException) -> None:
        log = self._log.bind(scope=str(engine.scope))
        match disposition(leaf):
            case Disposition.CRASHED:
                self.metrics.crashed(leaf)
                log.error("the engine crashed", exc_info=leaf)
                self._intensity.crashed(f"the engine of {engine.scope}", leaf)
            case Disposition.WAIT_FOR_SPACE:
                log.error("no space left for the store; nothing is decided until there is", reason=str(leaf))
            case _:
                log.warning("the session of the engine ended", reason=str(leaf))

    def _end_if_final(self, leaf: BaseException) -> None:
        final = (Disposition.END_PROCESS, Disposition.REFUSE_TO_START)
        if isinstance(leaf, TooManyRestarts) or disposition(leaf) in final:
            raise leaf


async def _raise_when_lost(broker: Broker) -> NoReturn:
    raise SessionLost(await broker.wait_lost())


def exit_code(error: BaseException) -> int:
    """The exit code that tells why the process ended."""
    leaf = worst(error)
    if isinstance(leaf, TooManyRestarts):
        return ExitCode.TOO_MANY_RESTARTS
    match disposition(leaf):
        case Disposition.REFUSE_TO_START:
            return ExitCode.MISCONFIGURED
        case Disposition.END_PROCESS:
            return ExitCode.STORE_BROKEN
        case _:
            return ExitCode.FAILED


async def stop_on_signals(
    stop: Callable[[], None], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """SIGTERM or SIGINT calls `stop`; a second SIGINT ends the process at once, even while a handler blocks it."""
    token = trio.lowlevel.current_trio_token()
    interrupts = 0

    def on_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            os._exit(ExitCode.INTERRUPTED)
        token.run_sync_soon(stop, idempotent=True)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        task_status.started()
        await trio.sleep_forever()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def watch_for_stuck_handlers(limit_s: float) -> None:
    """End the process when a handler blocks it for longer than `limit_s`.

    A synchronous handler that loops for ever cannot be cancelled, and one that holds the interpreter lock would
    starve a watching thread too; faulthandler's timer needs neither. Its command is then blamed alone.
    """
    if sys.__stderr__ is None:
        return
    try:
        while True:
            faulthandler.dump_traceback_later(limit_s * 4 / 3, exit=True, file=sys.__stderr__)
            await trio.sleep(limit_s / 3)
    finally:
        faulthandler.cancel_dump_traceback_later()
