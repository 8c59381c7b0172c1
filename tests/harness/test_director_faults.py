"""The director and what befalls files: the store's, under its worker, and the broker's, under its server.

The runs are real, and judged; that everything was as the plan says is read from their histories and logs.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from chaos.case import Case
from chaos.evidence import Sent
from chaos.history import Record, read_history
from chaos.lab import Lab
from chaos.plan import parse_plan
from chaos.verdict import Status
from chaos.workload import SCOPE, command
from meshforge_trio.policy import ExitCode
from meshforge_trio.subjects import EVENTS

APP = "chaos.agents:counter_only"


def case(plan: str) -> Case:
    """Eight commands, one a turn, and one for afterwards."""
    sent = [
        Sent(
            command(SCOPE, "add", n, {"amount": n}, entity_id="a"),
            expect=("decided",),
            phase="after" if n == 9 else "main",
        )
        for n in range(1, 10)
    ]
    return Case(APP, sent, parse_plan(plan), engine={"batch": 1, "publish_timeout_s": 0.3})


async def played(lab: Lab, plan: str) -> tuple[Sequence[Record], Sequence[str]]:
    """The history of a run that passes, and what its workers wrote."""
    outcome = await lab.run(case(plan), keep=True)
    assert outcome.status is Status.PASS, str(outcome)
    assert outcome.home is not None
    assert outcome.evidence is not None
    assert len(outcome.evidence.events) == 9
    logs = [path.read_text() for path in sorted(outcome.home.glob("worker-*.log"))]
    return read_history(outcome.home / "history.jsonl"), logs


def ends(history: Sequence[Record]) -> list[tuple[str, int]]:
    return [(record.actor, record["status"]) for record in history if record.kind == "exit"]


def at(history: Sequence[Record], kind: str) -> int:
    return next(record.t for record in history if record.kind == kind)


def points(history: Sequence[Record], begin: int, end: int) -> list[str]:
    return [record["point"] for record in history if record.kind == "point" and begin < record.t < end]


# -- the store -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["eio_read", "eio_write", "eio_sync"])
async def test_a_worker_ends_when_its_disk_fails(lab: Lab, action: str) -> None:
    history, logs = await played(lab, f"worker#1:before_store@3={action}")
    assert ends(history) == [("worker#1", ExitCode.STORE_BROKEN), ("worker#2", 0)]
    assert "IOError" in logs[0]
    assert "after_store" not in points(history, at(history, "fault"), at(history, "exit"))


@pytest.mark.parametrize(("action", "said"), [("unlink", "was deleted"), ("replace", "was replaced")])
async def test_a_store_that_is_lost_is_put_back(lab: Lab, action: str, said: str) -> None:
    history, logs = await played(lab, f"worker#1:before_store@3={action}")
    assert ends(history) == [("worker#1", ExitCode.STORE_BROKEN), ("worker#2", 0)]
    assert said in logs[0]
    course = [record.kind for record in history if record.kind in ("fault", "exit", "healed", "image", "spawn")]
    # It is there again before anybody looks at it.
    assert course == ["spawn", "fault", "exit", "healed", "image", "spawn", "exit", "image"]
    assert [record.actor for record in history if record.kind == "healed"] == ["worker#1"]


async def test_two_stores_are_lost_in_a_row(lab: Lab) -> None:
    history, _ = await played(lab, "worker#1:before_store@3=unlink; worker#2:before_mark@1=replace")
    assert [status for _, status in ends(history)] == [ExitCode.STORE_BROKEN, ExitCode.STORE_BROKEN, 0]


async def test_a_worker_waits_for_a_lock(lab: Lab) -> None:
    history, _ = await played(lab, "worker#1:before_store@3=lock(0.5)")
    assert ends(history) == [("worker#1", 0)]
    # It was let go on meanwhile, and could not write.
    fault = at(history, "fault")
    assert [record.actor for record in history if record.kind == "healed"] == ["worker#1"]
    assert "after_store" not in points(history, fault, fault + int(0.5e9))


# -- the broker ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "least"), [("truncate", 4), ("flip", 3), ("rot", 3)])
async def test_a_damaged_stream_is_filled_up(lab: Lab, action: str, least: int) -> None:
    history, logs = await played(lab, f"nats:after_ack@4={action}")
    assert ends(history) == [("worker#1", 0)]
    up = next(record for record in history if record.kind == "up")
    # The newest of the events, or the one in the middle; the next turns may have published theirs by then.
    assert list(up["damaged"]) == [EVENTS]
    assert up["damaged"][EVENTS] >= least
    assert "published what the streams lacked" in logs[0]


@pytest.mark.parametrize("action", ["truncate", "flip", "rot"])
async def test_a_worker_is_given_the_time_to_find_out(lab: Lab, action: str) -> None:
    """All is decided when it happens: nothing but the comparison of store and stream is left to do."""
    history, logs = await played(lab, f"nats:after_ack@9={action}")
    assert ends(history) == [("worker#1", 0)]
    assert "published what the streams lacked" in logs[0]


async def test_a_full_disk_of_the_server(lab: Lab) -> None:
    history, logs = await played(lab, "nats:after_store@3=full(0.7)")
    assert ends(history) == [("worker#1", 0)]
    assert [record["why"] for record in history if record.kind == "down"] == ["full"]
    assert at(history, "down") - at(history, "fault") >= 0.7e9
    assert "PubAcks missing" in logs[0]


async def test_no_room_in_the_server(lab: Lab) -> None:
    history, logs = await played(lab, "nats:after_store@3=limit(0.5)")
    assert ends(history) == [("worker#1", 0)]
    assert not [record for record in history if record.kind == "down"], "it recovers by itself"
    assert at(history, "healed") - at(history, "fault") >= 0.5e9
    assert "insufficient resources (10023)" in logs[0]


# -- what cannot be done -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ("nats:after_lease@1=truncate", f"stream {EVENTS} holds no message"),
        ("worker#1:after_lease@1=unlink; worker#1:before_mark@1=replace", "File exists"),
    ],
)
async def test_what_cannot_be_carried_out_is_no_verdict(lab: Lab, plan: str, why: str) -> None:
    # A worker whose store is gone may notice before it comes to the second rule.
    outcome = await lab.run(case(plan), tries=5)
    assert outcome.status is Status.INCONCLUSIVE
    assert "could not be carried out" in "".join(outcome.verdict.reasons)
    assert why in "".join(outcome.verdict.reasons)
    assert (await lab.run(case("nats:after_ack@4=truncate"))).status is Status.PASS
