"""What the rule tests share: a scope, its commands, runs by plan, and a world to drive by hand."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from chaos.case import Case
from chaos.checkers import judge
from chaos.evidence import Evidence, Sent, load_image, save_image
from chaos.history import VERSION, History, read_history
from chaos.lab import Outcome
from chaos.observer import Observer, open_observer
from chaos.plan import parse_plan
from chaos.verdict import Status
from chaos.workload import SCOPE, command
from chaos.world import ProcessWorld, Worker
from chaos.zygote import Zygote
from meshforge_trio.launch import load_app
from meshforge_trio.server import PrivateServer

APP = "chaos.agents:app"
ALONE = "chaos.agents:counter_only"
DEADLINE_S = 60


def adds(first: int, last: int, entity: str = "a", phase: str = "main") -> Sequence[Sent]:
    return [
        Sent(command(SCOPE, "add", n, {"amount": n}, entity_id=entity), expect=("decided",), phase=phase)
        for n in range(first, last + 1)
    ]


def sent(action: str, number: int, entity: str = "a", *expect: str, phase: str = "main", **more: Any) -> Sent:
    """One command to the counter."""
    return Sent(command(SCOPE, action, number, entity_id=entity, **more), expect=expect, phase=phase)


def case(app: str, commands: Sequence[Sent], plan: str = "", **more: Any) -> Case:
    """A case whose claims are those of most rules."""
    return Case(app, commands, parse_plan(plan, mortal=more.get("mortal", False)), **more)


def evidence_of(outcome: Outcome) -> Evidence:
    """What is left of a run that passed."""
    assert outcome.status is Status.PASS, str(outcome)
    assert outcome.evidence is not None
    return outcome.evidence


def calls(evidence: Evidence) -> dict[str, int]:
    """How often the counter's handlers were called, by key."""
    return {key: count for (scope, key), count in evidence.calls.items() if scope == str(SCOPE)}


def log_of(outcome: Outcome, number: int) -> str:
    """What worker `number` of a run said that was kept."""
    assert outcome.home is not None
    return (outcome.home / f"worker-{number}.log").read_text()


# -- by hand -------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Stage:
    """A world whose workers, server and store a test handles itself."""

    world: ProcessWorld
    observer: Observer
    history: History
    sent: list[Sent] = attrs.field(factory=list)

    async def decided(self, commands: Sequence[Sent]) -> None:
        """Send, and wait until everything is decided."""
        self.sent += commands
        await self.observer.send(commands)
        await self.observer.drained()

    async def served(self) -> Worker:
        """Start the next worker, and wait until it serves."""
        worker = await self.world.spawn()
        await self.world.serving(worker)
        return worker

    async def end(self) -> Evidence:
        """Judge what is left, with all workers drained."""
        self.history.write("drained")
        image = self.world.home / "image-1"
        await self.observer.caught_up()
        await save_image(await self.observer.broker(), self.world.store, image, final=True)
        history = read_history(self.world.home / "history.jsonl")
        evidence = load_image(image, sent=self.sent, history=history, limit=3)
        broken = [judgement for judgement in judge(evidence) if judgement.findings or judgement.failure]
        assert not broken, "\n".join(map(str, broken))
        return evidence


@asynccontextmanager
async def open_world(
    home: Path, server: PrivateServer, zygote: Zygote, app: str = APP, plan: str = ""
) -> AsyncIterator[Stage]:
    """A world of its own in the directory `home`, with a minute for everything."""
    history = History.open(home / "history.jsonl", "harness")
    history.write("header", version=VERSION, scenario="by hand", plan=plan, app=app)
    scopes = len(load_app(app).scopes(["default/demo"]))
    try:
        with trio.fail_after(DEADLINE_S):
            async with (
                ProcessWorld(
                    app, url=server.url, zygote=zygote, home=home, scopes=scopes, plan=parse_plan(plan)
                ) as world,
                open_observer(server.url, history=history.of("client")) as observer,
            ):
                yield Stage(world, observer, history)
    finally:
        history.close()


async def logged(worker: Worker, text: str) -> None:
    """Return when `worker` has logged `text`."""
    while text not in worker.tail(10_000):
        assert not worker.ended.is_set(), worker.tail()
        await trio.sleep(0.01)


def put_in_place_of(there: Path, other: Path) -> None:
    """Have the directory `there` hold a copy of `other`."""
    shutil.rmtree(there)
    shutil.copytree(other, there)
