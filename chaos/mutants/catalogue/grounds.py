"""Where planted bugs are tried: small workloads and plans that make one kind of mistake show for certain.

A plan names points rather than moments, and what needs time to pass makes it pass: a stop or a downtime well beyond
the lease or the duplicate window. Several bugs share a case, so that the protocol as it is need pass it only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs

from chaos import sealing
from chaos.case import Case
from chaos.evidence import Sent
from chaos.plan import parse_plan
from chaos.workload import SCOPE, command, trespass
from meshforge_trio.subjects import Scope

__all__ = [
    "blamed",
    "copied_and_rolled_back",
    "crowded",
    "deleted_store",
    "down_beyond_the_window",
    "explosions",
    "failing_disk",
    "full_disk",
    "guarded",
    "held_back",
    "identical_tenants",
    "killed_after_publish",
    "killed_after_store",
    "killed_before_ack",
    "killed_before_store",
    "killed_holding",
    "killed_in_store",
    "locked",
    "lost_puback",
    "lost_publish",
    "neighbours",
    "questions",
    "questions_alone",
    "refusals",
    "refused_for_now",
    "replayed",
    "rotten_stream",
    "sealed_and_sent_again",
    "sent_again",
    "set_aside_beyond_the_window",
    "stopped_before_hold",
    "stopped_before_publish",
    "together",
]

_ALONE: Final = "chaos.agents:counter_only"
_OTHER: Final = Scope("other", "demo", "counter")
_LOCKS: Final = Scope("default", "demo", "sys_lock_manager")
_BOTH: Final = ("default/demo", "other/demo")
_SEALED: Final = ("default/demo", f"{sealing.TENANT}/demo")
#: How long the streams remember a Msg-Id where that matters, and a downtime well beyond it. Seconds.
_WINDOW_S: Final = 1.0
_BEYOND_S: Final = 2.0
#: For a run that a bug keeps from ending.
_DEADLINE_S: Final = 6.0


def _adds(first: int, last: int, entity: str = "a", *, scope: Scope = SCOPE, phase: str = "main") -> Sequence[Sent]:
    return [
        Sent(command(scope, "add", n, {"amount": n}, entity_id=entity), expect=("decided",), phase=phase)
        for n in range(first, last + 1)
    ]


def _poison(number: int, entity: str, action: str = "explode") -> Sent:
    return Sent(command(SCOPE, action, number, entity_id=entity), expect=("dead",))


def _query(number: int) -> Sent:
    return Sent(command(SCOPE, "get", number, entity_id="a", idempotency_key=None), query=True)


def _case(
    name: str, sent: Sequence[Sent], plan: str = "", *, app: str = _ALONE, mortal: bool = False, **more: Any
) -> Case:
    """One command a turn, unless said otherwise, so that the hits of a point count commands."""
    engine = {"batch": 1, **more.pop("engine", {})}
    afterwards = _adds(90, 90, phase="after")
    return Case(
        app,
        [*sent, *afterwards],
        parse_plan(plan, mortal=mortal),
        name=f"mutants-{name}",
        engine=engine,
        mortal=mortal,
        **{"deadline_s": _DEADLINE_S, **more},
    )


# -- one kill ------------------------------------------------------------------------------------------------------


def killed_before_store() -> Case:
    """A kill when the first command is decided and nothing of it is committed."""
    return _case("killed-before-store", _adds(1, 8), "worker#1:before_store@1=kill", engine={"ack_wait_s": 1.0})


def killed_in_store() -> Case:
    """A kill inside the transaction of the first command; the first transaction of all is recovery's."""
    return _case("killed-in-store", _adds(1, 3), "worker#1:in_store@2=kill")


def killed_after_store() -> Case:
    """A kill when the first command is committed and nothing of it is published."""
    return _case("killed-after-store", _adds(1, 3), "worker#1:after_store@1=kill")


def killed_after_publish() -> Case:
    """A kill when the first command's event is published and no mark says so yet."""
    return _case("killed-after-publish", _adds(1, 3), "worker#1:after_publish@1=kill")


def killed_before_ack() -> Case:
    """A kill when a trespasser's command is set aside and not ACKed, so that it comes again."""
    sent = [trespass(SCOPE, _OTHER, 1), *_adds(2, 3)]
    return _case("killed-before-ack", sent, "worker#1:before_ack@1=kill")


# -- sent again, and time beyond the window ------------------------------------------------------------------------


