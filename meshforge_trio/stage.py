"""An app played in memory: every command decided by its agent, with all that follows, under a clock that one sets.

    stage = Stage(app)
    told = stage.send("order", "create", {"sku": "lamp"}, entity="o-1")
    assert told.name == "created"
    assert stage.state("inventory", "lamp").stock == 11

No broker, no store, no time that passes: what one command leads to has happened when `send` returns, in the order in
which it was decided: what an agent sends before what others make of its events. Over a broker the two have no order,
and an app whose outcome depends on it has no certain one.

It is for tests of what agents decide. What becomes of that when processes die is no matter of a stage; `chaos` is for
that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import attrs
import orjson

from meshforge_trio.agent import AgentAdapter, Context, Decision, Event, Send, Subscription
from meshforge_trio.envelope import CommandEnvelope, EventEnvelope, JsonObject, SecurityContext, canonical
from meshforge_trio.errors import Misconfigured, Refused
from meshforge_trio.runtime import App

__all__ = ["Happened", "Stage"]

#: What one command may lead to: agents that answer each other for ever are found out.
_CHAIN_MAX: Final = 10_000
_WHO: Final = SecurityContext("stage", "user")


@attrs.frozen
class Happened:
    """An event, or the answer to a command: a refusal carries its `code`, `conflict` the two versions."""

    agent: str
    name: str
    entity: str | None
    payload: JsonObject = attrs.field(factory=dict)
    code: str = ""


class Stage:
    """The agents of an app, and what has happened to their entities since it was made."""

    def __init__(self, app: App, *, tenant: str = "default", workspace: str = "demo") -> None:
        self._agents: dict[str, AgentAdapter[Any]] = {agent.name: agent for agent in app.agents}
        self._tenant = tenant
        self._workspace = workspace
        self._states: dict[tuple[str, str | None], Any] = {}
        self._versions: dict[tuple[str, str | None], int] = {}
        self._count = 0
        #: Every event so far, in the order of the decisions.
        self.events: list[Happened] = []
        #: Every refusal so far: answers to commands, and what agents made of each other's events.
        self.refusals: list[Happened] = []

    def state(self, agent: str, entity: str) -> Any:
        """The state of an entity; of one that has no events, the agent's initial one."""
        return self._states.get((agent, entity), self._agents[agent].initial())

    def exists(self, agent: str, entity: str) -> bool:
        """Whether the entity has any event."""
        return (agent, entity) in self._versions

    def send(
        self,
        agent: str,
        action: str,
        payload: JsonObject | None = None,
        *,
        entity: str | None = None,
        at: float = 0.0,
        expected_version: int | None = None,
    ) -> Happened:
        """Have a command decided at the time `at`, in seconds since 1970, and all that follows; return its answer.

        Raises:
            Misconfigured: the app has no such agent, or what follows does not come to an end.
            Exception: as the handler raised it, unless it refused.
        """
        waiting: deque[tuple[str, CommandEnvelope | EventEnvelope]] = deque()
        waiting.append((agent, self._command(agent, action, payload or {}, entity, expected_version)))
        answer: Happened | None = None
        for number in range(_CHAIN_MAX):
            if not waiting:
                return answer or Happened(agent, "accepted", entity)
            told, followers = self._turn(*waiting.popleft(), at)
            if number == 0 and told:
                answer = told[0]
            waiting.extend(followers)
        raise Misconfigured(f"{action} of {agent} leads to more than {_CHAIN_MAX} decisions: agents that never stop")

    def given(
        self, agent: str, action: str, payload: JsonObject | None = None, *, entity: str | None = None, at: float = 0.0
    ) -> None:
        """As `send`, for what has happened before: `events` and `refusals` hold only what comes after it.

        Raises:
            AssertionError: it was refused.
        """
        told = self.send(agent, action, payload, entity=entity, at=at)
        assert not told.code, f"{action} of {agent} was refused: {told.payload.get('reason')}"
        self.events.clear()
        self.refusals.clear()

    def happened(self, agent: str, name: str, entity: str | None = None, **values: Any) -> bool:
        """Whether there was such an event, of that entity if one is named, with at least these values.

        Values are as Python holds them: a `Decimal` stands for every text of the same number.
        """
        return any(
            (event.agent, event.name) == (agent, name)
            and entity in (None, event.entity)
            and all(field in event.payload and _same(event.payload[field], value) for field, value in values.items())
            for event in self.events
        )

    def _command(
        self, agent: str, action: str, payload: JsonObject, entity: str | None, expected_version: int | None
    ) -> CommandEnvelope:
        self._count += 1
        return CommandEnvelope(
            id=f"c{self._count}",
            tenant=self._tenant,
            workspace=self._workspace,
            agent=agent,
            action=action,
            payload=_carried(payload),
            entity_id=entity,
            expected_version=expected_version,
            idempotency_key=f"k{self._count}",
            security_context=_WHO,
        )

    def _turn(
        self, name: str, message: CommandEnvelope | EventEnvelope, at: float
    ) -> tuple[list[Happened], list[tuple[str, CommandEnvelope | EventEnvelope]]]:
        """One decision: what it answers, and who hears of it."""
        agent = self._agent(name)
        wanted = message.expected_version if isinstance(message, CommandEnvelope) else None
        entity = agent.entity_for(message) if isinstance(message, CommandEnvelope) else agent.entity_of(message)
        place = (name, entity)
        context = Context(at, entity, self._versions.get(place, 0))
        if wanted is not None and wanted != context.version:
            versions = {"expected_version": wanted, "current_version": context.version}
            return [Happened(name, "conflict", entity, versions)], []
        try:
            decision = agent.receive(self._states.get(place, agent.initial()), message, context)
            assert isinstance(decision, Decision)  # what decides at once returns nothing else
            events = [Event(each.name, _carried(each.payload)) for each in decision.events]
            self._evolve(agent, place, events)
        except Refused as refused:
            told = {"reason": refused.reason, "code": refused.code}
            self.refusals.append(Happened(name, refused.name, entity, told, refused.code))
            return self.refusals[-1:], []
        answers = [Happened(name, decision.reply.name, entity, decision.reply.payload)] if decision.reply else []
        followers: list[tuple[str, CommandEnvelope | EventEnvelope]] = []
        followers += [(send.agent, self._sent(send)) for send in decision.commands]
        for event in events:
            happened = Happened(name, event.name, entity, event.payload)
            self.events.append(happened)
            answers.append(happened)
            followers += self._listeners(name, entity, event)
        return answers, followers

    def _agent(self, name: str) -> AgentAdapter[Any]:
        if name not in self._agents:
            raise Misconfigured(f"the app has no agent {name!r}; it has: {', '.join(sorted(self._agents))}")
        if self._agents[name].concurrent:
            raise Misconfigured(f"agent {name} decides asynchronously: a stage has no loop to wait in")
        return self._agents[name]

    def _evolve(self, agent: AgentAdapter[Any], place: tuple[str, str | None], events: Sequence[Event]) -> None:
        """Take an entity past all of these events, or, if one is refused, past none."""
        state, version = self._states.get(place, agent.initial()), self._versions.get(place, 0)
        for event in events:
            version += 1
            state = agent.apply(state, Event(event.name, {**event.payload, "entity_version": version}))
        if events:
            self._states[place], self._versions[place] = state, version

    def _listeners(self, agent: str, entity: str | None, event: Event) -> list[tuple[str, EventEnvelope]]:
        envelope = EventEnvelope(
            id=f"c{self._count}_{event.name}",
            tenant=self._tenant,
            workspace=self._workspace,
            agent=agent,
            name=event.name,
            payload=event.payload,
            entity_id=entity,
            security_context=_WHO,
        )
        wanted = Subscription(agent, event.name)
        return [(name, envelope) for name, other in self._agents.items() if wanted in other.subscriptions]

    def _sent(self, send: Send) -> CommandEnvelope:
        return self._command(send.agent, send.action, send.payload, send.entity_id, send.expected_version)


def _carried(payload: JsonObject) -> JsonObject:
    """What arrives of it at the other end: JSON knows lists and no tuples."""
    arrived: JsonObject = orjson.loads(canonical(payload))
    return arrived


def _same(told: Any, value: Any) -> bool:
    """Whether a value of JSON is this one of Python."""
    if isinstance(value, Decimal):
        return isinstance(told, str) and Decimal(told) == value
    if isinstance(value, tuple | list):
        return isinstance(told, list | tuple) and len(told) == len(value) and all(map(_same, told, value))
    return bool(told == value) and isinstance(told, bool) is isinstance(value, bool)
