"""The deployment under soak: several workers on one store at once, replaced when they die, the first of them never
killed.

The others are killed by rules of their own plans, at points, and by the storm, at any time. Names of workers are those
of plans, `worker#1` to `worker#12`: one that is dead leaves its name to another of a later round.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
import trio

from chaos.history import VERSION, History, now_ns
from chaos.plan import Plan, Rule
from chaos.rules import WORKERS_MAX
from chaos.world import POLL_S, ProcessWorld, Tail, Worker
from meshforge_trio.server import PrivateServer

__all__ = ["SURVIVOR", "SoakWorld"]

#: The number of the worker that is never killed.
SURVIVOR: Final = 1
_DOWN_S: Final = 0.3
_KILLED: Final = -9
#: How a worker may end that was told to: drained; not in time while the server was away; just forked, and deaf yet.
_TOLD_TO_END: Final = (0, 1, -signal.SIGTERM)


class SoakWorld(ProcessWorld):
    """Keeps `size` workers alive; `plan_of` draws the rules of a worker that is started, from its number.

    `unplanned` are ends of workers that nothing asked for, in words. The survivor tells how it is on `health_port`.
    """

    def __init__(
        self, *args: Any, server: PrivateServer, size: int, plan_of: Callable[[int], Sequence[Rule]], **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self._server = server
        self._size = size
        self._plan_of = plan_of
        self._rules: dict[Worker, dict[str, Rule]] = {}
        self._killed: set[Worker] = set()
        self._told: set[Worker] = set()
        self._used: set[int] = set()
        self._serial = 0
        self._strikes = 0
        self._seen = 0
        self._todo: list[tuple[Rule, Worker]] = []
        self._held: set[Worker] = set()
        # One thing at a time is done to stopped workers, or one would wake what another needs asleep.
        self._hand = trio.Lock()
        self._server_hand = trio.Lock()
        self._began: Sequence[tuple[str, int]] = ()
        self._replacing = True
        self.health_port = _free_port()
        self.ends = 0
        self.unplanned: list[str] = []

    @property
    def mortals(self) -> Sequence[Worker]:
        """Living workers that may be killed."""
        return [worker for worker in self.living if worker.number != SURVIVOR]

    @property
    def living(self) -> Sequence[Worker]:
        """Workers that have a process, as far as was heard. One that is just being forked has none yet."""
        return [worker for worker in self.workers if worker.pid and not worker.ended.is_set()]

    @property
    def survivor(self) -> Worker | None:
        """The worker that is never killed; `None` should it have ended all the same."""
        return next((worker for worker in self.workers if worker.number == SURVIVOR), None)

    @property
    def at_rest(self) -> bool:
        """Whether every fault that was recorded is over and every worker is there that may be."""
        self._pick_up()
        busy = self._hand.locked() or self._server_hand.locked() or self._held
        return not busy and (len(self.workers) == self._size or not self._free_numbers())

    # -- workers that come and go ------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Replace whoever ends, as long as there are names, and act on the rules of workers; until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                if self._replacing and len(self.workers) < self._size and self._free_numbers():
                    nursery.start_soon(self._see_off, await self.spawn())
                self._pick_up()
                while self._todo:
                    nursery.start_soon(self._act, *self._todo.pop(0))
                await trio.sleep(POLL_S)

    def _free_numbers(self) -> Sequence[int]:
        taken = self._used | {worker.number for worker in self.workers}
        return [number for number in range(1, WORKERS_MAX + 1) if number not in taken]

    async def spawn(self) -> Worker:
        """Start one more, under the lowest free name."""
        number = self._free_numbers()[0]
        self._used.add(number)
        self._serial += 1
        rules = self._plan_of(number)
        worker = Worker(number, self.home / f"worker-{self._serial}.log")
        self._rules[worker] = {str(rule): rule for rule in rules}
        self.workers.append(worker)
        order = {**self._order, "number": number, "log": str(worker.log), "plan": str(Plan(rules))}
        if number == SURVIVOR:
            order["health_port"] = self.health_port
        await self._zygote.spawn(worker, order)
        self._history.write("spawn", actor=worker.name, pid=worker.pid)
        return worker

    async def _see_off(self, worker: Worker) -> None:
        await worker.ended.wait()
        self.events.look()
        rules = self._rules.pop(worker)
        by_plan = any(
            actor == worker.name and text in rules and (rules[text].actor, rules[text].action) == ("worker", "kill")
            for actor, text in self.events.faults
        )
        killed = worker.status == _KILLED and (by_plan or worker in self._killed)
        if not killed and not (worker.status in _TOLD_TO_END and worker in self._told):
            self.unplanned.append(f"{worker.name} ended with {worker.status}; it said:\n{worker.tail(12)}")
        self._history.write("exit", actor=worker.name, status=-1 if worker.status is None else worker.status)
        self.ends += 1
        self.workers.remove(worker)
        if killed or worker.status == 0:
            worker.log.unlink(missing_ok=True)

    # -- rules of workers that others carry out ----------------------------------------------------------------

    def _pick_up(self) -> None:
        """Take note of rules that fired and wait for somebody to act. Their workers have stopped themselves."""
        self.events.look()
        for actor, text in self.events.faults[self._seen :]:
            self._seen += 1
            worker = next((worker for worker in self.workers if worker.name == actor), None)
            rule = None if worker is None else self._rules.get(worker, {}).get(text)
            if worker is not None and rule is not None and (rule.actor == "nats" or rule.action == "stop"):
                self._held.add(worker)
                self._todo.append((rule, worker))

    async def _act(self, rule: Rule, worker: Worker) -> None:
        async with self._hand:
            await self.frozen(worker)
            if rule.actor == "nats":
                await self._to_server(rule.action, rule.seconds, str(rule), worker)
            else:
                await trio.sleep(rule.seconds or 0)
                self._history.write("healed", actor=worker.name, rule=str(rule))
            self._held.discard(worker)
            worker.send_signal(signal.SIGCONT)

    async def _to_server(self, action: str, seconds: float | None, text: str, witness: Worker | None = None) -> None:
        """Do it. A `witness` that was stopped for it lives through what takes its time."""
        nats = self._history.of("nats")
        async with self._server_hand:
            if action == "pause":
                self._server.pause()
                _go_on(witness)
                await trio.sleep(seconds or _DOWN_S)
                self._server.resume()
            else:
                nats.write("down", why=action)
                if action == "restart":
                    self._server.restart()
                else:
                    self._server.kill()
                    _go_on(witness)
                    await trio.sleep(seconds or _DOWN_S)
                    self._server.start()
                nats.write("up")
            nats.write("healed", rule=text)

    # -- faults at any time ------------------------------------------------------------------------------------

    def _record(self, who: str, action: str) -> str:
        """Write a fault down before it is done."""
        self._strikes += 1
        text = f"{who}:any_time@{self._strikes}={action}"
        self._history.write("fault", actor=who, rule=text)
        return text

    def kill(self, worker: Worker) -> None:
        """SIGKILL it now."""
        self._record(worker.name, "kill")
        self._killed.add(worker)
        worker.send_signal(signal.SIGKILL)

    def tell_to_end(self, worker: Worker) -> None:
        """SIGTERM: it drains, and others take over."""
        self._told.add(worker)
        worker.send_signal(signal.SIGTERM)

    async def stop(self, worker: Worker, seconds: float) -> None:
        """SIGSTOP it, outside of a write transaction, for so long."""
        async with self._hand:
            text = self._record(worker.name, f"stop({seconds:g})")
            worker.send_signal(signal.SIGSTOP)
            await self.frozen(worker)
            await trio.sleep(seconds)
            self._thaw(worker, text)

    async def strike_server(self, action: str, seconds: float | None = None) -> None:
        """Kill, restart or pause the server; returns when it is there again."""
        text = self._record("nats", action if seconds is None else f"{action}({seconds:g})")
        await self._to_server(action, seconds, text)

    async def freeze(self, victim: Worker, look: Callable[[], Awaitable[None]]) -> None:
        """Stop everybody, kill `victim`, and call `look` before anybody can go on."""
        async with self._hand, self._server_hand:
            self._replacing = False
            others = [worker for worker in self.workers if worker is not victim]
            for worker in others:
                await worker.started.wait()
            texts = {}
            for worker in others:
                texts[worker] = self._record(worker.name, "stop")
                worker.send_signal(signal.SIGSTOP)
            for worker in others:
                await self.frozen(worker)
            self.kill(victim)
            while victim in self.workers:
                await trio.sleep(POLL_S)
            await look()
            for worker, text in texts.items():
                self._thaw(worker, text)
            self._replacing = True

    def _thaw(self, worker: Worker, text: str) -> None:
        """Let it go on, unless it had stopped itself for a rule of its own: then that comes first."""
        self._history.write("healed", actor=worker.name, rule=text)
        self._pick_up()
        if worker not in self._held:
            worker.send_signal(signal.SIGCONT)

    def stop_replacing(self) -> None:
        """Start no more workers."""
        self._replacing = False

    # -- rounds ------------------------------------------------------------------------------------------------

    @property
    def history(self) -> History:
        """Where the harness writes."""
        return self._history

    def begin_round(self) -> None:
        """Everything from here on belongs to the next round. Call it when all is quiet."""
        path = self.home / "history.jsonl"
        os.truncate(path, 0)
        self.events = Tail(path)
        self._seen = 0
        self._used = {worker.number for worker in self.workers}
        self._began = [(worker.name, worker.pid) for worker in self.workers]

    def end_round(self, home: Path, name: str) -> None:
        """Put the history of the round into `home`: who was there at its beginning, and what was written since."""
        path = self.home / "history.jsonl"
        text = path.read_bytes()
        lines: list[dict[str, Any]] = [{"kind": "header", "version": VERSION, "scenario": name, "plan": "", "app": ""}]
        lines += [{"kind": "spawn", "actor": actor, "pid": pid} for actor, pid in self._began]
        first = [orjson.dumps({"t": now_ns(), "actor": "harness", **line}) + b"\n" for line in lines]
        # A line that is just being written belongs to the next round, where nobody misses it.
        (home / "history.jsonl").write_bytes(b"".join(first) + text[: text.rfind(b"\n") + 1])


def _go_on(worker: Worker | None) -> None:
    if worker is not None:
        worker.send_signal(signal.SIGCONT)


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port
