"""From settings to a served app: one process, from opening the store to the exit code.

run_app  "module:attr" → App → serve
serve    loop of the bridge, outermost → signals, watchdog → sites, each behind a bulkhead of its own → exit code
site     store → Runtime over broker sessions
"""

from __future__ import annotations

import gc
import importlib
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import attrs
import structlog
import trio

from meshforge_trio.agent import AgentAdapter
from meshforge_trio.broker.bridge import ConnectOptions, open_loop
from meshforge_trio.broker.jetstream import open_broker
from meshforge_trio.broker.port import Broker
from meshforge_trio.bulkheads import Bulkheads
from meshforge_trio.clock import SystemClock
from meshforge_trio.config import Settings
from meshforge_trio.doctor.local import check_start
from meshforge_trio.errors import Misconfigured, Transient
from meshforge_trio.locks import LOCK_MANAGER, LockManagerAdapter
from meshforge_trio.metrics import WorkerMetrics
from meshforge_trio.points import Probe, no_probe
from meshforge_trio.policy import Disposition, ExitCode, backoff, disposition, worst
from meshforge_trio.runtime import (
    App,
    NotDrained,
    Runtime,
    TooManyRestarts,
    exit_code,
    stop_on_signals,
    watch_for_stuck_handlers,
)
from meshforge_trio.sites import Site, sites
from meshforge_trio.store.sqlite import SQLiteEventStore
from meshforge_trio.turnstile import Turnstile

__all__ = ["adapter_of", "connect_options", "load_app", "pull_expires_s", "run_app", "serve", "with_components"]

_ATTRIBUTE: Final = "app"
_PULL_EXPIRES_S_MAX: Final = 10.0
_PULL_EXPIRES_S_MIN: Final = 0.2
#: A lease is renewed every quarter of its term, so at least three quarters are left when a pull is made.
_PULL_SHARE_OF_LEASE: Final = 0.6


def run_app(app_spec: str, settings: Settings, *, probe: Probe = no_probe, worker: int = 0, workers: int = 1) -> int:
    """Load `module:attr` and serve it until a signal; return the exit code.

    Raises:
        Misconfigured: the app cannot be loaded.
    """
    return serve(with_components(load_app(app_spec), settings), settings, probe=probe, worker=worker, workers=workers)


def with_components(app: App, settings: Settings) -> App:
    """The app and what the settings switch on beside it."""
    if not settings.lock_manager or any(agent.name == LOCK_MANAGER for agent in app.agents):
        return app
    return attrs.evolve(app, agents=[*app.agents, LockManagerAdapter()])


def serve(app: App, settings: Settings, *, probe: Probe = no_probe, worker: int = 0, workers: int = 1) -> int:
    """Serve until SIGTERM or SIGINT, or until nothing more can be done; return the exit code.

    Call it from the main thread, which is where signals arrive. Why it ended is logged, never raised. `worker`
    of `workers` processes on the same stores claims its share of the scopes first. With several sites, what ends one
    leaves the others; the process ends when none is left, or when it is told to, with the severest of their codes.
    """
    log = structlog.get_logger("meshforge")
    _tune_interpreter()
    try:
        trio.run(_serve, app, settings, probe, worker, workers)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        leaf = worst(error)
        code = exit_code(leaf)
        unforeseen = disposition(leaf) is Disposition.CRASHED and not isinstance(leaf, NotDrained | TooManyRestarts)
        log.critical("the runtime ended", reason=str(leaf), exit_code=code, exc_info=error if unforeseen else None)
        return code
    log.info("drained")
    return ExitCode.OK


def _tune_interpreter() -> None:
    """Settings of the interpreter that suit turns; `make bench` shows what they are worth.

    A turn makes thousands of objects that die together, none in cycles, so the collector is asked less often. The
    store's thread gets the interpreter lock back after 0.1 ms instead of 5.
    """
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    sys.setswitchinterval(0.0001)


@attrs.frozen
class _Part:
    """What a process does at one site. `offset` counts the scopes of the sites before it."""

    site: Site
    metrics: WorkerMetrics
    offset: int


@attrs.frozen
class _Process:
    """What all parts of a process have in common."""

    app: App
    probe: Probe
    worker: int
    workers: int
    stop: trio.Event
    bulkheads: Bulkheads
    turnstile: Turnstile


async def _serve(app: App, settings: Settings, probe: Probe, worker: int, workers: int) -> None:
    parts = _parts(app, settings, worker)
    async with open_loop(), trio.open_nursery() as nursery:
        stop = trio.Event()
        # First of all, so that a signal during a long start drains too.
        await nursery.start(stop_on_signals, stop.set)
        limits = [settings.retry_of(agent.name, agent.retry).handler_limit_s for agent in app.agents]
        nursery.start_soon(watch_for_stuck_handlers, max(limits))
        if settings.health_port:
            await nursery.start(_health_endpoint(settings, parts, worker))
        bulkheads = Bulkheads(alone=len(parts) == 1)
        process = _Process(app, probe, worker, workers, stop, bulkheads, Turnstile())
        async with trio.open_nursery() as served:
            for _, group in groupby(sorted(parts, key=_place), key=_place):
                served.start_soon(_serve_store, process, list(group))
        bulkheads.end()
        nursery.cancel_scope.cancel()


def _parts(app: App, settings: Settings, worker: int) -> Sequence[_Part]:
    parts, offset = [], 0
    for site in sites(settings):
        parts.append(_Part(site, WorkerMetrics(worker, started_at=SystemClock().now()), offset))
        offset += len(app.agents) * len(site.settings.workspaces)
    return parts


def _place(part: _Part) -> str:
    return part.site.place


