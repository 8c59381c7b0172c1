"""One case: a workload, a plan, workers that die of it, successors that finish. What they leave is put in a directory.

    main     the workload is sent; workers come and go by the plan until everything is decided
    after    when the last fault has healed, more is sent: what was broken must work again
    end      workers are drained, and the last image is taken

After each death an image of store and streams is taken before anything can recover them: the corpse.
"""

from __future__ import annotations

import os
import pkgutil
import platform
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import attrs
import orjson
import trio

from chaos.checkers import Checker
from chaos.director import Director, needs_director
from chaos.evidence import Sent, save_image
from chaos.faults.proxy import open_proxy
from chaos.history import VERSION, History
from chaos.observer import Observer, open_observer, resent
from chaos.plan import Plan
from chaos.world import POLL_S, ProcessWorld, Worker, WorldError
from chaos.zygote import NEVER_A_WORKER, Zygote
from meshforge_trio.envelope import decode_command, encode
from meshforge_trio.launch import load_app
from meshforge_trio.server import PrivateServer, server_version

__all__ = ["RUN_VERSION", "Case", "play"]

#: Of `run.json`.
RUN_VERSION: Final = 1
_WORKERS_MAX: Final = 12
#: Longer than any worker is stopped.
_STOPPED_S: Final = 120.0


@attrs.frozen
class Case:
    """What to run, and what to make of it.

    `limit` is how often a handler may be called (0: not judged). `paced` sends each command when the one before is
    decided. `mortal` agents kill their own process. `must_fire`: a rule that did not fire makes the run inconclusive.
    `claims` are guarantees whose checkers must have found something to examine; `invariants` are checkers of the
    caller's own. `beside` names an async function, `module:attr`, that is called with the server's address, the run's
    directory and its history, and has other clients do something while the workload is sent: what they send is
    overheard, and judged as what was sent. `source` is the scenario it is of, as the command line names it; `replay`
    the command that runs it again.
    """

    app: str
    sent: Sequence[Sent]
    plan: Plan = attrs.field(factory=Plan)
    name: str = "case"
    engine: Mapping[str, Any] = attrs.field(factory=dict)
    retry: Mapping[str, Any] = attrs.field(factory=dict)
    limit: int = 3
    workspaces: Sequence[str] = ("default/demo",)
    lease_ttl_s: float = 1.0
    deadline_s: float = 30.0
    paced: bool = False
    mortal: bool = False
    must_fire: bool = True
    record_frames: bool = False
    claims: Sequence[str] = ("G1", "G2", "G3", "G4", "G5", "G12")
    invariants: Sequence[Checker] = ()
    beside: str = ""
    source: str = ""
    replay: str = ""

    @property
    def duplicate_window_s(self) -> float:
        """Of the streams."""
        return float(self.engine.get("duplicate_window_s", 120.0))

    def as_run(self, sent: Sequence[Sent]) -> Mapping[str, Any]:
        """What `run.json` says of it; `sent` includes what was sent again by a rule of the plan."""
        return {
            "version": RUN_VERSION,
            "scenario": self.name,
            "app": self.app,
            "plan": str(self.plan),
            "engine": dict(self.engine),
            "retry": dict(self.retry),
            "workspaces": list(self.workspaces),
            "limit": self.limit,
            "lease_ttl_s": self.lease_ttl_s,
            "deadline_s": self.deadline_s,
            "paced": self.paced,
            "record_frames": self.record_frames,
            "must_fire": self.must_fire,
            "mortal": self.mortal,
            "claims": list(self.claims),
            "invariants": [checker.id for checker in self.invariants],
            "beside": self.beside,
            "sent": [{**_as_json(each), "again": each not in self.sent} for each in sent],
            "source": self.source,
            "replay": self.replay or f"meshforge-chaos replay {shlex.quote(str(self.plan))}",
            "environment": _environment(),
        }


def _as_json(sent: Sent) -> Mapping[str, Any]:
    return {
        "command": orjson.loads(encode(sent.command)),
        "query": sent.query,
        "expect": list(sent.expect),
        "phase": sent.phase,
        "repeatable": sent.repeatable,
        "at": None if sent.at is None else str(sent.at),
        "key": sent.key,
        "digest": sent.digest.hex(),
    }


