"""The life of a worker: the runtime as it is, with a probe at its points and a record of its handlers' calls."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Awaitable
from inspect import isawaitable
from pathlib import Path
from typing import Any

import attrs
import structlog

from chaos.faults.disk import FullDisk
from chaos.faults.disk_errors import FailingDisk
from chaos.history import History
from chaos.plan import parse_plan
from chaos.probe import FAILURES, FaultProbe
from meshforge_trio.agent import AgentAdapter, Context, Deadline, Decision, Event
from meshforge_trio.config import EngineSettings, Settings
from meshforge_trio.envelope import CommandEnvelope, EventEnvelope, canonical
from meshforge_trio.errors import Misconfigured, Poison
from meshforge_trio.intake import event_key, query_key
from meshforge_trio.launch import load_app, serve
from meshforge_trio.policy import ExitCode, RetryPolicy
from meshforge_trio.runtime import App
from meshforge_trio.telemetry import set_up_logging

__all__ = ["RecordedAgent", "live"]


def live(order: dict[str, Any], descriptor: int) -> int:
    """Serve until a signal or a rule of the plan; return the exit code. `descriptor` appends to the history."""
    os.environ.update(order["environment"])
    sys.path.insert(0, order["path"])
    os.chdir(order["path"])
    set_up_logging(order["log_level"])
    log = structlog.get_logger("meshforge")
    log.info("worker", number=order["number"], plan=order["plan"])
    history = History(descriptor, f"worker#{order['number']}")
    rules = parse_plan(order["plan"], mortal=True).of_worker(order["number"])
    store = Path(order["store"])
    own = {rule.action for rule in rules if rule.actor == "worker"}
    disk = FullDisk(store) if "full" in own else None
    failing = FailingDisk(store) if own & FAILURES.keys() else None
    settings = Settings(
        url=order["url"],
        store=store,
        workspaces=tuple(order["workspaces"]),
        lease_ttl_s=order["lease_ttl_s"],
        health_port=order["health_port"],
        engine=EngineSettings(**order["engine"], retry=RetryPolicy(**order["retry"])),
    )
    try:
        app = load_app(order["app"])
    except Misconfigured as error:
        log.critical("the app cannot be loaded", reason=str(error))
        return ExitCode.MISCONFIGURED
    recorded = App([RecordedAgent(agent, history) for agent in app.agents], app.codecs)
    return serve(recorded, settings, probe=FaultProbe(rules, history, disk, failing))


class RecordedAgent(AgentAdapter[Any]):
    """An agent whose calls are written down before they are made, and their decisions after."""

    def __init__(self, agent: AgentAdapter[Any], history: History) -> None:
        self._agent = agent
        self._history = history
        self.name = agent.name
        self.schema = agent.schema
        self.concurrent = agent.concurrent
        self.subscriptions = agent.subscriptions
        self.retry = agent.retry
        self.deadlines = agent.deadlines

    def initial(self) -> Any:
        """See `AgentAdapter.initial`."""
        return self._agent.initial()

    def apply(self, state: Any, event: Event) -> Any:
        """See `AgentAdapter.apply`."""
        return self._agent.apply(state, event)

    def is_query(self, action: str) -> bool:
        """See `AgentAdapter.is_query`."""
        return self._agent.is_query(action)

    def entity_of(self, event: EventEnvelope) -> str | None:
        """See `AgentAdapter.entity_of`."""
        return self._agent.entity_of(event)

    def entity_for(self, command: CommandEnvelope) -> str | None:
        """See `AgentAdapter.entity_for`."""
        return self._agent.entity_for(command)

    def deadline(self, state: Any, now: float) -> Deadline | None:
        """See `AgentAdapter.deadline`."""
        return self._agent.deadline(state, now)

    def dump(self, state: Any) -> Any:
        """See `AgentAdapter.dump`."""
        return self._agent.dump(state)

    def load(self, value: Any) -> Any:
        """See `AgentAdapter.load`."""
        return self._agent.load(value)

    def receive(
        self, state: Any, message: CommandEnvelope | EventEnvelope, ctx: Context
    ) -> Decision | Awaitable[Decision]:
        """Call the agent's own, with a record before and after."""
        scope = f"{message.tenant}/{message.workspace}/{self.name}"
        key = message.idempotency_key or ""
        if isinstance(message, EventEnvelope):
            key = event_key(message)
        elif self._agent.is_query(message.action):
            key = query_key(message)
        self._history.write(
            "call",
            scope=scope,
            key=key,
            id=message.id,
            action=message.action if isinstance(message, CommandEnvelope) else message.name,
            entity=ctx.entity_id,
            version=ctx.version,
            before=_digest(self._agent.dump(state)),
        )
        decision = self._agent.receive(state, message, ctx)
        if isawaitable(decision):
            return self._awaited(scope, key, decision)
        self._decided(scope, key, decision)
        return decision

    async def _awaited(self, scope: str, key: str, decision: Awaitable[Decision]) -> Decision:
        made = await decision
        self._decided(scope, key, made)
        return made

    def _decided(self, scope: str, key: str, decision: object) -> None:
        # What is no Decision is the engine's to refuse.
        if isinstance(decision, Decision):
            self._history.write("decided", scope=scope, key=key, digest=_digest(attrs.asdict(decision)))


def _digest(value: object) -> str:
    """A short name for a JSON value; for one that is none, its kind: the engine refuses it later."""
    try:
        return hashlib.sha256(canonical(value)).hexdigest()[:16]
    except (TypeError, ValueError, Poison):
        return f"unwritable {type(value).__name__}"
