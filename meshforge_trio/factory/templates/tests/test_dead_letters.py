"""What cannot be read is set aside and told, and blocks nobody."""

from __future__ import annotations

import asyncio
import uuid

from bus import Bus, connected
from world import World, world


async def set_aside(to: World) -> None:
    """A payload of the wrong shape is refused; a command without a key can never be decided once."""
    async with connected(to) as bus:
        await bus.listen({{ lead.agent | python }})
        await unreadable(bus)


async def unreadable(bus: Bus) -> None:
    """A key that belongs to the runtime makes a command that nobody may send."""
    broken = await bus.send({{ lead.agent | python }}, {{ lead.action | python }}, {}, entity=str(uuid.uuid4()), key="raw:mine")
    told = await bus.dead_letter()
    assert told["payload"]["reason"], told
    entity = {{ lead.entity }}
{{ lead.call | indent(0) }}
    await bus.answer(command, {{ lead.events }})
    assert broken["id"] != command["id"]


def test_dead_letters() -> None:
    with world() as to:
        asyncio.run(set_aside(to))
