"""The director of a run: does to the server, the client and stopped workers what the plan says, when it says so.

A worker that reaches a rule writes the fault to the history and stops itself; the director sees the record, acts,
and lets it go on. So the schedule is exact although several processes take part. How long a server is silent or away
is not: the worker lives through it.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import trio

from chaos.history import History
from chaos.observer import Observer
from chaos.plan import Rule
from chaos.world import POLL_S, ProcessWorld, Worker, WorldError
from meshforge_trio.server import PrivateServer

__all__ = ["Director"]

#: How long a killed server stays down when the plan does not say.
_DOWN_S: Final = 0.05
_ACT_S: Final = 30.0


class Director:
    """Acts on the rules of one run. `replaced` holds workers that were stopped until a successor has finished.

    `resend` sends every command again under a new id.
    """

    def __init__(
        self,
        world: ProcessWorld,
        server: PrivateServer,
        observer: Observer,
        history: History,
        resend: Callable[[], Awaitable[None]],
    ) -> None:
        self._world = world
        self._server = server
        self._observer = observer
        self._history = history
        self._resend = resend
        self._rules = {str(rule): rule for rule in world.plan.rules}
        self._done = 0
        self._directing = False
        self._copy = world.home / "server-copy"
        self.busy = 0
        self.replaced: list[Worker] = []
        self.handed_over = trio.Event()

    @property
    def at_rest(self) -> bool:
        """Whether there is no fault to act on, and none that was recorded and not seen yet."""
        self._world.events.look()
        return not self.busy and (not self._directing or self._done == len(self._world.events.faults))

    async def direct(self) -> None:
        """Act on faults as they are recorded, until cancelled."""
        self._directing = True
        async with trio.open_nursery() as acts:
            while True:
                self._world.events.look()
                for actor, text in self._world.events.faults[self._done :]:
                    self._done += 1
                    rule = self._rules.get(text)
                    if rule is not None and _is_ours(rule):
                        self.busy += 1
                        acts.start_soon(self._act, rule, self._worker(actor))
                await trio.sleep(POLL_S / 2)

    def _worker(self, actor: str) -> Worker:
        return next(worker for worker in self._world.workers if worker.name == actor)

    async def _act(self, rule: Rule, worker: Worker) -> None:
        with trio.move_on_after(_ACT_S + (rule.seconds or 0)) as waited:
            await self._world.frozen(worker)
            if rule.actor == "worker" and rule.seconds is None:
                self.replaced.append(worker)
                self.handed_over.set()
            else:
                go_on = partial(worker.send_signal, signal.SIGCONT)
                await self._perform(rule, go_on)
                self._history.of(rule.actor if rule.actor != "worker" else worker.name).write("healed", rule=str(rule))
                if not _is_lived_through(rule):
                    go_on()
        if waited.cancelled_caught:
            raise WorldError(f"{rule}: not carried out within {_ACT_S:g} s")
        self.busy -= 1

    async def _perform(self, rule: Rule, go_on: Callable[[], None]) -> None:
        """Do it. `go_on` is called when the worker is to live through the rest."""
        if rule.actor == "worker":
            await trio.sleep(rule.seconds or 0)
        elif rule.actor == "client":
            await self._resend()
        elif rule.action == "copy":
            self._pause_for(self._copy_store)
        elif rule.action == "pause":
            self._server.pause()
            go_on()
            await trio.sleep(rule.seconds or 0)
            self._server.resume()
        else:
            await self._restart(rule, go_on)

    async def _restart(self, rule: Rule, go_on: Callable[[], None]) -> None:
        history = self._history.of("nats")
        history.write("down", why=rule.action)
        if rule.action == "restart":
            self._server.restart()
        else:
            self._server.kill()
            if rule.action == "rollback":
                if not self._copy.exists():
                    raise WorldError(f"{rule} fired before a copy was taken: let the copy's rule come first in the run")
                shutil.rmtree(self._server.store_dir)
                shutil.copytree(self._copy, self._server.store_dir)
            go_on()
            await trio.sleep(rule.seconds or _DOWN_S)
            self._server.start()
        history.write("up")

    def _pause_for(self, act: Callable[[], None]) -> None:
        self._server.pause()
        try:
            act()
        finally:
            self._server.resume()

    def _copy_store(self) -> None:
        # As a kill at this instant would leave it: what the kernel has is in the copy.
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._server.store_dir, self._copy)

    async def release(self) -> None:
        """Let every replaced worker go on, and wait until it has said something or has ended."""
        for worker in self.replaced:
            said = _size(worker.log)
            self._history.of(worker.name).write("healed", rule=self._stop_of(worker))
            worker.send_signal(signal.SIGCONT)
            with trio.move_on_after(_ACT_S / 10):
                while _size(worker.log) == said and not worker.ended.is_set():
                    await trio.sleep(POLL_S)
        self.replaced.clear()

    def _stop_of(self, worker: Worker) -> str:
        return next(text for actor, text in reversed(self._world.events.faults) if actor == worker.name)


def _is_ours(rule: Rule) -> bool:
    return rule.actor in ("nats", "client") or rule.action == "stop"


def _is_lived_through(rule: Rule) -> bool:
    """Whether the worker goes on while it lasts: a server that is silent or away."""
    return rule.actor == "nats" and rule.action in ("pause", "kill", "rollback")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
