"""The engine's nursery: what ends a session is told by its own name."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import pytest
import trio

from chaos.agents import counter
from meshforge_trio.engine import RuntimeEngine, _Suspicion
from meshforge_trio.errors import Fenced
from meshforge_trio.session import Session
from meshforge_trio.subjects import Scope


class _Store:
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


async def test_a_feeder_that_is_fenced_ends_the_session_as_fenced() -> None:
    """Not as a crash: the receiver used to see the end of the channel first, which counted against the process."""
    engine = RuntimeEngine(Scope("t", "w", "counter"), counter, cast(Any, _Store()))
    with trio.fail_after(5), pytest.RaisesGroup(Fenced, flatten_subgroups=True):
        await engine._serve(cast(Session, _LosingSession()), _Suspicion())
