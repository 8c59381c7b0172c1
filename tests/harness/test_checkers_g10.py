"""G10: nobody holds what another one holds."""

from __future__ import annotations

from typing import Any, Final

import attrs
import orjson
import pytest

from chaos.evidence import Evidence, Sent
from chaos.history import Record
from chaos.rows import KeyRow, OutputRow, Rows
from chaos.workload import command
from meshforge_trio.subjects import Scope, event_subject

from .crafted import (
    Broken,
    Cases,
    Sound,
    judgement,
)

CASES = Cases()
LOCKS: Final = Scope("default", "demo", "sys_lock_manager")


def locked(*told: tuple[str, dict[str, Any]], scope: Scope = LOCKS, ttl: float | None = None) -> Evidence:
    """What a lock manager committed, one event per command, the last of which was killed before it published."""
    outputs, keys, sent = [], [], []
    for n, (name, payload) in enumerate(told, 1):
        fields = {"resource_id": "r", **payload}
        ts = fields.pop("ts", float(n))
        asked: dict[str, Any] = {"resource_id": "r"} if ttl is None else {"resource_id": "r", "ttl_seconds": ttl}
        each = Sent(command(scope, "ask", n, asked))
        body = orjson.dumps(
            {
                "id": f"c{n}_{name}",
                "tenant": scope.tenant,
                "workspace": scope.workspace,
                "agent": scope.agent,
                "name": name,
                "idempotency_key": f"k{n}",
                "payload": fields,
                "ts": ts,
                "causation_id": f"c{n}",
            }
        )
        subject = event_subject(scope, name)
        outputs.append(
            OutputRow(scope, n, "event", f"k{n}", f"c{n}_{name}", name, subject, f"m{n}", body, None, None, None)
        )
        keys.append(KeyRow(scope, f"k{n}", each.digest, "decided", n, n))
        sent.append(each)
    return Evidence(Rows(outputs, keys), sent=sent, final=False, history=[Record(1, "harness", "header", {})])


def acquired(owner: str, until: float, token: int, **more: Any) -> tuple[str, dict[str, Any]]:
    return "acquired", {"owner_id": owner, "expires_at": until, "fencing_token": token, **more}


def refreshed(owner: str, until: float, **more: Any) -> tuple[str, dict[str, Any]]:
    return "refreshed", {"owner_id": owner, "expires_at": until, **more}


