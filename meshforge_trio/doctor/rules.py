"""The rules of the doctor: what each guards, why, and the scenario in which its failure can be seen.

A rule says nothing about the case at hand; a `Finding` does. Scenarios are files of the project's source tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import attrs

__all__ = ["RULES", "Finding", "Rule", "Severity", "rule"]

#: Mildest first. `unknown` could not be found out; `warn` may be meant so; `refuse` breaks a guarantee.
Severity = Literal["ok", "unknown", "warn", "refuse"]


@attrs.frozen
class Rule:
    """What is looked at. `guards` names guarantees, as in docs/RUNTIME_INVARIANTS.md."""

    id: str
    guards: str
    why: str
    scenario: str


@attrs.frozen
class Finding:
    """What a rule came to: what was found, and what to do about it ("" where nothing)."""

    rule: Rule
    severity: Severity
    found: str
    do: str = ""


_REGRESSION: Final = "scenarios/regressions/"

RULES: Final[Sequence[Rule]] = (
    Rule(
        "ack-wait",
        "G12",
        "A handler that blocks for longer than ack_wait keeps the deadlines in its hand from being extended, so the "
        "broker delivers again what is being decided. It takes effect once all the same, and the work is done twice.",
        f"{_REGRESSION}resend_keeps_entity_held.py",
    ),
    Rule(
        "duplicate-window",
        "G4",
        "Half the window is the time to publish after a commit. When that passes while a confirmation or a takeover is "
        "awaited, each such session ends and reads back; and a suspended process comes sooner to the one gap that the "
        "server alone could close.",
        f"{_REGRESSION}late_publish.py",
    ),
    Rule(
        "ack-pending",
        "G11, G12",
        "A quarter of max_ack_pending may wait behind failing commands. With less than four nothing may, and a command "
        "that fails once is dead-lettered; with less than a batch no turn ever fills.",
        f"{_REGRESSION}hot_entity_starves_others.py",
    ),
    Rule(
        "lease",
        "G12",
        "The lease is renewed by the loop that handlers run in. One that blocks it for longer than the lease loses its "
        "scope to a process that stands by, which decides the same command once more.",
        f"{_REGRESSION}stopped_before_it_looked.py",
    ),
    Rule(
        "retry-limit",
        "G11",
        "With a limit of 2 a command that was in hand when its process died has had its one certain call: it is "
        "dead-lettered without another try.",
        "scenarios/deadly.py",
    ),
    Rule(
        "store-file-system",
        "G2, G5",
        "SQLite's write-ahead log needs shared memory and locks that hold for every process. A network file system "
        "gives neither: two processes can commit at once, and the file is damaged.",
        f"{_REGRESSION}two_engines_one_entity.py",
    ),
    Rule(
        "store-memory",
        "G1, G2",
        "The store remembers which keys are decided. On a file system in memory it is gone after a reboot, while the "
        "streams still hold its events.",
        f"{_REGRESSION}rollback_under_living_worker.py",
    ),
    Rule(
        "store-mode",
        "G9",
        "The store holds the payloads of every tenant. Whoever may read its file or directory reads them all.",
        "scenarios/two_tenants.py",
    ),
    Rule(
        "disk-free",
        "G12",
        "A full disk takes no commits: nothing is decided until there is room.",
        "scenarios/disk_full.py",
    ),
    Rule(
        "open-files",
        "G12",
        "Without descriptors neither a broker session nor the store can be opened again after a loss.",
        "scenarios/broker_faults.py",
    ),
    Rule(
        "server-version",
        "G13",
        "Every session begins with a reset of its consumer, which came with 2.14. Before 2.15.1 the server could lose "
        "confirmed messages with the power, whatever its settings.",
        f"{_REGRESSION}kill_reorders_entity.py",
    ),
    Rule(
        "server-sync",
        "G1",
        "The server confirms a message before it is on the disk and syncs later, every two minutes unless told "
        "otherwise. A power loss in between takes confirmed commands with it; events are published again.",
        f"{_REGRESSION}deep_rollback.py",
    ),
    Rule(
        "account",
        "G12",
        "What the account may not have, the runtime cannot make: streams, consumers, storage, unsettled deliveries.",
        "scenarios/broker_faults.py",
    ),
    Rule(
        "stream-storage",
        "G1, G4",
        "A stream in memory is empty after a restart of the server: accepted commands are forgotten.",
        "scenarios/broker_faults.py",
    ),
    Rule(
        "stream-limits",
        "G1, G4",
        "A stream that drops messages at a limit drops commands that nobody has decided, and events that nobody has "
        "read; the runtime cannot tell dropped from expired.",
        f"{_REGRESSION}deep_rollback.py",
    ),
    Rule(
        "stream-window",
        "G4",
        "Streams that remember ids for another time than the settings say make the time to publish wrong.",
        f"{_REGRESSION}copy_beyond_the_window.py",
    ),
    Rule(
        "stream-replicas",
        "G1",
        "With one copy the loss of one disk loses commands. An even number of copies bears no more losses than the odd "
        "one below it.",
        "scenarios/broker_faults.py",
    ),
    Rule(
        "stream-settings",
        "G1, G3, G4",
        "A stream with other subjects, another retention, or something that alters or refuses messages is not the one "
        "the protocol was made for.",
        f"{_REGRESSION}overtaking_a_lost_publish.py",
    ),
    Rule(
        "max-deliver",
        "G1, G11",
        "A message that reaches the server's own limit of deliveries stays in the stream and is never delivered again: "
        "neither decided nor dead-lettered. Attempts are counted in the store.",
        f"{_REGRESSION}attempts_start_again.py",
    ),
    Rule(
        "consumer-settings",
        "G1, G13",
        "Deliveries in another order, without bodies, in memory alone, or to a consumer that is paused or vanishes are "
        "not what the protocol counts on.",
        f"{_REGRESSION}pulls_outlive_their_lease.py",
    ),
    Rule(
        "foreign-consumers",
        "G1, G13",
        "Somebody else who takes commands of a scope takes them for ever. The server lets no two filters of the "
        "command stream overlap, so while another consumer is there the runtime's own cannot be made.",
        f"{_REGRESSION}zombie_pulls_on.py",
    ),
    Rule(
        "foreign-streams",
        "G1, G4",
        "A subject belongs to one stream. While another stream takes these, the runtime's own cannot be made.",
        f"{_REGRESSION}one_id_two_scopes.py",
    ),
    Rule(
        "store-streams",
        "G2, G4",
        "Store and streams belong together. An empty or older store decides keys a second time; a stream made anew "
        "would be filled with the whole history.",
        f"{_REGRESSION}deep_rollback.py",
    ),
)

_BY_ID: Final = {each.id: each for each in RULES}


def rule(name: str) -> Rule:
    """The rule of that id."""
    return _BY_ID[name]
