"""The engine's nursery: what ends a session is told by its own name."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import trio
from doubles import Desk, command

from chaos.agents import counter
from meshforge_trio import protocol
from meshforge_trio.engine import RuntimeEngine, _Suspicion
from meshforge_trio.errors import Fenced
from meshforge_trio.intake import Incoming
from meshforge_trio.session import Session
from meshforge_trio.subjects import Scope
from meshforge_trio.turnstile import Turnstile


class _Store:
    place = "here"

    def scope(self, scope: Scope) -> object:
        return object()


class _Consumer:
    def extend(self) -> None:
        """Nothing is in hand."""


class _LosingSession:
    """A session whose lease is over by the time it pulls."""

    consumers: ClassVar = {"COMMANDS": _Consumer()}
    adapter = counter
    sealer = None
    erased = False

    def check_lease(self) -> None:
        raise Fenced("the lease ran out")


async def test_while_another_scope_is_active_what_has_arrived_is_taken_in_slices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also what was pulled and read before the other one came."""
    desk, turnstile, sizes = Desk(), Turnstile(), list[int]()

    async def turn(session: object, batch: Sequence[Incoming], task_status: trio.TaskStatus[None]) -> None:
        sizes.append(len(batch))
        if len(sizes) == 1:
            async with other.turn():
                await trio.lowlevel.checkpoint()
        task_status.started()

    monkeypatch.setattr(protocol, "turn", turn)
    store = cast(Any, _Store())
    other = turnstile.seat(store.place, "another")
    engine = RuntimeEngine(desk.scope, desk.adapter, store, turnstile=turnstile)
    session = cast(Session, SimpleNamespace(waiting=desk.waiting))
    async with trio.open_nursery() as turns:
        for _ in range(2):
            batch = [desk.read(command(n)) for n in range(300)]
            await engine._run(session, _Suspicion(), batch, turns)
    assert sizes == [300, *[4] * 75]


async def test_a_feeder_that_is_fenced_ends_the_session_as_fenced() -> None:
    """Not as a crash: the receiver used to see the end of the channel first, which counted against the process."""
    engine = RuntimeEngine(Scope("t", "w", "counter"), counter, cast(Any, _Store()))
    with trio.fail_after(5), pytest.RaisesGroup(Fenced, flatten_subgroups=True):
        await engine._serve(cast(Session, _LosingSession()), _Suspicion())
