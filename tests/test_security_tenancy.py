"""Tenant a attacks tenant b, and nothing comes of it: the broker refuses, and where it would not, the runtime does.

`INJECTIONS` are run twice with credentials of tenant a: against a server with an account per tenant, where nothing
arrives, and against an open server where everybody may publish, so that only the runtime is left to refuse. `REACHES`
go through the broker's own interface. They are run against the accounts; and against the open server as a control,
since an attack that would fail anyway proves nothing.

Isolation of store, keys, ids and entities: `tests/conformance/test_store.py`, `scenarios/two_tenants.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import nkeys
import orjson
import pytest
import trio
from integration.tenants_world import DEADLINE_S, Kind, Tenants, tenants

from meshforge_trio.broker.bridge import Connection
from meshforge_trio.broker.frames import hpub, pub
from meshforge_trio.client import MeshClient
from meshforge_trio.envelope import CommandEnvelope, EventEnvelope, SecurityContext, encode
from meshforge_trio.nats_config import Role
from meshforge_trio.signing import Signer
from meshforge_trio.subjects import COMMANDS, EVENTS, FAILED, Scope, command_subject, consumer_name

VICTIM: Final = Scope("b", "w", "account")
OWN: Final = Scope("a", "w", "account")
SUBJECT: Final = command_subject(VICTIM, "add")
CONSUMER: Final = consumer_name(VICTIM)
BOOTY: Final = 1_000_000
_LIMIT: Final = 1 << 20


def forged(scope: Scope = VICTIM, action: str = "add", **fields: Any) -> CommandEnvelope:
    """What an honest client of the tenant would send, but for the amount."""
    named: dict[str, Any] = {
        "id": "forged",
        "tenant": scope.tenant,
        "workspace": scope.workspace,
        "agent": scope.agent,
        "idempotency_key": "forged",
        "entity_id": "safe",
        "payload": {"amount": BOOTY},
        "security_context": SecurityContext("kim", "user"),
        **fields,
    }
    return CommandEnvelope(action=action, **named)


@attrs.define(eq=False)
class Attacker:
    """Who has the credentials of tenant a, and a bare connection with them. `honest` is a command b has sent."""

    world: Tenants
    connection: Connection
    honest: CommandEnvelope
    heard: list[bytes] = attrs.field(factory=list)
    answers: list[Mapping[str, Any]] = attrs.field(factory=list)

    def publish(
        self,
        command: CommandEnvelope | bytes,
        subject: str = SUBJECT,
        *,
        reply: str = "",
        signer: Signer | None = None,
        msg_id: str = "m",
    ) -> None:
        body = command if isinstance(command, bytes) else encode(command)
        headers = {} if signer is None else signer.headers(subject, body)
        self.connection.write(hpub(subject, reply, msg_id, headers, body, limit=_LIMIT))

    @property
    def key(self) -> Signer:
        """The key of tenant a's client, which speaks for users of tenant a."""
        return self.world.signer("a", "client")

    def listen(self, subject: str) -> None:
        self.connection.subscribe(subject, lambda _s, _r, _h, body: self.heard.append(body))

    def ask(self, verb: str, request: Any = None) -> None:
        """A request to the API of JetStream; its answer, if one comes, is kept."""
        inbox = self.connection.new_inbox()
        self.connection.subscribe(inbox, lambda _s, _r, _h, body: self.answers.append(_json(body)))
        self.connection.write(pub(f"$JS.API.{verb}", inbox, b"" if request is None else orjson.dumps(request)))


def _json(body: bytes) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {"raw": body}
    return found


def stranger() -> Signer:
    seed: Any = nkeys.encode_seed(b"\x07" * 32, nkeys.PREFIX_BYTE_USER)  # type: ignore[no-untyped-call]
    return Signer(bytes(seed).decode())


# -- what could take effect ----------------------------------------------------------------------------------------

Attack = Callable[[Attacker], None]
SYSTEM: Final = SecurityContext("root", "system")

