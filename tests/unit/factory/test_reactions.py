"""What agents make of each other's events when their own rules say no: it is told, and nothing is set aside."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from test_generate_any import generated, importing

from meshforge_trio.factory.prd import read_prd
from meshforge_trio.stage import Stage

#: `small` takes up to 5 at a time; what `big` tells may be more, and what it holds may become too large.
PRD = """
# Jars

## Agent: big

### State

| field | type    |
|-------|---------|
| held  | integer |

### Command: put

| field | type    | rule |
|-------|---------|------|
| many  | integer | >= 1 |

- entity: any
- emit `filled` with `many`, `twice` = `many * 2`

### Event: filled

| field | type    |
|-------|---------|
| many  | integer |
| twice | integer |

- `held` becomes `held + many`

### Query: get

## Agent: small

### State

| field | type    |
|-------|---------|
| held  | integer |

### Command: take

| field | type    | rule |
|-------|---------|------|
| many  | integer | 1..5 |

- internal
- entity: any
- emit `taken` with `many`

### Event: taken

| field | type    |
|-------|---------|
| many  | integer |

- `held` becomes `held + many`

### Listens to

- `big.filled`: `take` with `many`

## Acceptance

### Example: some

- when `big.put` on `a` with `many` = `2`
- then `small` `a` has `held` = `2`
"""


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Any]:
    with importing(generated(read_prd(PRD), tmp_path)):
        yield import_module("agents").app


def test_what_is_beyond_the_limits_of_the_listener_is_refused_by_it(app: Any) -> None:
    stage = Stage(app)
    assert stage.send("big", "put", {"many": 9}, entity="a").name == "filled"
    assert [(event.agent, event.name) for event in stage.events] == [("big", "filled")]
    (refused,) = stage.refusals
    assert (refused.agent, refused.code, refused.entity) == ("small", "bad_payload", "a")
    assert refused.payload["reason"] == "many is 9; it must be 1 to 5"


@pytest.mark.parametrize("many", [2**62, 2**63 - 1])
def test_a_number_that_an_event_cannot_carry_is_refused(app: Any, many: int) -> None:
    told = Stage(app).send("big", "put", {"many": many}, entity="a")
    assert (told.code, told.payload["reason"][:14]) == ("out_of_range", "twice would be")


def test_a_number_that_the_state_cannot_hold_is_refused(app: Any) -> None:
    stage = Stage(app)
    for _ in range(2):
        assert stage.send("big", "put", {"many": 2**62 - 1}, entity="a").name == "filled"
    told = stage.send("big", "put", {"many": 2}, entity="a")
    assert (told.code, told.payload["reason"][:13]) == ("out_of_range", "held would be")
    assert stage.state("big", "a").held == 2**63 - 2
