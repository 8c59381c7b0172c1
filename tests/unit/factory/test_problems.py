"""One mistake in a PRD is one problem, told at the place where a person would look for it.

The demo PRD is spoiled in one place at a time. `«` stands where the problem must be.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from meshforge_trio.factory.prd import read_prd
from meshforge_trio.factory.problems import PrdError, Problem

DEMO = (Path(__file__).parents[3] / "examples/multi_agent_demo_prd.md").read_text()

STOCKED = "| reserved | integer | 0         | put aside for orders    |\n"
GREATER = "`ran_short` if `quantity > stock` with `order`, "
MISSING = "`missing` = `quantity - stock`"
COUNTED = "### Command: hand_over"
ASKED = "### Query: get\n\n- answer"
RESERVE = "- `order.created`: `reserve` on `sku` with `order`, `quantity`"
IN_PLACE = "`sum(inventory.reserved) == "

SHORT = "| field   | type    |\n|---------|---------|\n| order   | id      |\n| missing"
SECOND = """## Agent: other

### State

| field | type |
|-------|------|
| made  | time |

### Command: make

- entity: new
- emit `done`

### Event: done

## Invariants"""

#: What to replace, by what, what must be said of it, and a piece of the suggestion.
MISTAKES: dict[str, tuple[str, str, str, str]] = {
    # headings
    "no title": ("# Order, inventory and shipping\n\n-", "«-", "text before the title", "# My shop"),
    "path as title": ("# Order, inventory and", "# «../etc/passwd and", "looks like a path", "'..'"),
    "digit first": ("# Order, inventory", "# «3 orders, inventory", "begins with '3'", "letter"),
    "long title": ("# Order, inventory", f"# «{'Order ' * 20}", "characters", "80"),
    "second title": ("## Invariants", "# «Invariants", "a second title", "## Agent"),
    "agnt": ("## Agent: shipping", "## «Agnt: shipping", "unknown heading 'agnt'", "did you mean 'agent'"),
    "far heading": ("## Acceptance", "## «Wishes", "unknown heading", "here belongs: ## Agent: ..."),
    "comand": ("### Command: receive", "### «Comand: receive", "unknown heading", "did you mean 'command'"),
    "nameless": ("### Command: receive", "### «Command:", "without a name", "### Command: ..."),
    "named state": ("### State\n", "### «State: x\n", "with a name", "### State"),
    "second state": (ASKED, "### «State\n\n### Query: get\n\n- answer", "a second heading 'state'", "below one"),
    "deep": ("### Query: get\n\n- ans", "#### «Query: get\n\n- ans", "too deep", "###"),
    "level": ("## Invariants", "### «Invariants", "unknown heading", "here belongs: ### State"),
    "no space": ("### Command: receive", "«###Command: receive", "is no heading", "a space behind"),
    # names
    "capital": ("### Command: receive\n", "### Command: «Receive\n", "cannot be the name of a command", "'receive'"),
    "space": (COUNTED, "### Command: «hand over", "cannot be the name", "'hand_over'"),
    "keyword": (ASKED, "### Query: «import\n\n- answer", "Python has it", "import_inventory"),
    "builtin": (ASKED, "### Query: «print\n\n- answer", "Python has it", "print_inventory"),
    "of the runtime": (ASKED, "### Query: «sys_x\n\n- answer", "the runtime's own", "another"),
    "of the code": (ASKED, "### Query: «payload\n\n- answer", "generated code uses it", "another"),
    "device": (ASKED, "### Query: «com1\n\n- answer", "no file", "another"),
    "alike": (ASKED, "### Query: «rece_ive\n\n- answer", "too much like the command 'receive'", "another"),
    "agent's own": (ASKED, "### Query: «inventory\n\n- answer", "same name as the agent", "another"),
    "same agent": ("## Agent: shipping", "## Agent: «order", "the same name as the agent 'order'", "another"),
    "reserved agent": ("## Invariants", SECOND.replace("other", "«security"), "the runtime has it", "'securitys'"),
    "tenant": ("- tenant: `default`", "- tenant: `«De fault`", "cannot be the name of a tenant", "'de_fault'"),
    "tenant path": ("- tenant: `default`", "- tenant: `«../x`", "cannot be the name of a tenant", "small letters"),
    "tenent": ("- tenant: `default`", "- «tenent: `default`", "expected 'tenant'", "did you mean 'tenant'"),
    "runtime's event": ("### Event: ran_short", "### Event: «conflict\n\n### Event: ran_short", "runtime has it", ""),
    # tables
    "column": ("| field | type    | rule | m", "| field | «tipe    | rule | m", "unknown column", "mean 'type'"),
    "limits of a state": (
        "| starts as | meaning                 |",
        "| «rule      | meaning                 |",
        "unknown column 'rule'",
        "limits belong to a command's fields",
    ),
    "no table": (
        SHORT,
        SHORT.replace("|---------|---------|", "|---------|").replace("| field", "«| field"),
        "is no table",
        "as many '---'",
    ),
    "type": ("| stock    | integer |", "| stock    | «integr |", "unknown type 'integr'", "did you mean 'integer'"),
    "usual type": ("| stock    | integer |", "| stock    | «string |", "unknown type 'string'", "mean 'text'"),
    "float": ("| price    | decimal | >= 0", "| price    | «float | >= 0", "unknown type 'float'", "'decimal'"),
    "lists": ("| stock    | integer | 0", "| stock    | «list of list of text | ", "a list of list", "plain"),
    "limit": ("| 1..1000          |", "| «between 1 and 9  |", "is no limit", "`1..40`"),
    "limit of type": (
        "| sku      | id      |                  |",
        "| sku      | boolean | «>= 1            |",
        "has no limits",
        "empty",
    ),
    "empty limits": ("| 1..1000          |", "| «9..1             |", "nothing is within", "smaller"),
    "start": (STOCKED, STOCKED.replace("0  ", '«"0"'), "it is text, not integer", ""),
    "choice as start": ("| `none`    | how far", "| `«nne`    | how far", "'nne' is none of", "did you mean 'none'"),
    "unnamed": (STOCKED, STOCKED + "|  «| integer | 0 | |\n", "without a name", "remove"),
    "field twice": (STOCKED, STOCKED + "| «reserved | integer | 0 | |\n", "the same name as the field", "another"),
    "runtime's field": (STOCKED, STOCKED + "| «entity_version | integer | 0 | |\n", "the runtime has it", "the_entity"),
    "cells": ("| how many there are |", "| how many there are | «extra |", "a row of 5 cells", "stroke"),
    # sentences
    "emitt": ("- emit `received`", "- «emitt `received`", "found 'emitt'", "did you mean 'emit'"),
    "whith": ("- emit `received` with", "- emit `received` «whith", "found 'whith'", "did you mean 'with'"),
    "no code": ("- emit `received` with", "- emit «received with", "expected an event in backquotes", "- emit"),
    "event": ("- emit `received` with", "- emit `«recieved` with", "unknown event 'recieved'", "'received'"),
    "numbered": ("- emit `received`", "«1. emit `received`", "a numbered list", "'-'"),
    "bold": ("- emit `received`", "- «**emit** `received`", "found '**emit**'", "did you mean 'emit'"),
    "reference": ("- emit `received`", "- «[emit]: `received`", "found '[emit]'", "did you mean 'emit'"),
    "lacks": ("- emit `received` with `quantity`", "- emit `«received`", "lacks `quantity`", "behind 'with'"),
    "given twice": ("- emit `received` with `quantity`", "- emit `received` with `quantity`, `«quantity`", "twice", ""),
    "field": (GREATER + "`missing`", GREATER + "`«mising`", "unknown field 'mising'", "did you mean 'missing'"),
    "name": ("if `price * quantity > 10000`", "if `price * «quantty > 10000`", "unknown name 'quantty'", "'quantity'"),
    "condition": ("if `price * quantity > 10000`", "if `«price * quantity`", "it is decimal, not boolean", "compare"),
    "assignment": ('unless `status == "confirmed"`', 'unless `status «= "confirmed"`', "no expression", "'=='"),
    "choice": ('unless `status == "confirmed"`', 'unless `status == «"confirmd"`', "none of", "'confirmed'"),
    "types": ("unless `quantity <= reserved`", "unless `«quantity <= id`", "does not go with", "numbers"),
    "division": (MISSING, "`missing` = `«quantity // stock`", "may be 0", "divide by a number"),
    "slash": (MISSING, "`missing` = `«quantity / 2`", "'/' is no operation", "'//'"),
    "power": (MISSING, "`missing` = `«quantity ** 2`", "cannot be used here", "use names"),
    "lambda": (MISSING, "`missing` = `(«lambda: 1)()`", "unknown function", "there is"),
    "dunder": (MISSING, "`missing` = `«quantity.__class__`", "is not known here", "state"),
    "import": (MISSING, '`missing` = `«__import__("os")`', "unknown function", "there is"),
    "bracket": (MISSING, "`missing` = `«(quantity`", "no expression", "use names"),
    "exponent": (MISSING, "`missing` = `quantity + «1e9`", "no number", "write it out"),
    "message": ("{status}\n- emit `completed`", "«{status\n- emit `completed`", "'{' without '}'", "{an expression}"),
    "id heard": (RESERVE, RESERVE.replace("`order`,", "`order` = `«id`,"), "only commands know 'id'", "carry it"),
    "now in an event": (
        "- sets `carrier`, `left_at`",
        "- sets `carrier`\n- `left_at` becomes `«now`",
        "only comm",
        "carry",
    ),
    "message name": ("only {reserved} of {id}", "only {«reservd} of {id}", "unknown name 'reservd'", "'reserved'"),
    "no message": (": only {reserved} of {id} are put aside", ":«", "0 characters", "1 to 500"),
    "entity": ("- entity: any", "- entity: «anyy", "found 'anyy'", "did you mean 'any'"),
    "said twice": ("- entity: any", "- entity: any\n- «entity: any", "said twice", "remove"),
    "becomes": ("- `stock` becomes `stock + q", "- `stock` «becoms `stock + q", "found 'becoms'", "'becomes'"),
    "no field": ("- `stock` becomes `stock + q", "- `«stok` becomes `stock + q", "unknown field 'stok'", "'stock'"),
    "changed twice": (
        "- `stock` becomes `stock + quantity`",
        "- `stock` becomes `stock + quantity`\n- `«stock` becomes `0`",
        "'stock' is changed twice",
        "remove",
    ),
    "wrong value": ("- `stock` becomes `stock + quantity`", '- `stock` becomes `«"much"`', "text, not integer", ""),
    "sets": ("- sets `stock`", "- sets `«stok`", "unknown field 'stok'", "'stock'"),
    "no event": (RESERVE, RESERVE.replace("created", "«creatd"), "unknown event 'creatd'", "'created'"),
    "no agent": (RESERVE, RESERVE.replace("order.", "«ordr."), "unknown agent 'ordr'", "'order'"),
    "no command": (RESERVE, RESERVE.replace("reserve", "«reserv"), "unknown command 'reserv'", "'reserve'"),
    "itself": (RESERVE, RESERVE.replace("order.", "«inventory."), "listens to itself", "emit the other"),
    "heard twice": (RESERVE, f"{RESERVE}\n- «{RESERVE[2:]}", "listens to order.created twice", "one command"),
    "no id": ("`reserve` on `sku`", "`reserve` on `«quantity`", "it is integer, not id", ""),
    # what can never happen
    "unreachable": ("### Event: ran_short", "### Event: «forgotten\n\n### Event: ran_short", "never happens", "- emit"),
    "idle": (COUNTED, f"### Command: «think_over\n\n{COUNTED}", "does nothing", "- emit"),
    "nobody asks": (
        COUNTED,
        "### Command: «count_again\n\n- internal\n- emit `received` with `quantity` = `1`\n\n" + COUNTED,
        "nobody asks",
        "Listens to",
    ),
    "endless": (
        RESERVE,
        f"{RESERVE}\n- «`order.confirmed`: `reserve` on `sku` with `order` = `sku`, `quantity`",
        "may never end: order.confirm → inventory.reserve → order.confirm",
        "emit or send nothing",
    ),
    # invariants and examples
    "invariant": ("- inventory: `reserved >= 0`", "- inventory: `«reservd >= 0`", "unknown name", "'reserved'"),
    "of nobody": ("- inventory: `reserved >= 0`", "- «inventry: `reserved >= 0`", "unknown agent", "'inventory'"),
    "no claim": ("`quantity` is constant", "`quantity` «is constantly", "expected 'is constant'", "sum(account"),
    "no sum": (IN_PLACE, "`«inventory.reserved == ", "is many values", "sum(inventory.reserved)"),
    "sum": (IN_PLACE, "`sum(inventory.«resrved) == ", "unknown name 'resrved' of agent inventory", "'reserved'"),
    "stage": ("- when `shipping.dispatch`", "- «whem `shipping.dispatch`", "found 'whem'", "did you mean 'when'"),
    "backwards": (
        "`missing` = `2`\n",
        "`missing` = `2`\n- «given `inventory.create` on `x` with `stock` = `1`\n",
        "'given' after 'then'",
        "first given",
    ),
    "step": ("- when `shipping.dispatch` on", "- when `shipping.«dispach` on", "unknown command", "'dispatch'"),
    "internal": (
        '- when `shipping.dispatch` on `o-1` with `carrier` = `"post"`',
        "- when `«order.complete` on `o-1`",
        "is internal",
        "leads to it",
    ),
    "value": ("`quantity` = `3`, `price`", '`quantity` = `«"3"`, `price`', "text, not integer", ""),
    "incomplete": (
        "- given `inventory.receive` on `lamp` with `quantity` = `1`",
        "- given `«inventory.receive` on `lamp`",
        "lacks `quantity`",
        "behind",
    ),
    "code": ("- then refused `too_expensive`", "- then refused `«too_expensiv`", "unknown code", "'too_expensive'"),
    # examples that contradict the rules
    "state": (
        "- then `inventory` `lamp` has `stock` = `10`",
        "- then `«inventory` `lamp` has `stock` = `11`",
        "stock of inventory lamp is 10, not 11",
        "what happens: order.created on o-1",
    ),
    "other event": (
        "- then `inventory.ran_short` with `missing` = `2`",
        "- then `«inventory.ran_short` with `missing` = `3`",
        "does not happen",
        "ran_short on lamp (order = 'o-2', missing = 2)",
    ),
    "not refused": (
        "`quantity` = `1000`, `price` = `19.90`\n- then refused `too_expensive`",
        "`quantity` = `1`, `price` = `19.90`\n- then refused `«too_expensive`",
        "is not refused as",
        "order.created",
    ),
    "no conflict": (
        "at version `1` with `quantity` = `5`\n- then conflict",
        "at version `2` with `quantity` = `5`\n- then «conflict",
        "there is no conflict",
        "received on lamp",
    ),
    "exists": (
        "- then `shipping` `o-2` does not exist",
        "- then `«order` `o-2` does not exist",
        "order o-2 exists",
        "",
    ),
    "given refused": (
        "- given `inventory.receive` on `lamp` with",
        "- given `«inventory.receive` on `lamb` with",
        "refused as not_found",
        "say 'when'",
    ),
}


