"""A runtime on paper whose dead letters can be redriven and discarded, by the commands that an operator sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from chaos.evidence import Evidence, Sent
from chaos.rows import Letter
from chaos.worker import RecordedAgent
from chaos.workload import fate
from meshforge_trio.agent import Agent, AgentAdapter, Context, Event
from meshforge_trio.broker.port import Delivery
from meshforge_trio.envelope import JsonObject
from meshforge_trio.errors import Poison
from meshforge_trio.intake import read_delivery
from meshforge_trio.store.port import Commit, DeadLetter, DeadState, Reading
from meshforge_trio.subjects import DISCARD, REDRIVE, Scope

from .desk import AGENTS, Desk
from .paper import Paper, Stage

__all__ = ["BROKEN", "STUBBORN", "RedrivingPaper", "discard", "redrive"]

#: More than any run takes.
_TURNS_MAX: Final = 1_000
#: An agent that can take no event.
BROKEN: Final = Scope("default", "demo", "broken")
_broken: Agent[int] = Agent("broken", state=int, initial=int)


@_broken.on("counter", "added")
def never(state: int, payload: JsonObject, ctx: Context) -> Event:
    raise Poison("broken", code="broken")


#: One that fails at every event, and is tried again.
STUBBORN: Final = Scope("default", "demo", "stubborn")
_stubborn: Agent[int] = Agent("stubborn", state=int, initial=int)


@_stubborn.on("counter", "added")
def not_now(state: int, payload: JsonObject, ctx: Context) -> Event:
    raise RuntimeError("not now")


_AGENTS: Final[Mapping[str, AgentAdapter[Any]]] = {**AGENTS, "broken": _broken, "stubborn": _stubborn}


@attrs.define(eq=False)
class RedrivingDesk(Desk):
    """A scope whose store knows the fates of dead letters."""

    def reading(self) -> Reading:
        dead = {letter.key: letter for letter in self.dead if letter.key in self.keys}
        return attrs.evolve(super().reading(), dead=dead)

    def commit(self, commit: Commit) -> None:
        super().commit(commit)
        for key, generation in commit.redriven:
            self._seal(key, generation, "redriven")
            del self.keys[key]
            self.generations[key] = generation + 1
        for key, generation in commit.discarded:
            self._seal(key, generation, "discarded")

    def _seal(self, key: str, generation: int, state: DeadState) -> None:
        (i,) = [i for i, each in enumerate(self.dead) if (each.key, each.generation) == (key, generation)]
        self.dead[i] = attrs.evolve(self.dead[i], state=state)


class RedrivingPaper(Paper):
    """`Paper` with such desks."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._turns = 0
        self.desks = {scope: RedrivingDesk(scope, desk.agent, desk.policy) for scope, desk in self.desks.items()}

    def _recorded(self, scope: Scope) -> AgentAdapter[Any]:
        return RecordedAgent(_AGENTS[scope.agent], self.history)

    def pending(self, desk: Desk) -> Sequence[Delivery]:
        """What still has to wait was sent away, and comes back behind what is there."""

        def waits(delivery: Delivery) -> bool:
            return desk.waiting.delay_s(read_delivery(delivery, desk.scope, desk.agent), self.now) is not None

        return sorted(super().pending(desk), key=waits)

    def turn(self, scope: Scope, size: int = 64, dies: Stage | None = None) -> bool:
        self._turns += 1
        assert self._turns < _TURNS_MAX, f"what waits in {scope} is never decided: {self.desks[scope].attempts}"
        return super().turn(scope, size, dies)

    def image(self, *, final: bool) -> Evidence:
        evidence = super().image(final=final)
        rows = attrs.evolve(
            evidence.rows,
            dead=[_letter(scope, letter) for scope, desk in self.desks.items() for letter in desk.dead],
            generations={(scope, key): n for scope, desk in self.desks.items() for key, n in desk.generations.items()},
        )
        return attrs.evolve(evidence, rows=rows)


def _letter(scope: Scope, d: DeadLetter) -> Letter:
    return Letter(
        scope,
        d.key,
        d.generation,
        d.subject,
        d.body,
        d.code,
        d.attempts,
        d.headers,
        d.reason,
        d.entity_id,
        d.trace_id,
        d.state,
        d.calls,
    )


def redrive(scope: Scope, number: int, key: str, generation: int = 0, expect: Sequence[str] = ("decided",)) -> Sent:
    """Command `c<number>`, which redrives the dead letter of a key."""
    return Sent(fate(scope, REDRIVE, number, key, generation), expect=expect)


def discard(scope: Scope, number: int, key: str, generation: int = 0, expect: Sequence[str] = ("decided",)) -> Sent:
    """Command `c<number>`, which discards the dead letter of a key."""
    return Sent(fate(scope, DISCARD, number, key, generation), expect=expect)
