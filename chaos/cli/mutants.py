"""`meshforge-chaos mutants`: whether planted bugs are caught, and by which guarantee."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import click
from rich.markup import escape
from rich.table import Table

from chaos.cli.live import Board, in_lab
from chaos.cli.options import Order, json_option, lab_options
from chaos.cli.outlet import out, print_json, put
from chaos.cli.results import COLOURS
from chaos.lab import Lab
from chaos.verdict import EXIT_CODES, Status

if TYPE_CHECKING:
    from chaos.mutants.detect import Detection
    from chaos.mutants.mutant import Mutant

__all__ = ["matrix", "mutants"]

_GUARANTEES = tuple(f"G{number}" for number in range(1, 14))


@click.command(short_help="Plant bugs, and see whether they are caught.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--list", "listing", is_flag=True, help="Only list them.")
@click.option("--diff", is_flag=True, help="Only show what each changes.")
@click.option("--tries", type=click.IntRange(1, 20), default=1, show_default=True, help="Runs until one is caught.")
@click.option("--keep", is_flag=True, help="Keep the runs of those that are caught, too.")
@json_option
@lab_options
def mutants(names: tuple[str, ...], listing: bool, diff: bool, tries: int, **given: Any) -> int:
    """Plant bugs into the protocol, one at a time, and run each on a case that the protocol as it is passes.

    The matrix shows which guarantees fell: ● is the one that a bug has to break, ○ any other. Exit code 1 when a bug
    survives: then a checker is blind, or the bug is none.
    """
    chosen = _chosen(names)
    order = Order.take(given)
    if diff:
        from chaos.mutants.patch import diff_of  # noqa: PLC0415

        put("\n".join(diff_of(mutant.patch) for mutant in chosen))
        return 0
    if listing:
        _list(chosen, as_json=order.as_json)
        return 0
    from chaos.again import discard  # noqa: PLC0415
    from chaos.mutants.detect import run_catalogue  # noqa: PLC0415

    async def work(lab: Lab, board: Board) -> Sequence[Detection]:
        board.stage(f"{len(chosen)} planted bugs")
        return await run_catalogue(chosen, lab, board.caught, tries=tries)

    # What is kept of a run with a bug is kept because a guarantee fell.
    found = in_lab(attrs.evolve(order, keep=False), work)
    if not order.keep:
        for detection in found:
            if detection.proven:
                discard(detection.outcome)
    return _show(found, order)


def _chosen(names: Sequence[str]) -> Sequence[Mutant]:
    from chaos.mutants.catalogue import CATALOGUE  # noqa: PLC0415

    known = {mutant.name: mutant for mutant in CATALOGUE}
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise click.UsageError(f"there is no mutant {name!r}{hint}; `meshforge-chaos mutants --list` names them")
    return [known[name] for name in names] if names else CATALOGUE


def _list(chosen: Sequence[Mutant], *, as_json: bool) -> None:
    if as_json:
        fields = ("name", "rule", "guarantee", "about")
        print_json([{field: getattr(mutant, field) for field in fields} for mutant in chosen])
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("mutant", "rule", "breaks", "what the programmer got wrong"):
        table.add_column(column)
    for mutant in chosen:
        table.add_row(mutant.name, mutant.rule or "-", mutant.guarantee, escape(mutant.about))
    out().print(table)


def matrix(found: Sequence[Detection]) -> Table:
    """Bugs by guarantees."""
    from chaos.gate import judged  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("planted bug")
    table.add_column("rule")
    for id_ in _GUARANTEES:
        table.add_column(id_, justify="center")
    table.add_column("")
    for detection in found:
        status = judged(detection)
        words = {Status.PASS: "caught", Status.VIOLATION: "SURVIVED", Status.INCONCLUSIVE: "not judged"}
        marks = [_mark(detection, id_) for id_ in _GUARANTEES]
        word = f"[{COLOURS[status]}]{words[status]}[/]"
        table.add_row(detection.mutant.name, detection.mutant.rule or "-", *marks, word)
    return table


def _mark(detection: Detection, id_: str) -> str:
    named = id_ == detection.mutant.guarantee
    if id_ in detection.fell:
        return "[green]●[/]" if named else "○"
    return "[red]-[/]" if named else ""


def _show(found: Sequence[Detection], order: Order) -> int:
    from chaos.gate import judged  # noqa: PLC0415
    from chaos.tally import told_outcome  # noqa: PLC0415

    statuses = [judged(detection) for detection in found]
    status = next((bad for bad in (Status.VIOLATION, Status.INCONCLUSIVE) if bad in statuses), Status.PASS)
    caught = statuses.count(Status.PASS)
    if order.as_json:
        told = [
            {
                "name": detection.mutant.name,
                "rule": detection.mutant.rule,
                "guarantee": detection.mutant.guarantee,
                "status": judged(detection).value,
                "fell": list(detection.fell),
                "true_passes": detection.true_passes,
                "tries": detection.tries,
                "run": told_outcome(detection.outcome),
            }
            for detection in found
        ]
        print_json({"status": status.value, "caught": caught, "planted": len(found), "mutants": told})
        return EXIT_CODES[status]
    console = out()
    console.print(matrix(found))
    for detection in found:
        if judged(detection) is not Status.PASS:
            console.print(escape(f"{detection}\n{detection.outcome}"), soft_wrap=True)
    console.print(f"{caught} of {len(found)} planted bugs are caught")
    return EXIT_CODES[status]
