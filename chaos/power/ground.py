"""The run that is recorded: every path of the protocol in turns of a few commands, in a log that is emptied often."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from chaos.case import Case
from chaos.evidence import Sent
from chaos.mutants.patch import Edit, Patch
from chaos.workload import SCOPE, command, every_path

__all__ = ["SHORT_LOG", "power_case", "with_short_log", "workload"]

#: Commands beside those that take every path, so that the log is emptied in the middle of the run.
_MORE: Final = 24
_ENTITIES: Final = ("a", "b", "d", "e")
_BATCH: Final = 4

#: Lays a short log over the source: it is emptied by the runtime's own rule, every few turns instead of every 32 MB.
SHORT_LOG: Final = Edit(
    "meshforge_trio.store.sqlite", "_CHECKPOINT_PAGES: Final = 4_000\n", "_CHECKPOINT_PAGES: Final = 40\n"
)


def workload(seed: int) -> Sequence[Sent]:
    """The commands of `every_path`, and others among them by chance."""
    chance = random.Random(seed)  # noqa: S311
    sent = list(every_path(SCOPE))
    for number in range(101, 101 + _MORE):
        more = command(SCOPE, "add", number, {"amount": chance.randint(1, 99)}, entity_id=chance.choice(_ENTITIES))
        phase = "after" if chance.random() < 0.2 else "main"
        sent.insert(chance.randint(0, len(sent)), Sent(more, phase=phase))
    return sent


def power_case(seed: int = 0) -> Case:
    """The case of a recording."""
    return Case(
        "chaos.agents:counter_and_audit",
        workload(seed),
        name="power-loss",
        engine={"batch": _BATCH},
        claims=("G1", "G2", "G3", "G5"),
        source="power-loss",
        replay=f"meshforge-chaos power --seed {seed}",
    )


def with_short_log(patch: Patch | None) -> Patch:
    """A planted bug, or none, over a store whose log is short."""
    return Patch("short-log", (SHORT_LOG,)) if patch is None else Patch(patch.name, (*patch.edits, SHORT_LOG))