def _environment() -> Mapping[str, str]:
    return {
        "python": platform.python_version(),
        "nats_server": server_version(),
        "meshforge_trio": version("meshforge-trio"),
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "executable": sys.executable,
    }


async def play(case: Case, server: PrivateServer, zygote: Zygote, home: Path) -> None:
    """Run `case` in the directory `home`, which becomes a run that can be judged.

    Raises:
        WorldError: a command goes where nobody is served, a worker could not be forked or ended, or a fault could not
            be carried out.
        SessionLost, Misconfigured: the server cannot be reached.
    """
    history = History.open(home / "history.jsonl", "harness")
    history.write("header", version=VERSION, scenario=case.name, plan=str(case.plan), app=case.app)
    (home / "run.json").write_bytes(orjson.dumps(case.as_run(case.sent)))
    try:
        scopes = _scopes(case)
        async with AsyncExitStack() as stack:
            url = server.url
            proxied = case.plan.of("proxy")
            if proxied or case.record_frames:
                proxy = await stack.enter_async_context(
                    open_proxy(server.port, proxied, history.of("proxy"), record_frames=case.record_frames)
                )
                url = proxy.url
            run = _Run(case, server.url, history)
            observer = run.observer = await stack.enter_async_context(
                open_observer(
                    server.url,
                    history=history.of("client"),
                    duplicate_window_s=case.duplicate_window_s,
                    overhear=run.overhear if case.beside else None,
                )
            )
            world = run.world = await stack.enter_async_context(_world(case, url, zygote, home, scopes))
            run.director = Director(world, server, observer, history, run.resend)
            async with trio.open_nursery() as nursery:
                if needs_director(case.plan):
                    nursery.start_soon(run.director.direct)
                await run.to_the_end()
                nursery.cancel_scope.cancel()
            unsent = [each for each in case.sent if each not in run.sent]
            (home / "run.json").write_bytes(orjson.dumps(case.as_run([*run.sent, *unsent])))
            await observer.forget()
    finally:
        history.close()


def _patience(plan: Plan) -> Mapping[str, Any]:
    """To the watchdog a process that was stopped looks like one whose handler never returns."""
    stops = any(rule.action == "stop" for rule in plan.rules)
    return {"handler_limit_s": _STOPPED_S} if stops else {}


def _scopes(case: Case) -> int:
    """How many scopes a worker serves."""
    served = [scope for scope, _ in load_app(case.app).scopes(case.workspaces)]
    for sent in case.sent:
        if sent.scope not in served:
            raise WorldError(
                f"{sent.subject} is sent, and {case.app} in {', '.join(case.workspaces)} does not serve it"
            )
    return len(served)


def _world(case: Case, url: str, zygote: Zygote, home: Path, scopes: int) -> ProcessWorld:
    return ProcessWorld(
        case.app,
        url=url,
        zygote=zygote,
        home=home,
        scopes=scopes,
        plan=case.plan,
        engine=case.engine,
        retry={"limit": case.limit or 3, **_patience(case.plan), **case.retry},
        workspaces=case.workspaces,
        lease_ttl_s=case.lease_ttl_s,
    )


