"""What befalls the disk of a nats-server: damage to what lies on it, no write that succeeds, no room for more.

Only the event and the dead-letter streams are ever damaged: what they hold, the store holds too. A command that one
replica accepted and lost is lost, whatever reads it: R1 speaks of the commands that the stream still has.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

import trio

from chaos.faults.blocks import BlockError, flip_bit, truncate_newest_block
from meshforge_trio.broker.api import JetStreamApi
from meshforge_trio.broker.bridge import ConnectOptions, connect
from meshforge_trio.broker.port import Message, StreamSpec
from meshforge_trio.subjects import EVENTS, FAILED
from meshforge_trio.uplink import Wire

__all__ = ["FILLED_MAX", "Damage", "RoomError", "damage", "no_room", "stop_writes"]

#: `truncate`: the newest message is cut short. `flip`, `rot`: a bit of the one in the middle is not what it was.
Damage = Literal["truncate", "flip", "rot"]

#: The most that is written to fill a server, in bytes.
FILLED_MAX: Final = 256 << 20

_FILLER: Final = StreamSpec("CHAOS_FILLER", ("chaos.filler",))
_BODY: Final = bytes(1 << 19)
_ABREAST: Final = 8
_ANSWER_S: Final = 10.0
#: What the server says when all its streams together hold what it may store.
_NO_ROOM: Final = 10023


class RoomError(Exception):
    """The server has more room than is worth filling."""


def damage(store_dir: Path, how: Damage) -> Mapping[str, int]:
    """Damage the newest block of the event stream, and of the dead-letter stream if it holds anything.

    The server must not run. Returns the sequence that was hit, by stream.

    Raises:
        BlockError: the event stream holds nothing.
    """
    hit = truncate_newest_block if how == "truncate" else flip_bit
    found = {EVENTS: hit(store_dir, EVENTS)}
    with contextlib.suppress(BlockError):
        found[FAILED] = hit(store_dir, FAILED)
    return found


def stop_writes(pid: int) -> None:
    """From now on every write of the process `pid` to a file fails, with EFBIG instead of ENOSPC. Linux only.

    A server stays as it is after its first failed write, so only another process takes anything again.
    """
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, most))


@asynccontextmanager
async def no_room(url: str) -> AsyncIterator[None]:
    """For the block another stream holds everything that the server at `url` may store.

    Raises:
        RoomError: it takes more than `FILLED_MAX`, or refuses the filling for another reason.
        SessionLost, Misconfigured: the server cannot be reached.
    """
    connection = await connect(ConnectOptions(urls=(url,)))
    try:
        wire = Wire.over(connection)
        await wire.broker.declare(_FILLER)
        try:
            await _fill(wire)
            yield
        finally:
            with trio.move_on_after(_ANSWER_S, shield=True):
                await JetStreamApi(connection).request(f"STREAM.DELETE.{_FILLER.name}")
    finally:
        with trio.CancelScope(shield=True):
            await connection.aclose()


async def _fill(wire: Wire) -> None:
    for first in range(0, FILLED_MAX // len(_BODY), _ABREAST):
        numbers = range(first, first + _ABREAST)
        acks = await wire.broker.publish([Message(_FILLER.subjects[0], _BODY, str(n)) for n in numbers], _ANSWER_S)
        codes = {ack.error_code for ack in acks if ack.error}
        if codes:
            if codes != {_NO_ROOM}:
                raise RoomError(f"the server refused to be filled: {acks[-1].error}")
            return
    raise RoomError(f"the server takes more than {FILLED_MAX >> 20} MiB: start it with a smaller max_file_store")