INJECTIONS: Final[Mapping[str, Attack]] = {
    "forged and unsigned": lambda a: a.publish(forged()),
    "forged and signed by the own key": lambda a: a.publish(forged(), signer=a.key),
    "forged and signed by a stranger's key": lambda a: a.publish(forged(), signer=stranger()),
    "own command to the other's subject": lambda a: a.publish(forged(OWN), signer=a.key),
    "other's command to the own subject": lambda a: a.publish(forged(), command_subject(OWN, "add"), signer=a.key),
    "as the system": lambda a: a.publish(forged(security_context=SYSTEM), signer=a.key),
    "as the agent itself": lambda a: a.publish(
        forged(security_context=SecurityContext("account", "agent")), signer=a.key
    ),
    "on behalf of somebody": lambda a: a.publish(
        forged(security_context=SecurityContext("kim", "user", "root")), signer=a.key
    ),
    "without a principal": lambda a: a.publish(forged(security_context=None)),
    "recorded and sent again": lambda a: a.publish(a.honest, signer=a.world.signer("b", "client"), msg_id="again"),
    "recorded, another amount": lambda a: a.connection.write(
        hpub(
            SUBJECT,
            "",
            "m",
            a.world.signer("b", "client").headers(SUBJECT, encode(a.honest)),
            encode(attrs.evolve(a.honest, idempotency_key="new", payload={"amount": BOOTY})),
            limit=_LIMIT,
        )
    ),
    "recorded, to another action": lambda a: a.connection.write(
        hpub(
            command_subject(VICTIM, "get"),
            "",
            "m",
            a.world.signer("b", "client").headers(SUBJECT, encode(a.honest)),
            encode(a.honest),
            limit=_LIMIT,
        )
    ),
    "another redrives": lambda a: a.publish(
        forged(action="sys_redrive", security_context=SYSTEM, payload={"key": "k", "generation": 0}),
        command_subject(VICTIM, "sys_redrive"),
        signer=a.key,
    ),
    "an event as a command": lambda a: a.publish(
        forged(
            action="sys_deliver",
            security_context=SecurityContext("account", "agent"),
            payload={"event": {"id": "e", "name": "added", "payload": {"amount": BOOTY}}},
        ),
        command_subject(VICTIM, "sys_deliver"),
        signer=a.key,
    ),
    "the PubAck of an own command": lambda a: a.publish(
        forged(OWN), command_subject(OWN, "add"), reply=SUBJECT, signer=a.key
    ),
    "the answer of the API": lambda a: a.connection.write(pub(f"$JS.API.STREAM.INFO.{EVENTS}", SUBJECT, b"")),
    "the answer of an own echo": lambda a: a.connection.write(pub("_INBOX.x", SUBJECT, encode(forged()))),
    "an id taken before its owner": lambda a: a.publish(
        forged(OWN), command_subject(OWN, "add"), signer=a.key, msg_id="late"
    ),
    "rubbish": lambda a: a.publish(b"\x00\xff{"),
    "an envelope with more in it": lambda a: a.publish(encode(forged())[:-1] + b',"tenant":"b"}'),
    "a subject with a wildcard": lambda a: a.publish(forged(), "cmd.b.w.account.*"),
    "a subject with more in it": lambda a: a.publish(forged(), f"{SUBJECT}.more"),
}


# -- what goes through the broker's own interface ------------------------------------------------------------------


def _purge(a: Attacker) -> None:
    a.ask(f"STREAM.PURGE.{EVENTS}", {"filter": "evt.b.>"})


def _delete_message(a: Attacker) -> None:
    for seq in range(1, 20):
        a.ask(f"STREAM.MSG.DELETE.{EVENTS}", {"seq": seq})


def _delete_streams(a: Attacker) -> None:
    for stream in (EVENTS, FAILED, COMMANDS):
        a.ask(f"STREAM.DELETE.{stream}")