class _Run:
    """The course of one case."""

    director: Director
    observer: Observer
    world: ProcessWorld

    def __init__(self, case: Case, url: str, history: History) -> None:
        self._case = case
        self._url = url
        self._history = history
        self._images = 0
        self._waiting = [sent for sent in case.sent if sent.phase == "after"]
        # Who has not yet sent all that is sent before the faults are over.
        self._senders = case.paced + bool(case.beside)
        self.sent: list[Sent] = []

    def overhear(self, subject: str, body: bytes) -> None:
        """Take down a command that another client sends; the workload's own and the runtime's are known."""
        command = decode_command(body)
        context = command.security_context
        if context is None or context.principal_type != "user" or command.id in {s.command.id for s in self.sent}:
            return
        sent = Sent(command, "unknown", repeatable=False)
        self.sent.append(sent)
        self._history.of("client").write("send", id=command.id, key=sent.key, subject=subject, phase=sent.phase)

    async def resend(self) -> None:
        """Send all commands again, each under a new id."""
        again = [resent(each, len(self.sent)) for each in self.sent]
        await self._send(again)

    async def _send(self, sent: Sequence[Sent]) -> None:
        self.sent.extend(sent)
        if sent:
            await self.observer.send(sent)

    async def to_the_end(self) -> None:
        main = [sent for sent in self._case.sent if sent.phase != "after"]
        if not self._case.paced:
            await self._send(main)
        async with trio.open_nursery() as nursery:
            if self._case.paced:
                nursery.start_soon(self._pace, main)
            if self._case.beside:
                nursery.start_soon(self._play_beside)
            await self._workers()
            nursery.cancel_scope.cancel()

    async def _pace(self, sent: Sequence[Sent]) -> None:
        for each in sent:
            await self._send([each])
            await self.observer.drained()
        self._senders -= 1

    async def _play_beside(self) -> None:
        try:
            beside = pkgutil.resolve_name(self._case.beside)
        except (ImportError, AttributeError, ValueError) as error:
            raise WorldError(f"beside the workload: {self._case.beside!r} is not there: {error}") from error
        await beside(self._url, self.world.home, self._history)
        self._senders -= 1

    async def _workers(self) -> None:
        """Start one worker after another until one has finished everything."""
        for _ in range(_WORKERS_MAX):
            # Before it exists: it may come to a rule of its own at once.
            handed_over = self.director.handed_over = trio.Event()
            worker = await self.world.spawn()
            with trio.move_on_after(self._case.deadline_s) as waited:
                finished = await self._finish(worker, handed_over)
            if waited.cancelled_caught:
                if worker.number == 1 and not self.world.has_begun(worker):
                    late = f"did not get to work within {self._case.deadline_s:g} s"
                    raise WorldError(f"{worker.name} {late}: {worker.last_words()}")
                # Whatever is left now is for the checkers to say.
                worker.send_signal(signal.SIGKILL)
                await self._ended(worker)
                await self._image(final=True)
                return
            if finished:
                await self._image(final=True)
                return
            if worker.ended.is_set():
                await self._ended(worker)
                await self._image(final=False)
                await trio.sleep(self._downtime_s(worker))
        await self._image(final=True)

    async def _ended(self, worker: Worker) -> None:
        """Wait for the end of `worker`.

        Raises:
            WorldError: it never got to work, for a reason that is none of the protocol's.
        """
        status = await self.world.ended(worker)
        idle = worker.number == 1 and not self.world.has_begun(worker)
        if idle or status == NEVER_A_WORKER:
            raise WorldError(f"{worker.name} ended with {status} before it got to work: {worker.last_words()}")

    async def _finish(self, worker: Worker, handed_over: trio.Event) -> bool:
        """Serve until all is decided, then drain; false when `worker` ended or was replaced before."""
        await self.world.serving(worker)
        while True:
            await self._all_decided(worker, handed_over)
            if worker.ended.is_set() or handed_over.is_set():
                return False
            await self.director.release()
            if not self._waiting:
                break
            after, self._waiting = self._waiting, []
            await self._send(after)
        for other in self.world.workers:
            if other is not worker and other.status is None:
                await self.world.drain(other)
        acts = self.director.acts
        if await self.world.drain(worker) != 0:
            return False
        if self.director.acts > acts:
            # The last it did met a fault, which may have undone what was done: somebody has to look.
            while self.director.busy:
                await trio.sleep(POLL_S)
            return False
        self._history.write("drained")
        return True

    async def _all_decided(self, worker: Worker, handed_over: trio.Event) -> None:
        while True:
            await self.observer.drained_or(worker.ended, handed_over)
            ended = worker.ended.is_set() or handed_over.is_set()
            if ended or (not self._senders and self.director.at_rest):
                return

    async def _image(self, *, final: bool) -> None:
        self._images += 1
        self.director.put_back()
        with trio.fail_after(self._case.deadline_s):
            # In this order: a connection that ended with the server may not be known to have.
            await self.observer.caught_up()
            broker = await self.observer.broker()
            await save_image(broker, self.world.store, self.world.home / f"image-{self._images}", final=final)
        self._history.write("image", number=self._images, final=final)

    def _downtime_s(self, worker: Worker) -> float:
        # What it wrote last was written a moment before it died.
        self.world.events.look()
        fired = {rule for actor, rule in self.world.events.faults if actor == worker.name}
        for rule in self.world.plan.of("worker"):
            if rule.number == worker.number and rule.action == "kill" and str(rule) in fired:
                return rule.seconds or 0.0
        return 0.0
