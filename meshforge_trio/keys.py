"""The keys of a scope's payloads through a session: checked when it starts, looked at with each batch.

What a session has read with them it keeps in memory. So it ends when they are destroyed, and the next one has nothing:
it repeats what was decided, whose bytes it need not read, and refuses everything else.
"""

from __future__ import annotations

from typing import Final

import orjson
import trio

from meshforge_trio.codec import Codecs, ScopeSealer, Sealer, is_sealed
from meshforge_trio.errors import Misconfigured, Poison, Transient
from meshforge_trio.store.port import ScopeStore

__all__ = ["keep_keys", "opened_keys", "renew"]

#: How long an idle session may keep what it has read after the keys were destroyed.
_LOOK_EVERY_S: Final = 1.0


async def opened_keys(codecs: Codecs | None, rows: ScopeStore, next_n: int) -> ScopeSealer | None:
    """The sealer of a scope whose next output is number `next_n`; `None` where its tenant has no codec.

    Raises:
        Misconfigured: the last output is sealed, and nothing opens it: serving on would mix two kinds of payloads.
        Transient: the keys cannot be read now.
    """
    try:
        sealer = ScopeSealer.of_scope(codecs, rows.scope)
    except Misconfigured as error:
        raise Transient(str(error)) from error
    for output in await rows.outputs_after(next_n - 2, 1) if next_n > 1 else ():
        told = orjson.loads(output.body)
        payload = told.get("payload")
        if not isinstance(payload, dict) or not is_sealed(payload):
            continue
        if sealer is None:
            raise Misconfigured(
                f"{rows.scope}: its payloads are sealed, and tenant {rows.scope.tenant!r} has no codec here: name its "
                "key ring in `codec_keys`, or give the app its codec"
            )
        try:
            if sealer.erased is None:
                sealer.opened_payload(told)
        except Poison as error:
            raise Misconfigured(
                f"{rows.scope}: output {output.n} does not open ({error.reason}): put the right key ring in its place"
            ) from error
    return sealer


def renew(sealer: Sealer) -> None:
    """Use the keys there are by now.

    Raises:
        Transient: they were destroyed, or cannot be read now; what was read with them must be dropped.
    """
    try:
        same = sealer.refresh()
    except Misconfigured as error:
        raise Transient(str(error)) from error
    if not same:
        raise Transient(f"the keys changed under this session: {sealer.erased or 'they were destroyed'}")


async def keep_keys(sealer: Sealer | None) -> None:
    """`renew` also while nothing arrives, for as long as the session lasts. Raises as `renew`."""
    while sealer is not None:
        await trio.sleep(_LOOK_EVERY_S)
        renew(sealer)
