"""Agents: what a user writes.

`AgentAdapter` is the whole interface: `receive` decides, `apply` evolves state. `Agent` builds one from decorated
functions whose payloads are attrs classes:

    order = Agent("order", state=Order)

    @order.command("create")
    def create(state: Order | None, payload: Create, ctx: Context) -> Created: ...

    @order.event("created")
    def created(state: Order | None, event: Created) -> Order: ...

`receive` may look at `ctx.now`; `apply` gets state and event and nothing else: no clock, no randomness, no I/O, no
iteration over sets, or a replay would not give the same state.
"""

from __future__ import annotations

import inspect
import typing
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import attrs
import cattrs

from meshforge_trio.decisions import Context, Deadline, Decision, Event, Reply, Send, Subscription
from meshforge_trio.envelope import CommandEnvelope, EventEnvelope, converter
from meshforge_trio.errors import Misconfigured, Poison, Refused
from meshforge_trio.policy import RetryPolicy
from meshforge_trio.subjects import RESERVED_EVENTS, SYSTEM_PREFIX, is_token

__all__ = [
    "Agent",
    "AgentAdapter",
    "Context",
    "Deadline",
    "Decision",
    "Event",
    "Reply",
    "Send",
    "Subscription",
]

S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., Any])


class AgentAdapter(ABC, Generic[S]):
    """One agent: pure decisions over one entity's state at a time.

    `name` is its subject token. `schema` counts the shapes of its state: raise it when the state class changes,
    and stored snapshots are ignored. `concurrent` says that `receive` may return an awaitable; the runtime then
    runs entities side by side and each entity in order. `retry` replaces the general policy of retries for it.
    `deadlines` says that `deadline` is to be asked; its engine then reads every entity when it starts, and `now` is a
    clock that nobody sets while the process lives.
    """

    name: str
    schema: int = 1
    concurrent: bool = False
    subscriptions: Sequence[Subscription] = ()
    retry: RetryPolicy | None = None
    deadlines: bool = False

    @abstractmethod
    def initial(self) -> S:
        """State of an entity that has no events."""

    @abstractmethod
    def receive(
        self, state: S, message: CommandEnvelope | EventEnvelope, ctx: Context
    ) -> Decision | Awaitable[Decision]:
        """Decide. Must not change `state`.

        Raises:
            Refused: the answer is no; stored under the key, published, never retried.
            Poison: it can never work; dead-lettered at once.
            Exception: anything else is a failed attempt, retried with back-off.
        """

    @abstractmethod
    def apply(self, state: S, event: Event) -> S:
        """The state after `event`.

        Raises:
            Refused: there must be no such state; whoever asked for what leads there is refused.
        """

    def is_query(self, action: str) -> bool:
        """Whether `action` only reads. Queries store nothing and may repeat."""
        return False

    def entity_of(self, event: EventEnvelope) -> str | None:
        """Which of this agent's entities a foreign event concerns."""
        return event.entity_id

    def entity_for(self, command: CommandEnvelope) -> str | None:
        """Which of this agent's entities a command concerns."""
        return command.entity_id

    def deadline(self, state: S, now: float) -> Deadline | None:
        """What an entity in this state asks for at a time; asked after each of its events."""
        return None

    def dump(self, state: S) -> Any:
        """The state as JSON values."""
        return state

    def load(self, value: Any) -> S:
        """The state from JSON values; the inverse of `dump`."""
        return typing.cast(S, value)


@attrs.frozen
class _Handler:
    function: Callable[..., Any]
    structure: Callable[[Any], Any]
    awaits: bool
    entity: Callable[[EventEnvelope], str | None] | None = None


