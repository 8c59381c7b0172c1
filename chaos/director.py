"""The director of a run: does to the server, the client, the store's file and stopped workers what the plan says.

A worker that reaches a rule writes the fault to the history and stops itself; the director sees the record, acts,
and lets it go on. So the schedule is exact although several processes take part. How long a server is silent or away
is not: the worker lives through it.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, cast

import trio

from chaos.faults.blocks import BlockError
from chaos.faults.locker import LockError, locked
from chaos.faults.lost_file import Loss, LostFile
from chaos.faults.server_disk import Damage, RoomError, damage, no_room, stop_writes
from chaos.history import History
from chaos.observer import Observer
from chaos.plan import Plan, Rule
from chaos.world import POLL_S, ProcessWorld, Worker, WorldError
from meshforge_trio.server import PrivateServer

__all__ = ["Director", "needs_director"]

#: How long a killed server stays down when the plan does not say.
_DOWN_S: Final = 0.05
_ACT_S: Final = 30.0
#: What a worker cannot do to itself, or what others do to its store.
_OF_WORKERS: Final = frozenset({"stop", "lock", "unlink", "replace"})
_LOSSES: Final = frozenset({"unlink", "replace"})
_DAMAGES: Final = frozenset({"truncate", "flip", "rot"})
#: After these a worker has something to find out, though nothing waits in a stream for it.
_FORGETFUL: Final = _DAMAGES | {"rollback"}


def needs_director(plan: Plan) -> bool:
    """Whether anything in it is for a director to do."""
    return any(_is_ours(rule) for rule in plan.rules)


class Director:
    """Acts on the rules of one run. `replaced` holds workers that were stopped until a successor has finished; `acts`
    counts what was begun, of which `busy` are not yet done.

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
        self._file = LostFile(world.store, world.home / "lost-store")
        self._losses: list[tuple[Worker, Rule]] = []
        # Workers under which the broker lost something, with how often they had recovered by then.
        self._unaware: dict[Worker, int] = {}
        self.busy = 0
        self.acts = 0
        self.replaced: list[Worker] = []
        self.handed_over = trio.Event()

    @property
    def at_rest(self) -> bool:
        """Whether there is no fault to act on, none that was recorded and not seen yet, and none to recover from."""
        self._world.events.look()
        return not self.busy and (not self._directing or self._done == len(self._world.events.faults)) and self._mended

    @property
    def _mended(self) -> bool:
        """Whether every worker under which the broker lost something has looked since, or has ended or was stopped."""
        return all(
            worker.ended.is_set() or worker in self.replaced or self._world.recoveries(worker) > before
            for worker, before in self._unaware.items()
        )

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
                        self.acts += 1
                        acts.start_soon(self._act, rule, self._worker(actor))
                await trio.sleep(POLL_S / 2)

    def _worker(self, actor: str) -> Worker:
        return next(worker for worker in self._world.workers if worker.name == actor)

    async def _act(self, rule: Rule, worker: Worker) -> None:
        with trio.move_on_after(_ACT_S + (rule.seconds or 0)) as waited:
            await self._world.frozen(worker)
            if (rule.action, rule.seconds) == ("stop", None):
                self.replaced.append(worker)
                self.handed_over.set()
            else:
                try:
                    await self._carry_out(rule, worker)
                except (BlockError, LockError, RoomError, OSError) as error:
                    raise WorldError(f"{rule} could not be carried out: {error}") from error
        if waited.cancelled_caught:
            raise WorldError(f"{rule}: not carried out within {_ACT_S:g} s")
        self.busy -= 1

    async def _carry_out(self, rule: Rule, worker: Worker) -> None:
        go_on = partial(worker.send_signal, signal.SIGCONT)
        if rule.action in _LOSSES:
            self._file.lose(cast(Loss, rule.action))
            self._losses.append((worker, rule))
            go_on()
            return
        await self._perform(rule, go_on)
        self._history.of(rule.actor if rule.actor != "worker" else worker.name).write("healed", rule=str(rule))
        if not _is_lived_through(rule):
            go_on()

    async def _perform(self, rule: Rule, go_on: Callable[[], None]) -> None:
        """Do it. `go_on` is called when the worker is to live through the rest."""
        match rule.action:
            case "stop":
                await trio.sleep(rule.seconds or 0)
            case "lock":
                async with locked(self._world.store):
                    await self._meanwhile(rule, go_on)
            case "resend":
                await self._resend()
            case "copy":
                self._pause_for(self._copy_store)
            case "pause":
                self._server.pause()
                await self._meanwhile(rule, go_on)
                self._server.resume()
            case "limit":
                async with no_room(self._server.url):
                    await self._meanwhile(rule, go_on)
            case "full":
                stop_writes(self._server.pid)
                await self._meanwhile(rule, go_on)
                await self._restart(rule, lambda: None)
            case _:
                await self._restart(rule, go_on)

    async def _meanwhile(self, rule: Rule, go_on: Callable[[], None]) -> None:
        go_on()
        await trio.sleep(rule.seconds or 0)

    async def _restart(self, rule: Rule, go_on: Callable[[], None]) -> None:
        history = self._history.of("nats")
        history.write("down", why=rule.action)
        hit: Mapping[str, int] = {}
        if rule.action == "restart":
            self._server.restart()
        else:
            await self._end_server(in_order=rule.action == "rot")
            if rule.action == "rollback":
                self._put_copy_back(rule)
            elif rule.action in _DAMAGES:
                hit = damage(self._server.store_dir, cast(Damage, rule.action))
            go_on()
            await trio.sleep((rule.action == "kill" and rule.seconds) or _DOWN_S)
            if rule.action in _FORGETFUL:
                # While it is away: as soon as it is there somebody may have found out.
                self._unaware = {worker: self._world.recoveries(worker) for worker in self._world.workers}
            self._server.start()
        history.write("up", damaged=hit)

    async def _end_server(self, *, in_order: bool) -> None:
        if in_order:
            os.kill(self._server.pid, signal.SIGTERM)
            while self._server.running:
                await trio.sleep(POLL_S)
        self._server.kill()

    def _put_copy_back(self, rule: Rule) -> None:
        if not self._copy.exists():
            raise WorldError(f"{rule} fired before a copy was taken: let the copy's rule come first in the run")
        shutil.rmtree(self._server.store_dir)
        shutil.copytree(self._copy, self._server.store_dir)

    def put_back(self) -> None:
        """Put the store's file back if it was lost. The worker that lost it has ended."""
        if not self._file.lost:
            return
        self._file.put_back()
        for worker, rule in self._losses:
            self._history.of(worker.name).write("healed", rule=str(rule))
        self._losses.clear()

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
    return rule.actor in ("nats", "client") or (rule.actor == "worker" and rule.action in _OF_WORKERS)


def _is_lived_through(rule: Rule) -> bool:
    """Whether the worker goes on while it lasts: a server that is silent or away, a store that is locked."""
    return rule.action == "lock" or (rule.actor == "nats" and rule.action not in ("restart", "copy"))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