def problems_of(text: str) -> list[Problem]:
    with pytest.raises(PrdError) as caught:
        read_prd(text)
    return list(caught.value.problems)


def test_the_demo_is_right() -> None:
    assert [agent.name for agent in read_prd(DEMO).agents] == ["order", "inventory", "shipping"]


@pytest.mark.parametrize("name", MISTAKES)
def test_one_mistake_is_one_problem(name: str) -> None:
    right, wrong, what, suggestion = MISTAKES[name]
    assert right in DEMO
    spoiled = DEMO.replace(right, wrong, 1)
    before, mark, _ = spoiled.partition("«")
    assert mark
    place = (before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
    (problem,) = problems_of(spoiled.replace("«", ""))
    assert what in problem.what
    assert suggestion in problem.suggestion
    assert (problem.line, problem.column) == place


def test_two_circles_are_two_problems() -> None:
    ring = "- `order.confirmed`: `reserve` on `sku` with `order` = `sku`, `quantity`"
    other = "- `shipping.dispatched`: `receive` on `sku` with `quantity`"
    spoiled = DEMO.replace(RESERVE, f"{RESERVE}\n{ring}")
    spoiled = spoiled.replace("- `shipping.dispatched`: `hand_over` on `sku` with `quantity`", other)
    spoiled = spoiled.replace(
        "- `order.confirmed`: `prepare`", "- `inventory.received`: `dispatch` on `id` with `carrier` = `\"x\"`\n"
        "- `order.confirmed`: `prepare`"
    )  # fmt: skip
    chains = [problem.what for problem in problems_of(spoiled) if "never end" in problem.what]
    assert chains == [
        "this may never end: order.confirm → inventory.reserve → order.confirm",
        "this may never end: inventory.receive → shipping.dispatch → inventory.receive",
    ]


def test_a_name_that_is_missing_in_two_places_is_missing_once() -> None:
    spoiled = DEMO.replace("- sets `sku`, `quantity`\n", "- `sku` becomes `skuu`\n- `quantity` becomes `len(skuu)`\n")
    assert [problem.what for problem in problems_of(spoiled)] == ["unknown name 'skuu' of event shipping.prepared"]