def _consumer(a: Attacker) -> None:
    config = {"durable_name": "spy", "ack_policy": "none", "filter_subject": "evt.b.>"}
    a.ask(f"CONSUMER.DURABLE.CREATE.{EVENTS}.spy", {"stream_name": EVENTS, "config": config})
    a.connection.write(pub(f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS}.spy", a.connection.new_inbox(), b"10"))


def _mirror(a: Attacker) -> None:
    a.ask("STREAM.CREATE.LOOT", {"name": "LOOT", "mirror": {"name": EVENTS}, "storage": "file"})


REACHES: Final[Mapping[str, tuple[Role, Attack]]] = {
    "hear its events": ("client", lambda a: a.listen("evt.b.>")),
    "hear its commands": ("client", lambda a: a.listen("cmd.b.>")),
    "hear everything": ("client", lambda a: a.listen(">")),
    "hear its answers": ("client", lambda a: a.listen("_INBOX_b_client.>")),
    "hear its runtime": ("runtime", lambda a: a.listen("_INBOX_b_runtime.>")),
    "hear acknowledgements": ("runtime", lambda a: a.listen("$JS.ACK.>")),
    "an event in its name": ("runtime", lambda a: a.publish(forged(), "evt.b.w.account.added")),
    "a dead letter in its name": ("runtime", lambda a: a.publish(forged(), f"failed.{SUBJECT}")),
    "purge its events": ("runtime", _purge),
    "delete its messages": ("runtime", _delete_message),
    "delete its streams": ("runtime", _delete_streams),
    "delete its consumer": ("runtime", lambda a: a.ask(f"CONSUMER.DELETE.{COMMANDS}.{CONSUMER}")),
    "reset its consumer": ("runtime", lambda a: a.ask(f"CONSUMER.RESET.{COMMANDS}.{CONSUMER}", {"seq": 1})),
    "take its deliveries": (
        "runtime",
        lambda a: a.connection.write(pub(f"$JS.API.CONSUMER.MSG.NEXT.{COMMANDS}.{CONSUMER}", "_INBOX.x", b"100")),
    ),
    "acknowledge for it": (
        "runtime",
        lambda a: a.connection.write(pub(f"$JS.ACK.{COMMANDS}.{CONSUMER}.1.1.1.1.0", "", b"+ACK")),
    ),
    "a consumer on its events": ("runtime", _consumer),
    "read an event": ("client", lambda a: a.ask(f"DIRECT.GET.{EVENTS}", {"next_by_subj": "evt.b.>", "seq": 1})),
    "read an event by the leader": (
        "runtime",
        lambda a: a.ask(f"STREAM.MSG.GET.{EVENTS}", {"next_by_subj": "evt.b.>", "seq": 1}),
    ),
    "read a dead letter": (
        "runtime",
        lambda a: a.ask(f"STREAM.MSG.GET.{FAILED}", {"next_by_subj": "failed.cmd.b.>", "seq": 1}),
    ),
    "list its subjects": ("client", lambda a: a.ask(f"STREAM.INFO.{EVENTS}", {"subjects_filter": "evt.b.>"})),
    "copy its stream": ("runtime", _mirror),
}


# -- the runs ------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Damage:
    """What is left after an attack, as tenant b sees it."""

    total: int
    told: Mapping[str, int]
    attacker: Attacker


async def attacked(kind: Kind, home: Path, role: Role, attack: Attack) -> Damage:
    """Tenant b has 5 in its safe; then the attack; then b pays in 1 more and looks."""
    with trio.fail_after(DEADLINE_S):
        async with tenants(kind, home) as world, world.client("b") as mesh:
            honest = mesh.command("account", "add", {"amount": 5}, entity_id="safe")
            await mesh.send_many([honest])
            await balance(mesh, 5)
            async with world.connection("a", role) as connection:
                attacker = Attacker(world, connection, honest)
                attack(attacker)
                await connection.round_trip(5)
                await trio.sleep(0.1)
                paid = await mesh.call("account", "add", {"amount": 1}, entity_id="safe", id="late", resend_s=0.5)
                await connection.round_trip(5)
            found = await mesh.call("account", "get", entity_id="safe")
            assert paid.name == "added"
            told = await world.told("b")
    return Damage(found.payload["total"], told, attacker)


async def balance(mesh: MeshClient, wanted: int) -> EventEnvelope:
    while True:
        found = await mesh.call("account", "get", entity_id="safe")
        if found.payload["total"] == wanted:
            return found
        await trio.sleep(0.02)


@pytest.mark.parametrize("kind", ["protected", "open"])
@pytest.mark.parametrize("name", INJECTIONS)
async def test_no_injection_takes_effect(aio_loop: object, tmp_path: Path, kind: Kind, name: str) -> None:
    damage = await attacked(kind, tmp_path, "client", INJECTIONS[name])
    assert damage.total == 6
    assert damage.told["added"] == 2
    if kind == "protected":
        assert damage.told.keys() == {"added"}, "not even noise arrived"


@pytest.mark.parametrize("name", REACHES)
async def test_the_broker_lets_nobody_reach_another_tenant(aio_loop: object, tmp_path: Path, name: str) -> None:
    role, attack = REACHES[name]
    damage = await attacked("protected", tmp_path, role, attack)
    assert damage.total == 6
    assert damage.told == {"added": 2}
    assert damage.attacker.heard == []
    assert not any(_tells(answer) for answer in damage.attacker.answers)


def _tells(answer: Mapping[str, Any]) -> bool:
    """Whether an answer holds something of tenant b."""
    text = orjson.dumps(answer, default=repr)
    return b"evt.b.w" in text or b"cmd.b.w" in text or b"amount" in text


@pytest.mark.parametrize("name", ["hear its events", "hear its commands", "hear everything"])
async def test_without_accounts_these_would_be_heard(aio_loop: object, tmp_path: Path, name: str) -> None:
    """The control: what the accounts protect from is real."""
    damage = await attacked("open", tmp_path, *REACHES[name])
    assert damage.attacker.heard
    assert damage.total == 6


@pytest.mark.parametrize("name", ["read an event", "read an event by the leader", "list its subjects"])
async def test_without_accounts_these_would_be_read(aio_loop: object, tmp_path: Path, name: str) -> None:
    damage = await attacked("open", tmp_path, *REACHES[name])
    assert any(_tells(answer) for answer in damage.attacker.answers)


async def test_without_accounts_events_would_be_purged(aio_loop: object, tmp_path: Path) -> None:
    damage = await attacked("open", tmp_path, *REACHES["purge its events"])
    assert damage.told == {"added": 1}
    assert damage.total == 6, "the store is the truth"


async def test_an_honest_signed_command_is_let_in(aio_loop: object, tmp_path: Path) -> None:
    """The control of the open server: what is refused there is refused for its signature."""
    damage = await attacked(
        "open", tmp_path, "client", lambda a: a.publish(forged(), signer=a.world.signer("b", "client"))
    )
    assert damage.total == 6 + BOOTY


def test_there_are_enough_of_them() -> None:
    assert len(INJECTIONS) + len(REACHES) >= 25
