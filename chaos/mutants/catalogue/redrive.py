"""Dead letters that come back: the key freed, the generation raised, the fate sealed, all in one transaction (R5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from chaos.case import Case
from chaos.mutants.mutant import Mutant, mutant
from chaos.mutants.patch import Edit
from chaos.plan import parse_plan
from chaos.workload import Workload

__all__ = ["MUTANTS"]

_DRAFTS: Final = "meshforge_trio.drafts"
_REDRIVE: Final = "meshforge_trio.redrive"
_ROWS: Final = "meshforge_trio.store.rows"
#: For a run that a bug keeps from ending.
_DEADLINE_S: Final = 6.0


def _mended() -> Case:
    """No fault: set aside, mended, redriven, redriven once more under the same key and asked for again."""
    commands = Workload()
    commands.send("counter", "charge", {"amount": 9}, entity="a", expect=["dead", "decided"])
    commands.send("counter", "add", {"amount": 9}, entity="a", expect=["decided"], phase="after")
    commands.again(commands.redrive("counter", "k1", phase="after"), phase="after")
    return _case("mended", commands)


def _hopeless() -> Case:
    """No fault, one command a turn: redriven too early, and then asked for again, of the generation that is past.

    Each command is sent when the one before is decided.
    """
    commands = Workload()
    commands.send("counter", "charge", {"amount": 9}, entity="a", expect=["dead"])
    commands.redrive("counter", "k1")
    commands.redrive("counter", "k1", expect=["refused"])
    commands.send("counter", "add", {"amount": 1}, entity="a", expect=["decided"], phase="after")
    return _case("hopeless", commands, paced=True)


def _asked_twice_at_once() -> Case:
    """No fault: two operators redrive one dead letter, and the stop lets both orders come into one turn."""
    commands = Workload()
    commands.send("counter", "charge", {"amount": 9}, entity="a", expect=["dead"])
    for _ in range(5):
        commands.send("counter", "add", {"amount": 1}, entity="b", expect=["decided"], phase="after")
    commands.redrive("counter", "k1", phase="after")
    commands.redrive("counter", "k1", expect=["refused"], phase="after")
    return _case("asked-twice-at-once", commands, "worker#1:received@2=stop(0.2)", batch=64)


def _case(name: str, commands: Workload, plan: str = "", *, batch: int = 1, paced: bool = False) -> Case:
    return Case(
        "chaos.agents:counter_only",
        list(commands),
        parse_plan(plan),
        name=f"mutants-redrive-{name}",
        engine={"batch": batch},
        deadline_s=_DEADLINE_S,
        paced=paced,
    )


MUTANTS: Final[Sequence[Mutant]] = (
    mutant(
        "letters-share-an-id",
        "R5",
        "G11",
        "Leaves the generation out of the Msg-Id: the stream takes the second dead letter of a key for the first.",
        _hopeless,
        Edit(
            _DRAFTS,
            "{cause.key}\\0{kind}\\0{cause.generation}\\0{cause.number}",
            "{cause.key}\\0{kind}\\0{cause.number}",
        ),
    ),
    mutant(
        "redrive-keeps-the-key",
        "R5",
        "G1",
        "Sends the command of a dead letter again and leaves its key as it is: it is a duplicate of its own death.",
        _mended,
        Edit(
            _ROWS,
            '    sql = "DELETE FROM keys WHERE scope = ? AND key = ? AND generation = ? AND outcome = ?"\n'
            '    connection.execute(sql, (number, key, generation, CODE_OF_OUTCOME["dead"]))\n'
            "    if connection.changes() != 1:\n"
            '        raise Stale(f"{key!r} is not dead in generation {generation}")\n',
            "",
        ),
    ),
    mutant(
        "freed-without-its-fate",
        "R5",
        "G5",
        "Frees the key of a dead letter that is redriven, and does not write down that it was: it still waits.",
        _mended,
        Edit(_ROWS, '    _end_letter(connection, number, key, generation, "redriven")\n', ""),
    ),
    mutant(
        "redriven-as-often-as-asked",
        "R5",
        "G2",
        "Asks neither in its turn nor in its transaction whether somebody else has just redriven a dead letter.",
        _asked_twice_at_once,
        Edit(
            _REDRIVE,
            'if letter is None or letter.state != "waiting" or key in self._settled:',
            'if letter is None or letter.state != "waiting":',
        ),
        Edit(
            _ROWS,
            "    if connection.changes() != 1:\n"
            '        raise Stale(f"{key!r} is not dead in generation {generation}")\n',
            "",
        ),
        Edit(
            _ROWS,
            "    if connection.changes() != 1:\n"
            '        raise Stale(f"no dead letter of {key!r}, generation {generation}, waits")\n',
            "",
        ),
    ),
    mutant(
        "redrives-whatever-is-dead",
        "R5",
        "G3",
        "Does not ask of which generation: an order that was carried out long ago redrives the next dead letter, too.",
        _hopeless,
        Edit(_REDRIVE, "        if letter.generation != generation:\n", "        if letter.generation < 0:\n"),
    ),
)