def _health_endpoint(settings: Settings, parts: Sequence[_Part], worker: int) -> Callable[..., Awaitable[None]]:
    """`serve_health`, loaded when it is asked for: what it needs would delay every start."""
    view: Callable[..., Any] = importlib.import_module("meshforge_trio.health.view").SiteView
    endpoint: Callable[..., Awaitable[None]] = importlib.import_module("meshforge_trio.health_server").serve_health
    views = [view(part.site, part.metrics, partial(connect_options, part.site.settings)) for part in parts]
    return partial(endpoint, settings, views, worker)


async def _serve_store(process: _Process, parts: Sequence[_Part]) -> None:
    """Serve the sites of one store, until each has drained or was stopped. What breaks it for one ends them all."""
    with process.bulkheads.around_store([(part.site, part.metrics) for part in parts]):
        async with trio.open_nursery() as nursery:
            for part in parts:
                nursery.start_soon(_serve_site, process, part)


async def _serve_site(process: _Process, part: _Part) -> None:
    settings = part.site.settings
    with process.bulkheads.around(part.site, part.metrics):
        check_start(settings)
        dial = _dial(settings)
        # Each has a term of its own, so that other processes may take over what one of them leaves.
        store = await _open_store(settings, process.stop)
        try:
            runtime = Runtime(
                process.app,
                settings,
                store,
                dial,
                probe=process.probe,
                # Its scopes are numbered on from those of the sites before, so that all are spread over the workers.
                worker=(process.worker - part.offset) % process.workers,
                workers=process.workers,
                metrics=part.metrics,
                turnstile=process.turnstile,
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_drain_when, process.stop, runtime)
                await runtime.run()
                nursery.cancel_scope.cancel()
        finally:
            await store.close()


async def _open_store(settings: Settings, stop: trio.Event) -> SQLiteEventStore:
    """The store, as soon as it can be had: another process may hold its lock, or its disk be full, for a while."""
    waits = backoff()
    while True:
        try:
            return await SQLiteEventStore.open(settings.store, ttl_s=settings.lease_ttl_s)
        except Transient as error:
            structlog.get_logger("meshforge").error("the store cannot be opened yet", reason=str(error))
            with trio.move_on_after(next(waits)):
                await stop.wait()
            if stop.is_set():
                raise


async def _drain_when(stop: trio.Event, runtime: Runtime) -> None:
    await stop.wait()
    runtime.stop()


def _dial(settings: Settings) -> Callable[[], AbstractAsyncContextManager[Broker]]:
    options = connect_options(settings)

    def dial() -> AbstractAsyncContextManager[Broker]:
        return open_broker(options, pull_batch=settings.engine.batch, pull_expires_s=pull_expires_s(settings))

    return dial


def pull_expires_s(settings: Settings) -> float:
    """How long the server keeps a pull request: not longer than the lease under which it was made.

    What a suspended process has asked for would else go on to swallow deliveries after a successor took over.
    """
    return min(_PULL_EXPIRES_S_MAX, max(_PULL_EXPIRES_S_MIN, settings.lease_ttl_s * _PULL_SHARE_OF_LEASE))


def connect_options(settings: Settings) -> ConnectOptions:
    """How to dial the broker of `settings`; several addresses are separated by commas.

    Raises:
        Misconfigured: a file of credentials cannot be read.
    """
    try:
        seed = None if settings.nkey_seed_file is None else settings.nkey_seed_file.read_text().strip()
        if settings.credentials_file is not None:
            settings.credentials_file.read_bytes()
        tls = None if settings.tls_ca_file is None else ssl.create_default_context(cafile=settings.tls_ca_file)
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"credentials of the broker: {error}") from error
    return ConnectOptions(
        urls=tuple(url.strip() for url in settings.url.split(",")),
        user=settings.user,
        password=settings.password,
        token=settings.token,
        nkey_seed=seed,
        creds_file=settings.credentials_file,
        tls=tls,
        inbox_prefix=settings.inbox_prefix,
    )


def load_app(spec: str) -> App:
    """The app that `module:attr` names (`attr` is `app` unless given): an `App`, an agent, or a sequence of agents.

    The working directory is searched first, as with `python -m`.

    Raises:
        Misconfigured: there is no such module or attribute, importing it failed, or it is something else.
    """
    module_name, _, attr = spec.partition(":")
    attr = attr or _ATTRIBUTE
    if not module_name:
        raise Misconfigured(f"app {spec!r} is not <module>:<attribute>")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise Misconfigured(f"app {spec!r}: module {module_name!r} cannot be imported: {reason}") from error
    try:
        found = getattr(module, attr)
    except AttributeError as error:
        known = ", ".join(name for name in vars(module) if _is_app(getattr(module, name))) or "none"
        raise Misconfigured(
            f"app {spec!r}: module {module_name!r} has no attribute {attr!r}; apps and agents in it: {known}"
        ) from error
    return _as_app(found, spec)


def adapter_of(app: App, agent: str) -> AgentAdapter[Any]:
    """The agent of that name.

    Raises:
        Misconfigured: the app has none.
    """
    for adapter in app.agents:
        if adapter.name == agent:
            return adapter
    known = ", ".join(sorted(adapter.name for adapter in app.agents))
    raise Misconfigured(f"the app has no agent {agent!r}; it has: {known}")


def _is_app(value: object) -> bool:
    return isinstance(value, App | AgentAdapter)


def _as_app(found: Any, spec: str) -> App:
    if isinstance(found, App):
        return found
    agents = [found] if isinstance(found, AgentAdapter) else found
    if isinstance(agents, list | tuple) and agents and all(isinstance(agent, AgentAdapter) for agent in agents):
        return App(agents)
    raise Misconfigured(f"app {spec!r} is {found!r:.100}; it must be an App, an agent, or a list of agents")