def sealed_and_sent_again() -> Case:
    """The same of a tenant with a codec, whose client seals anew what it sends again."""
    scope = attrs.evolve(SCOPE, tenant=sealing.TENANT)
    by = sealing.sealer(scope.tenant)
    assert by is not None
    sent = [
        attrs.evolve(each, command=by.sealed(each.command), key=each.key, digest=each.digest)
        for each in _adds(1, 3, scope=scope)
    ]
    plan = "worker#1:after_ack@2=kill; client:worker#2.received@1=resend"
    return _case("sealed-and-sent-again", sent, plan, app="chaos.agents:counter_sealed", workspaces=_SEALED)


def sent_again() -> Case:
    """A new process is sent everything again, new ids under the same keys, as by a client that saw no answer."""
    return _case("sent-again", _adds(1, 3), "worker#1:after_ack@2=kill; client:worker#2.received@1=resend")


def down_beyond_the_window() -> Case:
    """Published, killed before the ACK and the mark, and started again when the stream has forgotten the Msg-Id."""
    plan = f"worker#1:in_publish@1=kill({_BEYOND_S:g})"
    return _case("down-beyond-the-window", _adds(1, 3), plan, engine={"duplicate_window_s": _WINDOW_S})


def set_aside_beyond_the_window() -> Case:
    """The same with a dead letter: its first failure is its last."""
    return _case(
        "set-aside-beyond-the-window",
        [_poison(1, "a"), *_adds(2, 3, "b")],
        f"worker#1:in_publish@1=kill({_BEYOND_S:g})",
        engine={"duplicate_window_s": _WINDOW_S},
        retry={"limit": 2},
        limit=2,
    )


def lost_puback() -> Case:
    """A PubAck that never comes, in a network that is well otherwise."""
    return _case(
        "lost-puback",
        _adds(1, 3),
        "proxy:puback@1=swallow",
        engine={"duplicate_window_s": _WINDOW_S, "publish_timeout_s": _BEYOND_S},
    )


def lost_publish() -> Case:
    """An event that never reaches the server, while the next command is being committed."""
    sent = [*_adds(1, 1, "a"), *_adds(2, 2, "b"), *_adds(3, 3, "c")]
    return _case("lost-publish", sent, "proxy:publish@1=swallow", engine={"publish_timeout_s": 1.0})


# -- another server, another process -------------------------------------------------------------------------------


def copied_and_rolled_back() -> Case:
    """Under a living worker the server is put back to where it was several events ago."""
    return _case("rolled-back", _adds(1, 7), "nats:after_ack@2=copy; nats:after_publish@6=rollback")


def rotten_stream() -> Case:
    """A bit flips in an event from amid the stream while the server is down; nothing else of it is lost."""
    return _case("rotten-stream", _adds(1, 7), "nats:after_ack@6=rot")


def refused_for_now() -> Case:
    """For a while the server has no room for what is committed."""
    return _case("refused-for-now", _adds(1, 3), "nats:after_store@2=limit(0.4)")


def stopped_before_hold() -> Case:
    """Stopped when a failure is about to be committed; a successor gives the command up; then the zombie goes on."""
    return _case("stopped-before-hold", [_poison(1, "a"), *_adds(2, 3, "b")], "worker#1:before_hold@1=stop")


def stopped_before_publish() -> Case:
    """Stopped between commit and publish, until its successor's copy is older than the duplicate window."""
    return _case(
        "stopped-before-publish",
        _adds(1, 3),
        f"worker#1:before_publish@1=stop; worker#2:received@1=stop({_BEYOND_S:g})",
        engine={"duplicate_window_s": _WINDOW_S},
        deadline_s=15.0,
    )


# -- failing commands ----------------------------------------------------------------------------------------------


def blamed() -> Case:
    """A command that kills its process each time, between innocent ones."""
    sent = [*_adds(1, 2), _poison(3, "b", "die"), *_adds(4, 5, "c")]
    return _case("blamed", sent, mortal=True)


def explosions() -> Case:
    """Several failing commands of one entity, and one behind them with which nothing is wrong."""
    return _case("explosions", [*(_poison(n, "hot") for n in range(1, 6)), *_adds(6, 6, "hot"), *_adds(7, 8, "cold")])


def held_back() -> Case:
    """A failing command, others of its entity behind it, and those of another entity."""
    return _case("held-back", [_poison(1, "hot"), *_adds(2, 4, "hot"), *_adds(5, 6, "cold")])


def crowded() -> Case:
    """More commands behind a failing one than may be in hand, and it waits for longer than anybody would."""
    return _case(
        "crowded",
        [_poison(1, "hot"), *_adds(2, 30, "hot"), *_adds(31, 32, "cold")],
        engine={"batch": 64, "max_ack_pending": 16},
        retry={"delays_s": (60.0,)},
        limit=0,
    )