def released(owner: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "released", {"owner_id": owner, **more}


@CASES.breaks("G10", "resource 'r', output 2: acquired by 'b' at 2.0, and 'a' holds it until 60.0")
def two_holders() -> Evidence:
    return locked(acquired("a", 60.0, 1), acquired("b", 62.0, 2))


@CASES.breaks("G10", "acquired by 'b' at 59.0, and 'a' holds it until 60.0")
def two_holders_by_the_clock_of_the_runtime() -> Evidence:
    """What the client says of the time is not believed."""
    return locked(acquired("a", 60.0, 1), acquired("b", 69.0, 2, ts=1e9), ttl=10.0)


@CASES.breaks("G10", "acquired by 'b' at 2.0, and 'a' holds it until 60.0")
def two_holders_and_no_record_of_them() -> Evidence:
    evidence = locked(acquired("a", 60.0, 1), acquired("b", 62.0, 2), ttl=1.0)
    return attrs.evolve(evidence, rows=attrs.evolve(evidence.rows, keys=[]))


@CASES.breaks("G10", "acquired by 'b' at 65.0, and 'a' holds it until 90.0")
def two_holders_after_a_refresh() -> Evidence:
    return locked(acquired("a", 60.0, 1), refreshed("a", 90.0), acquired("b", 99.0, 2, ts=65.0))


@CASES.breaks("G10", "fencing token 1 follows 1")
def a_token_twice() -> Evidence:
    return locked(acquired("a", 60.0, 1), released("a"), acquired("b", 63.0, 1))


@CASES.breaks("G10", "fencing token 3 follows 7")
def a_token_that_falls() -> Evidence:
    return locked(acquired("a", 60.0, 7), released("a"), acquired("a", 63.0, 3))


@CASES.breaks("G10", "refreshed with fencing token 2, that of the lease is 1")
def a_refresh_with_another_token() -> Evidence:
    return locked(acquired("a", 60.0, 1), refreshed("a", 90.0, fencing_token=2))


@CASES.breaks("G10", "refreshed by 'b', and 'a' holds it")
def refreshed_by_another() -> Evidence:
    return locked(acquired("a", 60.0, 1), refreshed("b", 90.0))


@CASES.breaks("G10", "refreshed by 'a', and 'b' holds it")
def refreshed_by_a_sleeper() -> Evidence:
    return locked(acquired("a", 60.0, 1), acquired("b", 160.0, 2, ts=61.0), refreshed("a", 200.0))


@CASES.breaks("G10", "released by 'b', and 'a' holds it")
def released_by_another() -> Evidence:
    return locked(acquired("a", 60.0, 1), released("b"))


@CASES.breaks("G10", "released, and nobody holds it")
def released_twice() -> Evidence:
    return locked(acquired("a", 60.0, 1), released("a"), released("a"))


@CASES.breaks("G10", "expired, and nobody holds it")
def expired_twice() -> Evidence:
    return locked(acquired("a", 60.0, 1), ("expired", {"ts": 61.0}), ("expired", {"ts": 62.0}))


@CASES.breaks("G10", "expired at 30.0, and 'a' holds it until 60.0")
def expired_too_early() -> Evidence:
    return locked(acquired("a", 60.0, 1), ("expired", {"ts": 30.0}))


@CASES.breaks("G10", "acquired cannot be read: TypeError: True is no fencing token")
def a_token_that_is_none() -> Evidence:
    return locked(acquired("a", 60.0, True))


@CASES.breaks("G10", "acquired cannot be read: TypeError: 'soon' is no time")
def a_time_that_is_none() -> Evidence:
    return locked(acquired("a", "soon", 1))  # type: ignore[arg-type]


@CASES.breaks("G10", "released cannot be read: TypeError: None is no owner")
def an_owner_that_is_none() -> Evidence:
    return locked(acquired("a", 60.0, 1), released(None))  # type: ignore[arg-type]


@CASES.breaks("G10", "acquired cannot be read: KeyError: 'expires_at'")
def a_lock_of_nobody() -> Evidence:
    return locked(("acquired", {}))


COUNTER: Final = Scope("default", "demo", "counter")


def guarded(*tokens: tuple[str, int], outcome: str = "decided") -> Evidence:
    """What an agent made of commands under leases: (resource, token) of each. The last has `outcome`."""
    outputs, keys, sent = [], [], []
    for n, (resource, token) in enumerate(tokens, 1):
        each = Sent(command(COUNTER, "add", n, {"amount": n}, resource_id=resource, fencing_token=token))
        came = outcome if n == len(tokens) else "decided"
        name = "refused" if came == "refused" else "added"
        envelope = {
            "id": f"c{n}_{name}",
            "tenant": COUNTER.tenant,
            "workspace": COUNTER.workspace,
            "agent": COUNTER.agent,
            "name": name,
            "idempotency_key": f"k{n}",
            "payload": {"code": "stale_fencing_token", "reason": "over"} if came == "refused" else {},
            "causation_id": f"c{n}",
        }
        subject, body = event_subject(COUNTER, name), orjson.dumps(envelope)
        outputs.append(
            OutputRow(COUNTER, n, "record", f"k{n}", f"c{n}_{name}", name, subject, f"m{n}", body, None, None, None)
        )
        keys.append(KeyRow(COUNTER, f"k{n}", each.digest, came, n, n))
        sent.append(each)
    return Evidence(Rows(outputs, keys), sent=sent, final=False, history=[Record(1, "harness", "header", {})])


@CASES.breaks("G10", "output 3: decided under fencing token 1 of 'r', and 2 had been seen")
def an_outdated_holder_acts() -> Evidence:
    return guarded(("r", 1), ("r", 2), ("r", 1))


@CASES.holds("G10")
def holders_act_one_after_the_other() -> Evidence:
    return guarded(("r", 1), ("r", 1), ("s", 7), ("r", 2), ("r", 2))


@CASES.holds("G10")
def an_outdated_holder_is_refused() -> Evidence:
    return guarded(("r", 1), ("r", 2), ("r", 1), outcome="refused")


@CASES.holds("G10")
def one_after_the_other() -> Evidence:
    return locked(acquired("a", 60.0, 1), released("a"), acquired("b", 63.0, 2), released("b"))


@CASES.holds("G10")
def acquired_at_the_moment_it_runs_out() -> Evidence:
    return locked(acquired("a", 60.0, 1), acquired("b", 70.0, 2, ts=60.0))


@CASES.holds("G10")
def acquired_after_it_ran_out_by_the_clock_of_the_runtime() -> Evidence:
    """The client says that it is 1970; the runtime's clock is what counts."""
    return locked(acquired("a", 60.0, 1), acquired("b", 70.0, 2), ttl=10.0)


@CASES.holds("G10")
def acquired_again_by_its_holder() -> Evidence:
    return locked(acquired("a", 60.0, 1), acquired("a", 90.0, 1), acquired("a", 120.0, 2))


@CASES.holds("G10")
def declared_expired_in_its_time() -> Evidence:
    return locked(acquired("a", 60.0, 1), ("expired", {"ts": 60.0}), acquired("b", 99.0, 2, ts=50.0))


@CASES.holds("G10")
def declared_expired_on_the_word_of_a_client_that_has_no_clock() -> Evidence:
    return locked(acquired("a", 60.0, 1, ts=50.0), ("expired", {"ts": 3.0}), acquired("b", 99.0, 2, ts=61.0))


@CASES.holds("G10")
def two_resources() -> Evidence:
    return locked(
        acquired("a", 60.0, 1), acquired("b", 60.0, 1, resource_id="s"), refreshed("a", 70.0, fencing_token=1)
    )


@CASES.holds("G10")
def the_same_resource_in_two_tenants() -> Evidence:
    ours = locked(acquired("a", 60.0, 1))
    theirs = locked(acquired("b", 60.0, 1), scope=attrs.evolve(LOCKS, tenant="acme"))
    rows = Rows(
        [*ours.rows.outputs, *(attrs.evolve(row, msg_id="other") for row in theirs.rows.outputs)],
        [*ours.rows.keys, *theirs.rows.keys],
    )
    return attrs.evolve(ours, rows=rows, sent=[*ours.sent, *theirs.sent])


def test_other_agents_may_release_what_they_like() -> None:
    """Names alone make no lock manager."""
    orders = Scope("default", "demo", "orders")
    evidence = locked(("released", {"owner_id": "x"}), ("expired", {}), ("acquired", {}), scope=orders)
    found = judgement(evidence, "G10")
    assert found.holds
    assert found.examined == 0
    own = locked(acquired("a", 60.0, 1), acquired("b", 62.0, 2), scope=orders)
    assert not judgement(own, "G10").holds, "a lock manager of another name"
    nameless = locked(("acquired", {"resource_id": None}), ("denied", {}))
    assert judgement(nameless, "G10").examined == 0


@CASES.breaks("G10", "released, and nobody holds it")
def released_before_anybody_had_it() -> Evidence:
    return locked(("released", {"owner_id": "a"}), acquired("a", 60.0, 1))


@CASES.breaks("G10", "fencing token 1 follows 1")
def a_token_twice_for_one_owner() -> Evidence:
    return locked(acquired("a", 60.0, 1), released("a"), acquired("a", 63.0, 1))


@CASES.breaks("G10", "fencing token 1 follows 1")
def a_token_for_two_holders() -> Evidence:
    return locked(acquired("a", 60.0, 1), acquired("b", 63.0, 1))


@CASES.holds("G10")
def whole_seconds() -> Evidence:
    return locked(acquired("a", 60, 1, ts=50), acquired("b", 90, 2, ts=60))


@CASES.holds("G10")
def expired_at_no_time_that_is_told() -> Evidence:
    return locked(acquired("a", 60.0, 1), ("expired", {"ts": None}), acquired("b", 99.0, 2, ts=61.0))


@pytest.mark.parametrize("case", CASES.params(CASES.broken))
def test_what_is_wrong_is_found(case: Broken) -> None:
    case.check()


@pytest.mark.parametrize("case", CASES.params(CASES.sound))
def test_what_is_right_passes(case: Sound) -> None:
    case.check()
