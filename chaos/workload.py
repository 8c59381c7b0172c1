"""Workloads: the commands of a run, with what is known about them beforehand. Ids carry their origin."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, overload

import attrs

from chaos.evidence import Sent
from meshforge_trio.envelope import CommandEnvelope, JsonObject, SecurityContext
from meshforge_trio.subjects import DISCARD, REDRIVE, Scope

__all__ = ["GARBAGE", "SCOPE", "Workload", "command", "every_path", "fate", "garbage_key", "trespass"]

#: Where the harness's own agents live in most runs.
SCOPE: Final = Scope("default", "demo", "counter")
_USER: Final = SecurityContext("tester", "user")
_OPERATOR: Final = SecurityContext("operator", "system")
#: A body that is no envelope: what JetStream stores when a PubAck is misdirected into the command stream.
GARBAGE: Final = b'{"stream":"MESHFORGE_COMMANDS","seq":2}'


def command(scope: Scope, action: str, number: int, payload: JsonObject | None = None, **more: Any) -> CommandEnvelope:
    """A command with id `c<number>` and, unless said otherwise, key `k<number>`."""
    fields: dict[str, Any] = {"idempotency_key": f"k{number}", "ts": float(number), **more}
    return CommandEnvelope(
        id=fields.pop("id", f"c{number}"),
        tenant=scope.tenant,
        workspace=scope.workspace,
        agent=scope.agent,
        action=action,
        payload=payload if payload is not None else {},
        security_context=_USER,
        **fields,
    )


def fate(scope: Scope, action: str, number: int, key: str, generation: int = 0, **more: Any) -> CommandEnvelope:
    """What an operator asks about the dead letter of `key`: `action` is `sys_redrive` or `sys_discard`."""
    payload: JsonObject = {"key": key, "generation": generation, "actor": "operator", "reason": "as planned"}
    return attrs.evolve(command(scope, action, number, payload, **more), security_context=_OPERATOR)


class Workload(Sequence[Sent]):
    """Commands in the order in which they are sent, numbered as they are added: ids `c1`, `c2` ..., keys `k1` ...

    commands = Workload()
    first = commands.send("parcel", "register", {"to": "Ada"}, entity="p-1")
    commands.again(first)
    commands.send("parcel", "deliver", entity="p-1", phase="after")
    """

    def __init__(self, workspace: str = "default/demo") -> None:
        self._tenant, _, self._workspace = workspace.partition("/")
        self._sent: list[Sent] = []

    def send(
        self,
        agent: str,
        action: str,
        payload: JsonObject | None = None,
        *,
        entity: str | None = None,
        key: str | None = None,
        expected_version: int | None = None,
        expect: Sequence[str] = (),
        query: bool = False,
        repeatable: bool = True,
        phase: str = "main",
    ) -> Sent:
        """Add a command; see `Sent` for what may be known of it. A `phase` of `after` is sent when faults are over."""
        number = len(self._sent) + 1
        made = command(
            Scope(self._tenant, self._workspace, agent),
            action,
            number,
            payload,
            entity_id=entity,
            expected_version=expected_version,
            idempotency_key=None if query else key or f"k{number}",
        )
        sent = Sent(made, query=query, expect=tuple(expect), repeatable=repeatable, phase=phase)
        self._sent.append(sent)
        return sent

    def redrive(
        self, agent: str, key: str, generation: int = 0, *, expect: Sequence[str] = ("decided",), phase: str = "main"
    ) -> Sent:
        """Add an operator's order to redrive the dead letter of a key, which must be there by then."""
        return self._fate(REDRIVE, agent, key, generation, expect, phase)

    def discard(
        self, agent: str, key: str, generation: int = 0, *, expect: Sequence[str] = ("decided",), phase: str = "main"
    ) -> Sent:
        """Add an operator's order to discard the dead letter of a key."""
        return self._fate(DISCARD, agent, key, generation, expect, phase)

    def _fate(self, action: str, agent: str, key: str, generation: int, expect: Sequence[str], phase: str) -> Sent:
        scope = Scope(self._tenant, self._workspace, agent)
        sent = Sent(fate(scope, action, len(self._sent) + 1, key, generation), expect=tuple(expect), phase=phase)
        self._sent.append(sent)
        return sent

    def again(self, sent: Sent, phase: str = "main") -> Sent:
        """Add the same command as a client sends it that never saw its answer: a new id, the same key."""
        made = attrs.evolve(sent.command, id=f"c{len(self._sent) + 1}")
        repeated = attrs.evolve(sent, command=made, phase=phase)
        self._sent.append(repeated)
        return repeated

    @overload
    def __getitem__(self, index: int) -> Sent: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sent]: ...
    def __getitem__(self, index: int | slice) -> Sent | Sequence[Sent]:
        return self._sent[index]

    def __len__(self) -> int:
        return len(self._sent)

    def __iter__(self) -> Iterator[Sent]:
        return iter(self._sent)


def every_path(scope: Scope = SCOPE) -> Sequence[Sent]:
    """A dozen commands to `chaos.agents` that between them meet every point of the protocol, and two for afterwards."""

    def amount(n: int) -> JsonObject:
        return {"amount": n}

    first = command(scope, "add", 1, amount(5), entity_id="a")
    return [
        Sent(first, expect=("decided",)),
        Sent(command(scope, "add", 2, amount(7), entity_id="b"), expect=("decided",)),
        Sent(command(scope, "add", 3, amount(1), entity_id="a", expected_version=1), expect=("decided",)),
        Sent(command(scope, "add", 4, amount(1), entity_id="a", expected_version=1), expect=("conflict",)),
        # The first one again, as a client that never saw its answer sends it: a new id, the same key.
        Sent(command(scope, "add", 5, amount(5), entity_id="a", idempotency_key="k1"), expect=("decided",)),
        Sent(command(scope, "take", 6, amount(100), entity_id="b"), expect=("refused",)),
        Sent(command(scope, "explode", 7, entity_id="c"), expect=("dead",)),
        # Waits behind the exploding one, and must come through untouched.
        Sent(command(scope, "add", 8, amount(2), entity_id="c"), expect=("decided",)),
        Sent(command(scope, "roll", 9, entity_id="a"), expect=("decided",), repeatable=False),
        Sent(command(scope, "tell", 10, entity_id="b"), expect=("decided",)),
        Sent(command(scope, "get", 11, entity_id="a", idempotency_key=None), query=True),
        # The same key for something else.
        Sent(command(scope, "add", 12, amount(9), entity_id="b", idempotency_key="k2")),
        Sent(command(scope, "add", 13, amount(3), entity_id="a"), expect=("decided",), phase="after"),
        Sent(
            command(scope, "add", 14, amount(5), entity_id="a", idempotency_key="k1"),
            expect=("decided",),
            phase="after",
        ),
    ]


def trespass(into: Scope, claimed: Scope, number: int) -> Sent:
    """A command whose envelope names another scope than the subject it is sent to."""
    return Sent(
        command(claimed, "add", number, {"amount": 13}, entity_id="a"),
        expect=("violation",),
        at=into,
        key=f"trespass-{number}",
    )


def garbage_key(subject: str, body: bytes, headers: bytes) -> str:
    """The name the store knows an unreadable message by."""
    total = hashlib.sha256()
    for part in (subject.encode(), headers, body):
        total.update(len(part).to_bytes(8, "big") + part)
    return f"raw:{total.hexdigest()}"