def killed_holding() -> Case:
    """Whoever has committed a failure is killed, again and again, until the command is given up."""
    plan = "; ".join(f"worker#{n}:after_hold@1=kill" for n in (1, 2, 3))
    # The protocol as it is gives up before the last of these.
    return _case("killed-holding", [_poison(1, "a"), *_adds(2, 3, "b")], plan, must_fire=False)


# -- state ---------------------------------------------------------------------------------------------------------


def full_disk() -> Case:
    """No space for the commit of the last command, for a while."""
    return _case("full-disk", _adds(1, 3), "worker#1:before_store@3=full(0.3)")


def failing_disk() -> Case:
    """From the second command's commit on no write to the store succeeds, until the process ends."""
    return _case("failing-disk", _adds(1, 4), "worker#1:before_store@2=eio_write")


def deleted_store() -> Case:
    """The store's file is deleted before the third command is committed, and put back when the process has ended."""
    return _case("deleted-store", _adds(1, 6), "worker#1:before_store@3=unlink")


def questions() -> Case:
    """Queries between commands that are decided in the same turn and lost with their process.

    The stop lets everything arrive, so that the third turn is a full one.
    """
    sent = [each for n in range(1, 17, 2) for each in (*_adds(n, n), _query(n + 1))]
    plan = "worker#1:received@1=stop(0.2); worker#1:before_store@3=kill"
    return _case("questions", sent, plan, engine={"batch": 4})


def questions_alone() -> Case:
    """Queries that have a turn to themselves. No fault."""
    return _case("questions-alone", [*_adds(1, 1), _query(2), *_adds(3, 3), _query(4)])


def replayed() -> Case:
    """No fault: two agents, one of which keeps a list, and a state whose hash other processes compute."""
    sent = [*_adds(1, 8), *_adds(9, 12, "b")]
    return _case("replayed", sent, app="chaos.agents:app", engine={"batch": 64})


def together() -> Case:
    """No fault: many commands of one entity in one turn."""
    return _case("together", _adds(1, 40), engine={"batch": 64})


def refusals() -> Case:
    """No fault: a key used again for something else, and a version that is out of date."""
    sent = [
        *_adds(1, 1),
        Sent(command(SCOPE, "add", 2, {"amount": 99}, entity_id="a", idempotency_key="k1"), expect=("refused",)),
        Sent(command(SCOPE, "add", 3, {"amount": 3}, entity_id="a", expected_version=0), expect=("conflict",)),
        *_adds(4, 5),
    ]
    return _case("refusals", sent)


def neighbours() -> Case:
    """No fault: two tenants, each with an agent that listens to the other agent of its own workspace."""
    sent = [*_adds(1, 3), *_adds(11, 13, scope=_OTHER)]
    return _case("neighbours", sent, app="chaos.agents:app", workspaces=_BOTH)


def identical_tenants() -> Case:
    """No fault: two tenants with the same ids, keys and entities, and a trespasser in each."""
    sent = [
        *_adds(1, 3),
        *_adds(1, 3, scope=_OTHER),
        trespass(SCOPE, _OTHER, 4),
        trespass(_OTHER, SCOPE, 5),
        *_adds(6, 6),
        *_adds(6, 6, scope=_OTHER),
    ]
    return _case("identical-tenants", sent, workspaces=_BOTH)


# -- locks ---------------------------------------------------------------------------------------------------------


def locked() -> Case:
    """No fault: two who want the same, one after the other, and one after the other's time."""

    def ask(number: int, action: str, owner: str, ttl: float | None = None) -> Sent:
        payload: dict[str, object] = {"resource_id": "door", "owner_id": owner}
        if ttl is not None:
            payload["ttl_seconds"] = ttl
        return Sent(command(_LOCKS, action, number, payload), expect=("decided",), repeatable=False)

    sent = [
        ask(1, "acquire", "ada", 30.0),
        ask(2, "acquire", "bob", 30.0),
        ask(3, "refresh", "ada", 30.0),
        ask(4, "release", "ada"),
        ask(5, "acquire", "bob", 30.0),
        *_adds(6, 12),
    ]
    return _case("locked", sent, app="chaos.agents:locks_and_counter", paced=True)


def guarded() -> Case:
    """No fault: what a lock guards is changed under one lease, then under the next, then under the first once more."""

    def under(number: int, token: int, outcome: str = "decided") -> Sent:
        fields = {"entity_id": "a", "resource_id": "door", "fencing_token": token}
        return Sent(command(SCOPE, "add", number, {"amount": number}, **fields), expect=(outcome,))

    sent = [under(1, 1), under(2, 1), under(3, 2), under(4, 1, "refused"), under(5, 2)]
    return _case("guarded", sent)
