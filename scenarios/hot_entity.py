"""A hot entity: python scenarios/hot_entity.py

One entity has a failing command at its head and five hundred commands behind it. A hundred other entities have one
command each, sent after all of those. Then the same with a worker that is killed when the failure is stored, and with
a server that is restarted while everything waits.

What must hold: nobody waits for a stranger. Every command of the other entities is decided before the failing one is
called a second time, however many of its own wait behind it: these are sent back without a call, so that they never
take all the room for what may be in hand, and they are no reason to give it up early. When it is given up they are
decided, in their order, each called once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from chaos.checkers import Checker, Finding
from chaos.evidence import Evidence, Sent
from chaos.rows import KeyRow
from chaos.scenario import Scenario
from chaos.script import main
from chaos.sweep import Fixed
from chaos.workload import Workload

HOT: Final = "hot"
BEHIND: Final = 500
OTHERS: Final = 100
#: How often the failing command is called.
CALLS: Final = 2


def in_their_turn(evidence: Evidence) -> Iterator[Finding | int]:
    """Look at what was decided when, and at who was called."""
    sent = [each for each in evidence.sent if each.phase == "main"]
    head, *behind = (each.key for each in sent if each.command.entity_id == HOT)
    strangers = {each.key for each in sent if each.command.entity_id != HOT}
    records = {record.key: record for record in evidence.rows.keys}
    calls = [record for record in evidence.history if record.kind == "call"]
    yield len(strangers)
    yield from _strangers_first(head, strangers, records, [str(record["key"]) for record in calls])
    letters = [letter for letter in evidence.rows.dead if letter.key == head]
    if any(letter.code != "attempts_exhausted" for letter in letters):
        yield Finding(f"{head} was given up early: {letters[0].code}", [head])
    of_key = Counter(record["key"] for record in calls)
    restless = [key for key in behind if of_key[key] > 1]
    if restless and not evidence.kills:
        yield Finding(f"{len(restless)} commands behind {head} were called more than once", restless[:3])


def _strangers_first(
    head: str, strangers: set[str], records: dict[str, KeyRow], called: Sequence[str]
) -> Iterator[Finding]:
    """By the order of calls, and by the numbers of outputs."""
    first = called.index(head) if head in called else len(called)
    again = next((i for i, key in enumerate(called) if key == head and i > first), len(called))
    late = strangers - set(called[:again])
    if again < len(called) and late:
        yield Finding(f"{head} was called again before {len(late)} commands of other entities", sorted(late)[:3])
    if head not in records:
        return
    given_up = records[head].first_n
    behind = [key for key in strangers if key in records and records[key].first_n > given_up]
    if behind:
        yield Finding(f"{len(behind)} commands of other entities were decided behind {head}", sorted(behind)[:3])


IN_TURN: Final = Checker(
    "in-turn",
    "In turn: commands of other entities are decided before a failing one is called again, whatever waits behind it.",
    in_their_turn,
)


def workload(seed: int) -> Sequence[Sent]:
    """A failing command, five hundred behind it, and then a hundred of other entities."""
    commands = Workload()
    commands.send("counter", "explode", entity=HOT, expect=["dead"])
    for amount in range(BEHIND):
        commands.send("counter", "add", {"amount": amount + seed}, entity=HOT, expect=["decided"])
    for number in range(OTHERS):
        commands.send("counter", "add", {"amount": number}, entity=f"cold-{number}", expect=["decided"])
    commands.send("counter", "add", {"amount": 1}, entity=HOT, expect=["decided"], phase="after")
    return commands


SCENARIO = Scenario(
    "hot-entity",
    __doc__,
    "chaos.agents:counter_only",
    workload,
    searches=[Fixed(["", "worker#1:after_hold@1=kill", "nats:after_hold@1=restart"])],
    # A quarter of the room is for what waits: the five hundred, and no more than that.
    engine={"max_ack_pending": 4 * (BEHIND + 4), "publish_burst": 0, "ack_wait_s": 30.0},
    # Time enough for a hundred decisions on the slowest machine, between the first call and the second.
    retry={"delays_s": (5.0,), "handler_limit_s": 30.0},
    limit=CALLS + 1,
    claims=("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G11", "G12", "G13", "in-turn"),
    invariants=[IN_TURN],
)

if __name__ == "__main__":
    main(SCENARIO)