class Agent(AgentAdapter[S]):
    """An `AgentAdapter` built from decorated functions.

    A command handler takes (state, payload, ctx); payload is structured into the class its annotation names.
    It returns an event, a `Reply`, a `Send`, a `Decision`, or a sequence of the first three. Event classes are those
    that `@agent.event` functions name. A handler that is `async def` runs beside those of other entities.
    """

    def __init__(
        self,
        name: str,
        *,
        state: Any = dict,
        initial: Callable[[], S] | None = None,
        schema: int = 1,
        retry: RetryPolicy | None = None,
    ) -> None:
        if not is_token(name):
            raise Misconfigured(f"agent name {name!r} is not 1 to 64 of A-Z a-z 0-9 _ -")
        self.name = name
        self.schema = schema
        self.retry = retry
        self._state_type = state
        self._initial = initial
        self._commands: dict[str, _Handler] = {}
        self._queries: dict[str, _Handler] = {}
        self._foreign: dict[tuple[str, str], _Handler] = {}
        self._appliers: dict[str, tuple[Callable[[Any, Any], S], Callable[[Any], Any]]] = {}
        self._event_names: dict[type, str] = {}
        self._strict = converter()
        self._detailed = converter(detailed=True)
        # Stored events outlive the code that wrote them: a field that is gone is no error.
        self._lenient = converter(forbid_extra_keys=False)

    # -- registration ------------------------------------------------------------------------------------------

    def command(self, action: str) -> Callable[[F], F]:
        """Register the handler of an action."""
        return self._register(self._commands, action)

    def query(self, action: str) -> Callable[[F], F]:
        """Register the handler of an action that only reads; it returns a `Reply`."""
        return self._register(self._queries, action)

    def on(
        self, agent: str, name: str, *, entity: Callable[[EventEnvelope], str | None] | None = None
    ) -> Callable[[F], F]:
        """Register the handler of another agent's event. `entity` picks the entity of this agent it concerns."""

        def register(function: F) -> F:
            if (agent, name) in self._foreign:
                raise Misconfigured(f"agent {self.name}: two handlers for event {name!r} of {agent!r}")
            handler = attrs.evolve(self._handler(function, self._lenient), entity=entity)
            self._foreign[agent, name] = handler
            self.subscriptions = (*self.subscriptions, Subscription(agent, name))
            return function

        return register

    def event(self, name: str) -> Callable[[F], F]:
        """Register what an event does to the state: a function of (state, event)."""
        if not is_token(name) or name in RESERVED_EVENTS:
            raise Misconfigured(f"agent {self.name}: event name {name!r} is reserved or no subject token")
        if name in self._appliers:
            raise Misconfigured(f"agent {self.name}: two functions apply event {name!r}")

        def register(function: F) -> F:
            kind = _annotation(function, 1)
            self._appliers[name] = (function, self._structurer(kind, self._lenient))
            if attrs.has(kind):
                if kind in self._event_names:
                    raise Misconfigured(f"agent {self.name}: {kind.__name__} names two events")
                self._event_names[kind] = name
            return function

        return register

    def _register(self, table: dict[str, _Handler], action: str) -> Callable[[F], F]:
        if action.startswith(SYSTEM_PREFIX):
            raise Misconfigured(f"agent {self.name}: actions that begin with {SYSTEM_PREFIX!r} are the runtime's")
        if not is_token(action):
            raise Misconfigured(f"agent {self.name}: action {action!r} is no subject token")
        if action in self._commands or action in self._queries:
            raise Misconfigured(f"agent {self.name}: two handlers for action {action!r}")

        def register(function: F) -> F:
            table[action] = self._handler(function, self._strict)
            return function

        return register

    def _handler(self, function: Callable[..., Any], using: cattrs.Converter) -> _Handler:
        awaits = inspect.iscoroutinefunction(function)
        self.concurrent = self.concurrent or awaits
        return _Handler(function, self._structurer(_annotation(function, 1), using), awaits)

    def _structurer(self, kind: Any, using: cattrs.Converter) -> Callable[[Any], Any]:
        if not attrs.has(kind):
            return lambda value: value
        hook = using.get_structure_hook(kind)

        def structure(value: Any) -> Any:
            try:
                return hook(value, kind)
            except Refused:
                raise  # a guard of the class has said what is wrong
            except Exception as error:
                raise self._bad_payload(value, kind, error) from error

        return structure

    def _bad_payload(self, value: Any, kind: Any, first: Exception) -> Refused:
        try:
            self._detailed.structure(value, kind)
        except cattrs.BaseValidationError as error:
            return Refused(
                "; ".join(cattrs.transform_error(error, path="payload")), code="bad_payload", field="payload"
            )
        return Refused(f"payload does not fit {kind.__name__}: {first}", code="bad_payload", field="payload")

    # -- the adapter -------------------------------------------------------------------------------------------

    @property
    def actions(self) -> Sequence[str]:
        """Every action with a handler, commands then queries."""
        return [*self._commands, *self._queries]

    def initial(self) -> S:
        return self._initial() if self._initial is not None else typing.cast(S, None)

    def is_query(self, action: str) -> bool:
        return action in self._queries

    def entity_of(self, event: EventEnvelope) -> str | None:
        handler = self._foreign.get((event.agent, event.name))
        if handler is None or handler.entity is None:
            return event.entity_id
        return handler.entity(event)

    def receive(
        self, state: S, message: CommandEnvelope | EventEnvelope, ctx: Context
    ) -> Decision | Awaitable[Decision]:
        if isinstance(message, CommandEnvelope):
            handler = self._commands.get(message.action) or self._queries.get(message.action)
            if handler is None:
                known = ", ".join(sorted(self.actions))
                raise Refused(
                    f"agent {self.name} has no action {message.action!r}; it has: {known}",
                    code="unknown_action",
                    field="action",
                )
            payload = handler.structure(message.payload)
        else:
            handler = self._foreign[message.agent, message.name]
            payload = _structure_foreign(handler, message)
        result = handler.function(state, payload, ctx)
        if handler.awaits:
            return self._awaited(result)
        return self._decision(result)

    async def _awaited(self, result: Awaitable[Any]) -> Decision:
        return self._decision(await result)

    def _decision(self, result: Any) -> Decision:
        if type(result) is Decision:
            return result
        name = self._event_names.get(type(result))
        if name is not None:
            return Decision((Event(name, self._strict.unstructure(result)),))
        if not isinstance(result, list | tuple):
            result = (result,)
        return self._gather(result)

    def _gather(self, results: Iterable[Any]) -> Decision:
        events: list[Event] = []
        commands: list[Send] = []
        reply: Reply | None = None
        for item in results:
            name = self._event_names.get(type(item))
            if name is not None:
                events.append(Event(name, self._strict.unstructure(item)))
            elif isinstance(item, Event):
                events.append(item)
            elif isinstance(item, Send):
                commands.append(item)
            elif isinstance(item, Reply) and reply is None:
                reply = item
            else:
                raise Poison(
                    f"agent {self.name}: a handler returned {item!r:.200}; it may return events of this agent, "
                    "one Reply, Sends, or a Decision",
                    code="nonsense",
                )
        return Decision(events, commands, reply)

    def apply(self, state: S, event: Event) -> S:
        found = self._appliers.get(event.name)
        if found is None:
            raise Poison(f"agent {self.name}: nothing applies event {event.name!r}", code="unknown_event")
        function, structure = found
        try:
            payload = structure(event.payload)
        except Refused as error:
            # What the handler made is no such event, and that is a mistake of the handler.
            raise Poison(error.reason, code="unappliable") from error
        return function(state, payload)

    def dump(self, state: S) -> Any:
        return self._strict.unstructure(state)

    def load(self, value: Any) -> S:
        if self._state_type in (dict, list, Any):
            return typing.cast(S, value)
        return typing.cast(S, self._lenient.structure(value, self._state_type))


def _structure_foreign(handler: _Handler, message: EventEnvelope) -> Any:
    try:
        return handler.structure(message.payload)
    except Refused as error:
        # Nobody waits for an answer to an event, so a refusal would be lost: set it aside instead.
        raise Poison(f"event {message.id}: {error.reason}", code="bad_payload", field="payload") from error


def _annotation(function: Callable[..., Any], position: int) -> Any:
    """The class that a function's parameter at `position` is annotated with; `dict` if it has none."""
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) <= position:
        raise Misconfigured(f"{function.__qualname__} takes {len(parameters)} parameters, too few")
    hints = typing.get_type_hints(function)
    return hints.get(parameters[position].name, dict)
