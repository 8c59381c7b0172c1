"""A process that holds a lock as any client does: `python -m chaos.holder URL HISTORY NUMBER`.

It acquires the lock, acts once under its token and says so with a line on stdout. Then it looks at its lease until it
is told to end by SIGTERM, or until its block is cancelled since the lease is lost. Who lost it acts once more, under
the token that it has: as one does who has not noticed.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Final

import trio

from chaos.history import History, now_ns
from meshforge_trio.client import HeldLock, LockLost, MeshClient, open_client
from meshforge_trio.envelope import SecurityContext
from meshforge_trio.lock_client import Fence
from meshforge_trio.telemetry import set_up_logging

__all__ = ["RESOURCE"]

RESOURCE: Final = "vault"
#: Long enough for a worker to die and be replaced before the first has acted, on a busy machine.
_TTL_S: Final = 3.0
_WAIT_S: Final = 20.0
_LOOK_EVERY_S: Final = 0.02


async def _live(url: str, number: int, history: History) -> None:
    principal = SecurityContext(f"holder-{number}", "user")
    async with open_client(url, tenant="default", workspace="demo", principal=principal) as mesh:
        fence: Fence | None = None
        try:
            async with mesh.lock(RESOURCE, ttl_s=_TTL_S, wait_s=_WAIT_S) as held:
                history.write("holds", resource=RESOURCE, token=held.fencing_token)
                fence = held.fence
                await _act(mesh, fence, history)
                sys.stdout.write("acted\n")
                sys.stdout.flush()
                await _look_until_told(held, history)
        except LockLost as lost:
            if fence is None:
                raise
            history.write("lets_go", token=fence["fencing_token"], why="lost", reason=str(lost))
            await _act(mesh, fence, history)
        else:
            history.write("lets_go", token=fence["fencing_token"], why="released")


async def _act(mesh: MeshClient, fence: Fence, history: History) -> None:
    history.write("tries", token=fence["fencing_token"])
    answer = await mesh.call("counter", "add", {"amount": 1}, entity_id=RESOURCE, **fence)
    history.write("acts", token=fence["fencing_token"], answer=str(answer.payload.get("code", answer.name)))


async def _look_until_told(held: HeldLock, history: History) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as told:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_look, held, history)
            async for _ in told:
                nursery.cancel_scope.cancel()
                return


async def _look(held: HeldLock, history: History) -> None:
    while True:
        # In this order: what is left at a later moment was left at this one.
        at = now_ns()
        history.write("looks", token=held.fencing_token, at=at, left_s=held.left_s)
        await trio.sleep(_LOOK_EVERY_S)


if __name__ == "__main__":
    set_up_logging("info")
    _url, _path, _number = sys.argv[1:]
    trio.run(_live, _url, int(_number), History.open(Path(_path), f"client#{_number}"))
